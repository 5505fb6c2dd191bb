"""Commands through the installed entry point."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import elastic_export
from elastic_export import resources
from elastic_export.artifacts.store import Store

COMMANDS = [
    "build",
    "extract",
    "export",
    "compile",
    "bench",
    "report",
    "inspect",
    "targets",
    "doctor",
    "cache",
]


def test_help_names_every_command_and_version_is_ours(run) -> None:
    told = run("--help")
    assert told.returncode == 0
    for command in COMMANDS:
        assert f" {command} " in told.stdout
    assert run("--version").stdout == f"elastic-export {elastic_export.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run, command: str) -> None:
    told = run(command, "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert "Usage: elastic-export" in told.stdout


def test_wrong_usage_is_exit_code_2(run) -> None:
    for args in (
        ["build", "--no-such-option"],
        ["nonsense"],
        ["cache", "prune"],
        ["targets", "show"],
    ):
        told = run(*args)
        assert (told.returncode, told.stdout) == (2, "")
        assert "Traceback" not in told.stderr


def test_targets_list(run) -> None:
    told = run("targets", "list")
    assert told.returncode == 0
    listed = json.loads(run("targets", "list", "--json").stdout)["targets"]
    for name in resources.names("targets"):
        assert name in told.stdout
    assert [target["name"] for target in listed] == resources.names("targets")
    assert run("targets", "list", "-q").stdout.split() == resources.names("targets")


def test_targets_show(run) -> None:
    told = run("targets", "show", "orin-nano-8gb@jp6.2:25W")
    assert told.returncode == 0
    assert "orin-nano-8gb@jp6.2:25W" in told.stdout
    assert "unverified" in told.stdout
    shown = json.loads(run("targets", "show", "a100-sxm-40gb", "--json").stdout)
    assert shown["identity"] == "a100-sxm-40gb@rtx"
    assert shown["peak_rates"]["default"]["int8"] == pytest.approx(624, rel=0.01)


def test_a_user_error_is_two_sentences_and_exit_code_1(run) -> None:
    told = run("targets", "show", "nano")
    assert (told.returncode, told.stdout) == (1, "")
    what, fix = told.stderr.splitlines()
    assert what.startswith('Error: "nano" may mean two devices')
    assert "orin-nano-8gb" in fix
    asked = run("targets", "show", "nano", "--json")
    error = json.loads(asked.stdout)["error"]
    assert (error["kind"], error["exit_code"], asked.returncode) == ("user", 1, 1)
    assert error["fix"] == fix


def test_a_misspelt_recipe_is_told_before_torch_is_loaded(run, tmp_path: Path) -> None:
    told = run("build", "--set", "quantise.calibration=max", PYTHONPROFILEIMPORTTIME="1")
    assert told.returncode == 1
    assert 'Did you mean "quantize"?' in told.stderr
    loaded = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines()}
    assert "elastic_export.config.loader" in loaded
    assert "torch" not in loaded
    assert not (tmp_path / "elastic-export-out").exists()
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"\xff\xfe\x00", "is not text"), (b"a: [", "not valid YAML")],
)
def test_files_that_are_no_recipe(run, tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    told = run("build", "r.yaml", "--json")
    assert told.returncode == 1
    assert words in json.loads(told.stdout)["error"]["what"]


def test_cache_commands(run, tmp_path: Path) -> None:
    empty = run("cache", "list")
    assert "is empty" in empty.stdout
    assert not (tmp_path / "home").exists()
    store = Store(tmp_path / "home")
    store.build("train-1", "train", lambda folder: {"note": "x" * 2000})
    assert "train-1" in run("cache", "list").stdout
    entries = json.loads(run("cache", "list", "--json").stdout)["entries"]
    assert [(entry["key"], entry["stage"]) for entry in entries] == [("train-1", "train")]
    size = json.loads(run("cache", "size", "--json").stdout)
    assert (size["bytes"], size["entries"]) == (store.size(), 1)
    assert run("cache", "size", "-q", "--store", str(tmp_path / "other")).stdout == "0\n"
    assert (
        json.loads(run("cache", "prune", "--older-than", "1d", "--json").stdout)["freed_bytes"] == 0
    )
    freed = json.loads(run("cache", "prune", "--all", "--json").stdout)
    assert freed["freed_bytes"] == size["bytes"]
    assert store.entries() == []


@pytest.mark.parametrize("age", ["soon", "5", "-1d", "5y"])
def test_an_age_that_is_none_is_wrong_usage(run, age: str) -> None:
    assert run("cache", "prune", f"--older-than={age}").returncode == 2


def test_a_reader_that_stops_early_is_no_error(entry: Path, environment: dict[str, str]) -> None:
    told = subprocess.run(
        f"{entry} targets list --json | head -c 1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "{", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_result_that_cannot_be_written_is_told(entry: Path, environment: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        told = subprocess.run(
            [str(entry), "targets", "list", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            check=False,
        )
    assert told.returncode == 1
    assert "disk is full" in told.stderr
    assert "Traceback" not in told.stderr
