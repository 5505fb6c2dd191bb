"""A recipe that measures on boards: a real sshd on loopback, one target in ONNX Runtime for real.

The Jetson is a stand-in: trtexec and nvpmodel reproduce recorded formats, logits are computed.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from conftest import Answer, call, write_recipe

from elastic_export.report.load import load_result
from tests.board.machine import NVPMODEL, STAND_INS
from tests.board.sshd import Server

JETSON = "orin-nano-8gb@jp6.2:15W"
ARM = {
    "schema_version": 1,
    "name": "arm-server",
    "title": "A server with ONNX Runtime",
    "kind": "host",
    "software": [
        {
            "name": "ort",
            "runtime": "onnxruntime",
            "runtime_version": "1.22",
            "max_opset": 20,
            "source": "the tests' own",
        }
    ],
    "flavours": {"fp32": "plain", "int8": "ort-cpu"},
    "sparse_2_4": False,
    "build_on": "none",
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "server")
    stand_in = STAND_INS / "trtexec_stand_in.py"
    running.install("trtexec", f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n')
    running.install("nvpmodel", NVPMODEL)
    running.be_a_jetson(STAND_IN_VERSION="10.3.0", STAND_IN_SECONDS="0.02")
    yield running
    running.stop()


def small(folder: Path, **measure: Any) -> Path:
    """A recipe of one descendant for three targets; ``arm-server.yaml`` lies beside it."""
    return write_recipe(
        folder,
        descend={"search": None, "specs": ["min"]},
        targets=["host-cpu", "arm-server", JETSON],
        measure={"min_samples": 3, **measure},
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything but the boards, made once: what is tested here begins where bundles are there."""
    home = tmp_path_factory.mktemp("made")
    profile(home)
    done = build(small(home))
    assert done.code == 0, done.err
    return home / "store"


def profile(home: Path) -> None:
    """Make the server known to whoever runs the command with this home."""
    (home / "targets").mkdir()
    (home / "targets" / "arm-server.yaml").write_text(yaml.safe_dump(ARM))


@pytest.fixture
def recipe(tmp_path: Path, server: Server) -> Path:
    profile(tmp_path)
    board = {
        "board": "board",
        "seconds": 0.2,
        "python": sys.executable,
        "ssh_config": str(server.client),
        "patience_s": 1,
        "pin_clocks": False,
    }
    return small(tmp_path, on={"arm-server": board, JETSON: board})


def build(recipe: Path, *options: str) -> Answer:
    out = recipe.parent / "out"
    return call("build", recipe, "--out", out, "--json", *options, home=recipe.parent)


def stages(answer: Answer) -> dict[str, Any]:
    rows = answer.json["stages"]
    return {row["detail"]: row["cached"] for row in rows if row["stage"] == "measure"}


@pytest.mark.slow
def test_a_build_measures_on_boards_and_reports_it(
    recipe: Path, server: Server, store: Path
) -> None:
    shutil.copytree(store, recipe.parent / "store")
    done = build(recipe)
    assert done.code == 0, done.err
    assert stages(done) == {
        "this machine": True,
        "arm-server@ort on board": False,
        f"{JETSON} on board": False,
    }
    out = recipe.parent / "out"
    (one,) = load_result(out / "report.json").descendants
    here, arm, jetson = one.bundles
    assert {latency.on for latency in here.latency.values()} == {None}
    assert set(arm.latency) == {"fp32", "int8"}
    assert set(jetson.latency) == {"fp32", "fp16", "int8"}
    for bundle in (arm, jetson):
        assert bundle.chosen in bundle.latency
        for precision, latency in bundle.latency.items():
            assert latency.on == "board"
            assert latency.samples == 3
            assert latency.marks == ("unpinned",)
            assert latency.machine["python"]
            assert bundle.checks[precision]["on_board"]["ok"]
    assert arm.latency["int8"].runner == "ONNX Runtime"
    # What the stand-in says of its layers.
    int8 = jetson.engines["int8"]
    assert (int8["status"], int8["version"], int8["picked_sparse"]) == ("built", "10.3.0", ["fc1"])
    assert jetson.latency["int8"].runner == "TensorRT 10.3.0"
    assert jetson.latency["int8"].machine["part"] == "p3767-0003"
    assert not any("No engine was built" in note for note in jetson.notes)
    assert not jetson.estimate

    lines = list(csv.DictReader((out / "latencies.csv").open()))
    assert [(line["target"], line["on"]) for line in lines] == [
        *[("host-cpu@ort", "")] * 2,
        *[("arm-server@ort", "board")] * 2,
        *[(JETSON, "board")] * 3,
    ]
    plots = {path.name for path in (out / "plots").glob("*.svg")}
    assert {"accuracy-latency.svg", "accuracy-latency.orin-nano-8gb@jp6.2-15W.svg"} <= plots
    page = (out / "report.html").read_text()
    assert "measured on board" in page
    assert f"On {JETSON}, measured on board" in page

    # Under another name the bundles are others, and so are the keys of what was measured.
    renamed = build(recipe, "--set", "name=other", "--set", "targets=[host-cpu,arm-server]")
    assert renamed.code == 1
    assert "which is no target of the recipe" in renamed.err
    renamed = build(recipe, "--set", "name=other")
    assert renamed.code == 0, renamed.err
    assert stages(renamed)[f"{JETSON} on board"] is False
    (other,) = load_result(out / "report.json").descendants
    assert set(other.bundles[2].latency) == {"fp32", "fp16", "int8"}
    assert build(recipe).code == 0

    # The figures are in the store: nobody is asked again, not even a board that is gone.
    server.cut()
    again = build(recipe)
    assert again.code == 0, again.err
    assert all(stages(again).values())
    assert load_result(out / "report.json").descendants == (one,)
    planned = build(recipe, "--dry-run")
    assert all(row["cached"] for row in planned.json["plan"])

    away = build(recipe, "--set", "measure.min_samples=4")
    assert away.code == 1
    assert "cannot be reached" in away.err
    assert load_result(out / "report.json").descendants == (one,)


@pytest.mark.slow
def test_two_boards_are_measured_at_once(
    tmp_path: Path, recipe: Path, server: Server, store: Path
) -> None:
    shutil.copytree(store, recipe.parent / "store")
    other = Server(tmp_path / "other", name="other")
    config = tmp_path / "both"
    config.write_text(f"Include {server.client}\nInclude {other.client}\n")
    wanted = yaml.safe_load(recipe.read_text())
    on = wanted["measure"]["on"]
    for target, board in zip(on, ("other", "board"), strict=True):
        on[target] = on[target] | {"ssh_config": str(config), "board": board}
    recipe.write_text(yaml.safe_dump(wanted))
    try:
        done = build(recipe)
    finally:
        other.stop()
    assert done.code == 0, done.err
    assert "Measuring on 2 boards" in done.err
    assert set(stages(done)) == {
        "this machine",
        "arm-server@ort on other",
        f"{JETSON} on board",
    }
    (one,) = load_result(recipe.parent / "out" / "report.json").descendants
    assert [{x.on for x in b.latency.values()} for b in one.bundles] == [
        {None},
        {"other"},
        {"board"},
    ]


@pytest.mark.slow
def test_what_fails_on_a_board_leaves_the_rest_of_the_report(
    recipe: Path, server: Server, store: Path
) -> None:
    shutil.copytree(store, recipe.parent / "store")
    whole = (server.bin / "trtexec").read_text()
    server.install(
        "trtexec",
        whole.replace(
            "exec", 'case "$*" in *--onnx=*int8*) echo "[E] no"; exit 1 ;; esac\nexec', 1
        ),
    )
    done = build(recipe)
    assert done.code == 1
    (failure,) = done.json["failures"]
    assert f"int8 of min for {JETSON} was not measured on board" in failure["what"]
    assert "trtexec could not build" in failure["what"]
    (one,) = load_result(recipe.parent / "out" / "report.json").descendants
    here, arm, jetson = one.bundles
    assert here.latency
    assert arm.latency
    assert set(jetson.latency) == {"fp32", "fp16"}
    assert set(jetson.estimate) == {"int8"}
    # What failed is tried again, on the board that is well now and on no other.
    server.install("trtexec", whole)
    again = build(recipe)
    assert again.code == 0, again.err
    assert stages(again)[f"{JETSON} on board"] is False
    assert stages(again)["arm-server@ort on board"] is True
    jetson = load_result(recipe.parent / "out" / "report.json").descendants[0].bundles[2]
    assert set(jetson.latency) == {"fp32", "fp16", "int8"}


def test_another_board_is_refused_before_any_work(recipe: Path, server: Server) -> None:
    server.set()  # a server, and no Jetson any more
    done = build(recipe)
    assert done.code == 1
    assert "board has another device (" in json.loads(done.out)["error"]["what"]
    server.be_a_jetson(STAND_IN_VERSION="10.3.0")
    server.install("nvpmodel", NVPMODEL.replace("15W", "MAXN"))
    done = build(recipe)
    assert done.code == 1
    error = json.loads(done.out)["error"]
    assert error["what"] == f"board has power mode MAXN, and the recipe measures {JETSON} there."
    assert "targets probe board" in error["fix"]
    assert not (recipe.parent / "store" / "artifacts").exists()


@pytest.mark.parametrize(
    ("on", "what"),
    [
        ({"a10": "user@host"}, "measure.on names a board for a10@rtx, which is no target"),
        (
            {"host-cpu": "user@host", "host-cpu@ort": "user@host"},
            "measure.on names two boards for host-cpu@ort",
        ),
        ({"host-cpu": {"bord": "x"}}, "measure.on.host-cpu.bord"),
        ({"host-cpu": ""}, "measure.on.host-cpu"),
        ({"nowhere": "user@host"}, 'There is no target "nowhere"'),
        ({"host-cpu": "-oProxyCommand=true"}, "is not a machine to connect to"),
    ],
)
def test_a_wrong_board_is_refused(
    tmp_path: Path, run_here: Any, on: dict[str, Any], what: str
) -> None:
    path = write_recipe(tmp_path, targets=["host-cpu"], measure={"on": on})
    done = run_here("build", path, "--out", tmp_path / "out")
    assert done.code == 1
    assert what in done.err, done.err
