"""How the script on the board ends: interrupts, a second run beside it, and a full disk.

Builders and clocks are stand-ins (``tests/board``); processes, signals, locks and the full disk are
real.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.board.machine import Board, has, jetson, processes, wait_for


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (signal.SIGINT, ()),
        (signal.SIGTERM, ()),
        (signal.SIGHUP, ()),
        (signal.SIGTERM, ("--detached",)),
    ],
)
def test_an_interrupt_restores_the_clocks(
    tmp_path: Path, kind: signal.Signals, options: tuple[str, ...]
) -> None:
    board = Board(tmp_path)
    log = jetson(board)
    process = board.start("--seconds=60", "--precision=fp32", *options)
    # Stored and pinned: the call that pins has no arguments, and before it nothing is to restore.
    wait_for(lambda: has(log, "--store") and len(log.read_text().splitlines()) > 1)
    process.send_signal(kind)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert log.read_text().splitlines()[-1].startswith("--restore")
    assert not board.result["complete"]
    assert "Traceback" not in err
    assert processes(str(board.bin)) == []


def test_a_second_interrupt_does_not_keep_the_clocks_pinned(tmp_path: Path) -> None:
    board = Board(tmp_path)
    log = jetson(board, restoring=1)
    # Of its own group, as in a terminal, where Ctrl-C goes to the commands it runs as well.
    process = board.start("--seconds=60", "--precision=fp32", "--no-power", start_new_session=True)
    wait_for(lambda: has(log, "--store") and len(log.read_text().splitlines()) > 1)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    wait_for(lambda: has(log, "--restore"))
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert has(Path(f"{log}.done"), "restored")


@pytest.mark.parametrize("builder", ["trtexec", "module"])
def test_an_interrupt_ends_a_build(tmp_path: Path, cudart: Path, builder: str) -> None:
    """And the builder's own children with it; nothing half-built stays."""
    board = Board(tmp_path, "tensorrt")
    if builder == "trtexec":
        board.install_trtexec("10.3.0", STAND_IN_FAIL="slow")
    else:
        board.install_module("10.3.0", cudart, STAND_IN_FAIL="slow")
    process = board.start("--no-clocks", "--precision=int8")
    engines = tmp_path / "bundle.engine"
    wait_for(lambda: any(engines.glob("*.build.log")))
    word = "sleep 60" if builder == "trtexec" else "build-engine"
    wait_for(lambda: bool(processes(word)))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130, err
    assert processes(word) == []
    assert not list(engines.glob("*.part"))
    assert not list(engines.glob("*.engine"))
    # The lock went with the process.
    board.environment["STAND_IN_FAIL"] = ""
    done = board.run("--no-clocks", "--precision=int8", "--rounds=1", "--no-profile")
    assert done.returncode == 0, done.stderr
    assert "waiting" not in done.stderr


def test_an_interrupt_while_layers_are_profiled(tmp_path: Path) -> None:
    """The figures are whole by then, and the clocks are still pinned."""
    board = Board(tmp_path, "tensorrt")
    log = jetson(board)
    board.install_trtexec("10.3.0")
    process = board.start(
        "--rounds=1", "--precision=int8", "--progress=json", "--idle-seconds=0.1", "--no-power"
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "Profiling" in line:
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert log.read_text().splitlines()[-1].startswith("--restore")
    model = board.result["models"]["tiny/int8"]
    assert len(model["samples_ms"]) == 1
    assert "layers" not in model
    assert not list(tmp_path.glob("bundle.engine/*.profile.json"))


def test_an_interrupted_fresh_run_keeps_the_old_figures(tmp_path: Path) -> None:
    board = Board(tmp_path)
    options = ("--precision=fp32", "--seconds=3", "--rounds=2", "--no-profile")
    assert board.run(*options).returncode == 0
    before = board.result["models"]
    process = board.start(*options, "--fresh", "--progress=json")
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line)
        if (event.get("done"), event.get("total")) == (1, 2):
            break  # one of two rounds is done
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert board.result["models"] == before
    assert not board.result["complete"]
    done = board.run(*options, "--fresh")
    assert done.returncode == 0
    assert board.result["complete"]
    assert board.result["models"] != before


def test_two_boards_that_share_a_folder_build_one_engine(tmp_path: Path) -> None:
    board = Board(tmp_path, "tensorrt")
    board.install_trtexec("10.3.0", STAND_IN_BUILDING="1.5")
    outs = [tmp_path / "a.json", tmp_path / "b.json"]
    runs = []
    for out in outs:
        board.out = out
        board.environment["TMPDIR"] = str(tmp_path / out.stem)
        (tmp_path / out.stem).mkdir()
        runs.append(board.start("--no-clocks", "--rounds=1", "--no-profile", "--precision=int8"))
    told = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    assert sum("another process builds" in text for text in told) == 1
    models = [json.loads(out.read_text())["models"]["tiny/int8"] for out in outs]
    assert sorted(model["built"]["reused"] for model in models) == [False, True]
    assert all(model["accuracy"]["ok"] for model in models)
    (timings,) = tmp_path.glob("bundle.engine/timing.trt10.3.0-*.cache")
    assert timings.read_text() == "built\n"


def test_two_runs_measure_one_after_the_other(tmp_path: Path) -> None:
    """The second one would time the first, store pinned clocks, and restore them for good."""
    board = Board(tmp_path)
    log = jetson(board)
    runs = []
    for name in ("a", "b"):
        board.out = tmp_path / f"{name}.json"
        runs.append(board.start("--precision=fp32", "--seconds=2", "--rounds=2", "--no-power"))
    told = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    calls = [call.split()[0] if call else "pin" for call in log.read_text().splitlines()]
    assert calls == ["--store", "pin", "--restore"] * 2
    assert sum("another measurement runs here" in text for text in told) == 1


def test_two_runs_without_clocks_take_turns_too(tmp_path: Path) -> None:
    board, runs = Board(tmp_path), []
    for name in ("a", "b"):
        board.out = tmp_path / f"{name}.json"
        runs.append(board.start("--precision=fp32", "--seconds=1", "--rounds=1", "--no-clocks"))
    told = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    assert sum("another measurement runs here" in text for text in told) == 1


def test_a_model_that_fails_hides_no_figure_of_before(tmp_path: Path) -> None:
    """One model is finished, the other one cannot be built; then the same command again."""
    board = Board(tmp_path, "tensorrt")
    board.install_trtexec("10.3.0")
    assert board.run("--no-clocks", "--rounds=2", "--precision=fp32").returncode == 0
    board.environment["STAND_IN_FAIL"] = "parse"
    for _ in range(2):
        done = board.run("--no-clocks", "--rounds=2")
        assert done.returncode == 1
        assert "error" not in done.stdout  # the result says it, beside what is finished
        models = board.result["models"]
        assert len(models["tiny/fp32"]["samples_ms"]) == 2
        assert "trtexec could not build" in models["tiny/int8"]["error"]["what"]


def test_engines_of_another_gpu_are_not_taken(tmp_path: Path) -> None:
    board = Board(tmp_path, "tensorrt")
    board.install_trtexec("10.3.0")
    options = ("--no-clocks", "--rounds=1", "--precision=int8", "--no-profile")
    smi = '#!/bin/sh\ncase "$*" in *{field}*) echo {value} ;; *) echo N/A ;; esac\n'
    built = []
    for name in ("A10", "A40", "A10"):
        board.install("nvidia-smi", smi.format(field="query-gpu=name", value=f"NVIDIA {name}"))
        assert board.run(*options, "--fresh").returncode == 0
        built.append(board.result["models"]["tiny/int8"]["built"]["reused"])
    assert built == [False, False, True]


@pytest.mark.parametrize("builder", ["trtexec", "module"])
def test_a_disk_that_fills_up_while_an_engine_is_written(
    tmp_path: Path, cudart: Path, builder: str
) -> None:
    """A real full disk: a small file system in memory, on which an engine of 64 MiB is written."""
    inside = ["unshare", "-rm"] if os.geteuid() else ["unshare", "-m"]
    engines = tmp_path / "engines"
    engines.mkdir()
    mount = f'mount -t tmpfs -o size=20m none "{engines}" && exec "$@"'
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            [*inside, "sh", "-c", mount, "sh", "true"], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a file system in memory (unshare)")
    board = Board(tmp_path, "tensorrt")
    if builder == "trtexec":
        board.install_trtexec("10.3.0", STAND_IN_FAIL="cut")
    else:
        board.install_module("10.3.0", cudart, STAND_IN_FAIL="large")
    command = board.command("--no-clocks", "--rounds=1", "--precision=int8")
    left = f'{mount.replace("exec ", "")}; code=$?; ls "{engines}" > "{tmp_path}/left"; exit $code'
    done = subprocess.run(
        [*inside, "sh", "-c", left, "sh", *command, "--engine-dir", str(engines)],
        env=board.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "The disk is full: the engine could not be written" in done.stderr
    assert "--engine-dir" in done.stderr
    names = (tmp_path / "left").read_text().split()
    assert names
    assert not [name for name in names if name.endswith((".part", ".engine", ".engine.json"))]
