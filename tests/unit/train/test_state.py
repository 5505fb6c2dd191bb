from __future__ import annotations

import hashlib
import io
import multiprocessing
import pickle
import random
import time
from pathlib import Path

import pytest
import torch

from elastic_export.train.state import load_state, save_state

STATE = {"step": 3, "w": torch.arange(20_000.0), "history": [{"loss": 1.5}], "opt": {0: (1, 2)}}


def same(state: object) -> bool:
    assert isinstance(state, dict)
    return torch.equal(state["w"], STATE["w"]) and {k: v for k, v in state.items() if k != "w"} == {
        k: v for k, v in STATE.items() if k != "w"
    }


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.pt"
    assert load_state(path, "k") == (None, "")
    save_state(path, "k", STATE)
    state, why_not = load_state(path, "k")
    assert why_not == ""
    assert same(state)


def test_another_run_has_no_use_for_it(tmp_path: Path) -> None:
    save_state(tmp_path / "s", "k", STATE)
    state, why_not = load_state(tmp_path / "s", "another")
    assert state is None
    assert "belongs to another" in why_not


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    save_state(path, "k", STATE)
    whole = path.read_bytes()
    for at in range(0, len(whole), len(whole) // 60):
        changed = bytearray(whole)
        changed[at] ^= 0x55
        path.write_bytes(changed)
        state, why_not = load_state(path, "k")
        assert state is None
        assert "damaged" in why_not


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_damaged(tmp_path: Path, share: float) -> None:
    path = tmp_path / "s"
    save_state(path, "k", STATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    state, why_not = load_state(path, "k")
    assert state is None
    assert "damaged" in why_not


def test_a_file_never_runs_code(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"

    class Local:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (trap,)

    stream = io.BytesIO()
    torch.save({"key": "k", "state": Local()}, stream)
    for content in (stream.getvalue(), pickle.dumps(Local(), protocol=2)):
        (tmp_path / "s").write_bytes(hashlib.sha256(content).digest() + content)
        state, why_not = load_state(tmp_path / "s", "k")
        assert state is None
        assert "damaged" in why_not
    assert not trap.exists()


def _write_forever(path: Path) -> None:
    number = 0
    while True:
        number += 1
        save_state(path, "k", {"number": number, "w": torch.full((300_000,), float(number))})


def test_a_killed_writer_leaves_a_whole_state(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    chance = random.Random(0)
    numbers = []
    for _ in range(12):
        writer = multiprocessing.get_context("fork").Process(target=_write_forever, args=(path,))
        writer.start()
        time.sleep(0.02 + 0.1 * chance.random())
        writer.kill()
        writer.join()
        state, why_not = load_state(path, "k")
        assert why_not == ""
        if state is not None:
            assert (state["w"] == float(state["number"])).all()
            numbers.append(state["number"])
    assert numbers, "no writer got so far as to write once"
