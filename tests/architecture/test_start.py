"""``elastic-export --help`` answers at once and loads nothing heavy."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ENTRY = Path(sys.executable).with_name("elastic-export")
HEAVY = {"torch", "timm", "onnx", "onnxruntime", "modelopt", "sklearn", "matplotlib", "PIL"}


def _run(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ENTRY), *args],
        capture_output=True,
        text=True,
        env={**os.environ, **more},
        check=True,
    )


@pytest.mark.parametrize("args", [("--help",), ("build", "--help"), ("targets", "list")])
def test_nothing_heavy_is_loaded(args: tuple[str, ...]) -> None:
    told = _run(*args, PYTHONPROFILEIMPORTTIME="1").stderr
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in told.splitlines()}
    assert "typer" in loaded
    assert loaded & HEAVY == set()


def test_help_takes_less_than_half_a_second() -> None:
    _run("--help")  # bytecode and file cache
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _run("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time, not the clock: other work on the machine must not fail the test.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(seconds) < 0.5
