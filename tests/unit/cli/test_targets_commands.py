"""``elastic-export targets`` through the installed entry point."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from elastic_export import resources


def test_the_list_tells_peaks_and_how_much_is_unverified(run) -> None:
    told = run("targets", "list").stdout
    line = next(line for line in told.splitlines() if line.split()[:1] == ["agx-orin-64gb"])
    for cell in ("8.7", "85.2", "42.6", "204.8", "MAXN", "2 of 19", "jp5.1"):
        assert cell in line
    nano = next(line for line in told.splitlines() if line.split()[:1] == ["jetson-nano"])
    assert nano.split()[:6] == ["jetson-nano", "5.3", "4", "-", "0.4716", "no"]
    assert "275" not in told
    listed = {entry["name"]: entry for entry in _json(run("targets", "list", "--json"))["targets"]}
    assert listed["jetson-nano"]["identity"] == "jetson-nano@jp4.6:MAXN"
    assert set(listed["jetson-nano"]["peak_rates"]) == {"fp16", "fp32"}
    assert listed["a30"]["unverified"] == 2
    assert listed["host-cpu"]["peak_rates"] == {}


def test_show_gives_the_arguments_of_trtexec(run) -> None:
    nano = _json(run("targets", "show", "jetson-nano", "--json"))["trtexec"]
    assert set(nano) == {"fp32", "fp16"}
    assert nano["fp16"]["build"][:2] == ["--fp16", "--workspace=1024"]
    orin = _json(run("targets", "show", "orin-nano-8gb", "--json"))["trtexec"]
    assert "--stronglyTyped" in orin["int8"]["build"]
    assert "--sparsity=enable" in orin["int8"]["build"]
    assert "--sparsity=enable" not in orin["fp32"]["build"]
    assert "--duration=15" in orin["int8"]["time"]
    assert "--sparsity=enable" in run("targets", "show", "a10@trt11.1").stdout
    for without in ("host-cpu", "a10"):
        assert _json(run("targets", "show", without, "--json"))["trtexec"] == {}


def test_show_sets_the_modes_side_by_side_and_names_every_source(run) -> None:
    told = run("targets", "show", "agx-orin-64gb").stdout
    rows = {line.split()[0]: line.split() for line in told.splitlines() if line.split()}
    assert rows["MAXN"][1:5] == ["16", "1.3", "85.2", "170.4"]
    assert rows["MODE_30W"][1:5] == ["8", "0.612", "20.05", "40.11"]
    assert rows["MAXN"][-1] == "105"
    assert rows["boost_ghz@MODE_15W"][2] == "unverified"
    assert "unverified" in rows["jp7.2"]
    profile = _json(run("targets", "show", "agx-orin-64gb@jp6.0", "--json"))
    flat = "".join(told.split())
    for figure in profile["target"]["peaks"].values():
        assert "".join(figure["source"].split())[:40] in flat
    assert profile["build_on"] == "device"
    assert profile["unverified"] == 2
    assert set(profile["peak_rates"]) == {"MAXN", "MODE_50W", "MODE_30W", "MODE_15W"}


def test_show_leaves_out_modes_that_the_software_does_not_have(run) -> None:
    old = _json(run("targets", "show", "orin-nano-8gb@jp5.1", "--json"))
    assert set(old["peak_rates"]) == {"15W", "7W"}


def test_a_profile_of_ones_own_is_listed(run, tmp_path: Path) -> None:
    values = yaml.safe_load((resources.shipped("targets") / "a10.yaml").read_text())
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "lab-card.yaml").write_text(yaml.safe_dump({**values, "name": "lab-card"}))
    listed = run("targets", "list", "-q", ELASTIC_EXPORT_TARGETS=str(folder)).stdout.split()
    assert set(listed) - set(resources.names("targets")) == {"lab-card"}
    (folder / "broken.yaml").write_text("name: broken\n")
    told = run("targets", "list", ELASTIC_EXPORT_TARGETS=str(folder))
    assert told.returncode == 0  # one bad file hides no other target
    assert "lab-card" in told.stdout
    assert "Left out: " in told.stderr
    assert "broken.yaml" in told.stderr
    assert "Traceback" not in told.stderr


def _json(told) -> dict:
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)
