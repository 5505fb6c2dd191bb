"""The store and the world: killed processes, rivals, full disks, closed folders."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from elastic_export.artifacts.disk import explain
from elastic_export.artifacts.store import Store
from elastic_export.errors import UserError

PRELUDE = """
import os, sys, time
from pathlib import Path
from elastic_export.artifacts.store import Store
store = Store(sys.argv[1])
"""


def _start(code: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for(line: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == line


def test_a_process_killed_in_the_middle_of_a_write_leaves_nothing_to_read(tmp_path: Path) -> None:
    child = _start(
        """
with store.create("train-1", "train") as folder:
    (folder / "weights.bin").write_bytes(b"x" * 1000)
    with (folder / "more.bin").open("wb") as stream:
        stream.write(b"half of it")
        stream.flush()
        print("writing", flush=True)
        time.sleep(60)
""",
        tmp_path,
    )
    _wait_for("writing", child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    store = Store(tmp_path)
    assert (tmp_path / "drafts" / "train-1").is_dir()
    assert store.get("train-1") is None
    assert store.entries() == []

    def make(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        (folder / "weights.bin").write_bytes(b"whole")

    # The dead process holds no lock, and its draft is gone.
    assert (store.build("train-1", "train", make).path / "weights.bin").read_bytes() == b"whole"
    assert list((tmp_path / "drafts").iterdir()) == []


def test_whatever_the_moment_of_the_kill_only_whole_artifacts_are_seen(tmp_path: Path) -> None:
    code = """
for number in range(100000):
    key = f"a-{number % 7}"
    def make(folder):
        for name in "xyz":
            (folder / name).write_bytes(name.encode() * 20000)
    store.build(key, "a", make, fresh=True)
    if number == 0:
        print("going", flush=True)
"""
    seen = 0
    rng = random.Random(0)
    for _ in range(5):
        child = _start(code, tmp_path)
        _wait_for("going", child)
        time.sleep(rng.uniform(0.0, 0.12))
        child.kill()
        child.wait()
        store = Store(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a damaged artifact would warn
            for number in range(7):
                artifact = store.get(f"a-{number}")
                if artifact is not None:
                    seen += 1
                    content = {p.name: p.read_bytes() for p in artifact.path.glob("[xyz]")}
                    assert content == {name: name.encode() * 20000 for name in "xyz"}
    assert seen > 0


def test_two_processes_make_an_artifact_once(tmp_path: Path) -> None:
    code = """
def make(folder):
    with open(Path(sys.argv[1]).parent / "log", "a") as log:
        log.write("made\\n")
    print("making", flush=True)
    time.sleep(1.0)
    (folder / "by").write_text(str(os.getpid()))
artifact = store.build("a-1", "a", make)
print((artifact.path / "by").read_text(), flush=True)
"""
    root = tmp_path / "store"
    first = _start(code, root)
    _wait_for("making", first)
    second = _start(code, root)
    told, complaint = second.communicate(timeout=30)
    assert told.strip() == str(first.pid)
    assert "waiting for it" in complaint
    assert first.communicate(timeout=30)[0].strip() == str(first.pid)
    assert (tmp_path / "log").read_text() == "made\n"


@pytest.mark.timeout(30)
def test_a_killed_rival_gives_its_lock_back(tmp_path: Path) -> None:
    code = "with store.lock('a-1'):\n    print('held', flush=True)\n    time.sleep(600)"
    rival = _start(code, tmp_path)
    _wait_for("held", rival)
    rival.kill()
    rival.wait()
    made = Store(tmp_path).build("a-1", "a", lambda folder: {"by": "me"})
    assert made.summary == {"by": "me"}


def test_prune_leaves_what_another_process_works_on(tmp_path: Path) -> None:
    rival = _start(
        """
with store.lock("a-1"):
    (store.work("a-1") / "state").write_text("x")
    print("held", flush=True)
    time.sleep(60)
""",
        tmp_path,
    )
    _wait_for("held", rival)
    store = Store(tmp_path)
    store.prune()
    assert (tmp_path / "work" / "a-1" / "state").is_file()
    rival.kill()
    rival.wait()
    store.prune()
    assert not (tmp_path / "work" / "a-1").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_user_error_and_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.build("a-1", "a", lambda folder: {"ok": True})

    def fills(folder: Path) -> None:
        (folder / "begun").write_text("x")
        with open("/dev/full", "w") as stream:
            stream.write("x")

    with pytest.raises(UserError, match="is full") as caught:
        store.build("b-1", "b", fills)
    assert "cache prune" in caught.value.fix
    assert [entry.key for entry in store.entries()] == ["a-1"]
    assert list((tmp_path / "drafts").iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["space", "quota", "rust"],
)
def test_every_way_a_library_reports_a_full_disk_is_understood(
    tmp_path: Path, error: Exception
) -> None:
    store = Store(tmp_path)

    def fails(folder: Path) -> None:
        raise error

    with pytest.raises(UserError, match="is full"):
        store.build("a-1", "a", fails)


def test_a_wrapped_full_disk_is_understood_and_a_bug_stays_a_bug(tmp_path: Path) -> None:
    full = ValueError("writer failed")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert explain(full, tmp_path) is not None
    assert explain(ValueError("a bug"), tmp_path) is None
    lost = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "a" / "b"))
    assert explain(lost, tmp_path) is None


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_store_where_no_folder_can_be_made_is_a_user_error() -> None:
    with pytest.raises(UserError, match="cannot be written"):
        Store("/proc/nothing/store").work("a-1")


def test_a_store_below_a_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = Store(tmp_path / "file" / "store")
    with pytest.raises(UserError, match="cannot be written") as caught:
        store.work("a-1")
    assert "--store" in caught.value.fix
    with pytest.raises(UserError, match="cannot be written"):
        store.build("a-1", "a", lambda folder: None)


def _use_as_a_stranger(root: Path, answers: Connection) -> None:
    if os.geteuid() == 0:
        os.setgid(65534)  # root may write everywhere, so the check runs without its rights
        os.setuid(65534)
    store = Store(root)
    found = store.get("a-1")
    answers.send(found and found.summary)
    try:
        store.build("b-1", "b", lambda folder: None)
    except UserError as error:
        answers.send(str(error))
    answers.send("")


def test_a_read_only_store_can_be_read_and_says_so_when_written() -> None:
    with tempfile.TemporaryDirectory() as base:
        root = Path(base) / "store"
        Store(root).build("a-1", "a", lambda folder: {"ok": True})
        os.chmod(base, 0o755)
        for path in [*root.rglob("*"), root]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        mine, its = multiprocessing.Pipe()
        # Forked, so that the stranger needs no right to read the interpreter's own folders.
        child = multiprocessing.get_context("fork").Process(
            target=_use_as_a_stranger, args=(root, its)
        )
        child.start()
        assert mine.poll(30)
        assert mine.recv() == {"ok": True}
        assert mine.poll(30)
        assert "cannot be written" in mine.recv()
        child.join()
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755)
