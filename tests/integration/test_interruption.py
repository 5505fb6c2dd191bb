"""A killed run goes on where it was and ends with the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from conftest import COMMAND, call

from elastic_export.artifacts.store import Store

pytestmark = pytest.mark.slow


def _supernet(store: Path) -> bytes:
    found = list(store.glob("artifacts/train-*/supernet.safetensors"))
    assert len(found) == 1
    return found[0].read_bytes()


def test_training_resumes_to_the_same_bits(tmp_path: Path, recipe: Callable[..., Path]) -> None:
    path = recipe(train={"steps": 80, "checkpoint_every": 5})
    options = ["build", path, "--only", "train", "--json"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert call(*options, home=whole).code == 0

    child = subprocess.Popen(
        [COMMAND, *map(str, options)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "ELASTIC_EXPORT_HOME": str(cut / "store")},
    )
    deadline = time.monotonic() + 200
    while not list((cut / "store").glob("work/*/state.pt")):
        assert child.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no state was saved"
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not list((cut / "store").glob("artifacts/train-*"))

    answer = call(*options, home=cut)
    assert answer.code == 0, answer.err
    (key,) = [e.key for e in Store(cut / "store").entries() if e.stage == "train"]
    artifact = Store(cut / "store").get(key)
    assert artifact is not None
    assert artifact.summary["resumed_from"] >= 5
    assert _supernet(cut / "store") == _supernet(whole / "store")
