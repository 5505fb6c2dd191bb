"""How the script on the board runs long commands: no deadlock, nothing left behind."""

from __future__ import annotations

import _thread
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from elastic_export.measure.board.shell import FileLock, Teller, follow


def _alive(path: Path) -> bool:
    """Whether the process whose number a file holds still runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{path.read_text().strip()}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def _gone(path: Path) -> bool:
    deadline = time.monotonic() + 5
    while _alive(path) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not _alive(path)


def test_lines_come_while_it_runs() -> None:
    told: list[tuple[str, float]] = []
    code = (
        "import sys, time\nprint('a\\nb'); sys.stdout.flush(); time.sleep(0.5); print('c', end='')"
    )
    done = follow([sys.executable, "-c", code], 30, lambda line, when: told.append((line, when)))
    ended = time.monotonic()
    assert done.ok
    assert done.out == "a\nb\nc"
    assert [line for line, _ in told] == ["a", "b"]
    assert all(ended - when > 0.45 for _, when in told)


def test_a_full_pipe_is_no_deadlock() -> None:
    code = (
        "import sys\nfor i in range(40000): print('x' * 99, file=(sys.stdout, sys.stderr)[i % 2])"
    )
    done = follow([sys.executable, "-c", code], 60)
    assert done.ok
    assert len(done.out) == 4_000_000


@pytest.mark.parametrize("log", [False, True])
def test_the_end_of_its_time_ends_its_children(tmp_path: Path, log: bool) -> None:
    child = tmp_path / "child"
    script = f'sleep 60 & echo $! > "{child}"; echo begun; wait'
    begin = time.monotonic()
    path = str(tmp_path / "log") if log else None
    done = follow(["sh", "-c", script], 0.5, log=path)
    assert time.monotonic() - begin < 10
    assert done.code is None
    assert "no end after 0.5 s" in done.err
    assert (tmp_path / "log").read_text() == "begun\n" if log else done.out == "begun\n"
    assert _gone(child)


def test_an_interrupt_ends_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"
    script = f'sleep 60 & echo $! > "{child}"; wait'

    def interrupt() -> None:
        while not child.exists() or not child.read_text().strip():
            time.sleep(0.02)
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        follow(["sh", "-c", script], 60)
    assert _gone(child)


def test_a_child_that_keeps_the_output_open_is_not_waited_for() -> None:
    begin = time.monotonic()
    assert follow(["sh", "-c", "sleep 20 & echo done"], 60).out == "done\n"
    assert time.monotonic() - begin < 10


def test_what_cannot_be_started(tmp_path: Path) -> None:
    done = follow([str(tmp_path / "nothing")], 5)
    assert done.code is None
    assert "No such file" in done.err
    assert "No such file" in follow(["true"], 5, log=str(tmp_path / "no" / "log")).err


def test_a_lock_that_cannot_be_made_stops_nobody(tmp_path: Path) -> None:
    with FileLock(str(tmp_path / "nowhere" / "lock"), Teller(), "waiting"):
        pass
    with FileLock(str(tmp_path / "lock"), Teller(), "waiting"):
        assert os.path.exists(tmp_path / "lock")
