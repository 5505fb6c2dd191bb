"""What a single process may expect of the store."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elastic_export.artifacts.store import Store, StoreWarning, default_root

KEY = Store.key("train", 1, {"steps": 3}, {"data": "00"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _fill(folder: Path) -> dict[str, object]:
    (folder / "sub").mkdir()
    (folder / "weights.bin").write_bytes(bytes(range(100)))
    (folder / "sub" / "note.txt").write_text("hello")
    return {"steps": 3}


def test_what_is_created_is_found_again(store: Store) -> None:
    assert store.get(KEY) is None
    made = store.build(KEY, "train", _fill)
    found = Store(store.root).get(KEY)
    assert found == made
    assert found is not None
    assert (found.path / "sub" / "note.txt").read_text() == "hello"
    assert (found.stage, found.summary) == ("train", {"steps": 3})


def test_a_second_build_does_nothing_and_a_fresh_one_replaces(store: Store) -> None:
    store.build(KEY, "train", _fill)

    def other(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(b"new")

    assert store.build(KEY, "train", other).summary == {"steps": 3}
    replaced = store.build(KEY, "train", other, fresh=True)
    assert [path.name for path in replaced.path.iterdir() if path.name != "manifest.json"] == [
        "weights.bin"
    ]
    assert store.get(KEY) == replaced


def test_the_key_depends_on_everything_that_leads_to_the_artifact() -> None:
    asked = ("train", 1, {"steps": 3}, {"data": "00"})
    others = [
        ("tune", 1, {"steps": 3}, {"data": "00"}),
        ("train", 2, {"steps": 3}, {"data": "00"}),
        ("train", 1, {"steps": 4}, {"data": "00"}),
        ("train", 1, {"steps": 3}, {"data": "01"}),
    ]
    assert Store.key(*asked) == KEY
    assert len({KEY, *(Store.key(*other) for other in others)}) == 5
    assert Store.key(*asked, tools=["numpy"]) != KEY


def test_the_summary_does_not_change_the_digest(store: Store) -> None:
    def quick(folder: Path) -> dict[str, object]:
        (folder / "a").write_text("same")
        return {"seconds": 1}

    def slow(folder: Path) -> dict[str, object]:
        (folder / "a").write_text("same")
        return {"seconds": 9}

    assert store.build("a-1", "a", quick).digest == store.build("a-2", "a", slow).digest


def test_an_error_leaves_nothing_behind(store: Store) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.build(KEY, "train", fails)
    assert store.get(KEY) is None
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_a_failed_replacement_keeps_the_old_artifact(store: Store) -> None:
    made = store.build(KEY, "train", _fill)

    def fails(folder: Path) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        store.build(KEY, "train", fails, fresh=True)
    assert store.get(KEY) == made


def test_unfinished_work_is_kept_until_the_artifact_exists(store: Store) -> None:
    work = store.work(KEY)
    (work / "state.pt").write_bytes(b"step 40")
    assert (Store(store.root).work(KEY) / "state.pt").read_bytes() == b"step 40"
    store.build(KEY, "train", _fill)
    assert not work.exists()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_changed_byte_is_noticed(store: Store, data: st.DataObject) -> None:
    folder = store.build(KEY, "train", _fill, fresh=True).path
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files), "file")
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1), "place")
    content[place] ^= data.draw(st.integers(1, 255), "flip")
    path.write_bytes(bytes(content))
    with pytest.warns(StoreWarning, match="damaged"):
        assert store.get(KEY) is None
    assert not folder.exists()


@pytest.mark.parametrize("name", ["manifest.json", "weights.bin", "sub/note.txt"])
@pytest.mark.parametrize("harm", ["missing", "shorter"])
def test_a_damaged_artifact_is_set_aside_and_made_again(store: Store, name: str, harm: str) -> None:
    made = store.build(KEY, "train", _fill)
    victim = made.path / name
    if harm == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.warns(StoreWarning, match="made again"):
        again = store.build(KEY, "train", _fill)
    assert again == made
    assert len(list((store.root / "damaged").iterdir())) == 1


def test_an_artifact_under_another_name_is_not_believed(store: Store) -> None:
    made = store.build(KEY, "train", _fill)
    made.path.rename(made.path.parent / "train-0000")
    with pytest.warns(StoreWarning, match="manifest was changed"):
        assert store.get("train-0000") is None


def test_a_link_is_not_stored(store: Store) -> None:
    def links(folder: Path) -> None:
        (folder / "weights").symlink_to("/etc/hostname")

    with pytest.raises(ValueError, match="link"):
        store.build(KEY, "train", links)


@pytest.mark.parametrize("key", ["../outside", "a/b", "", ".hidden"])
def test_a_key_cannot_leave_the_store(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        store.work(key)


def test_entries_size_and_remove(store: Store) -> None:
    assert (store.entries(), store.size()) == ([], 0)
    store.build("a-1", "a", _fill)
    store.build("b-1", "b", _fill)
    os.utime(store.root / "artifacts" / "b-1", (5, 5))
    entries = store.entries()
    assert [(entry.key, entry.stage) for entry in entries] == [("a-1", "a"), ("b-1", "b")]
    assert store.size() == sum(entry.bytes for entry in entries)
    assert store.remove("a-1")
    assert not store.remove("a-1")
    assert [entry.key for entry in store.entries()] == ["b-1"]


def test_reading_an_absent_store_does_not_make_it(store: Store) -> None:
    store.entries()
    store.size()
    store.get(KEY)
    store.prune()
    assert not store.root.exists()


def test_prune_takes_the_old_and_leaves_the_used(store: Store) -> None:
    for key in ("old-1", "new-1", "kept-1"):
        store.build(key, "a", _fill)
    os.utime(store.root / "artifacts" / "old-1", (5, 5))
    os.utime(store.root / "artifacts" / "kept-1", (5, 5))
    store.get("kept-1")
    work = store.work("lost-1")
    (work / "state").write_text("x")
    for path in (work / "state", work):
        os.utime(path, (5, 5))
    freed = store.prune(timedelta(days=1))
    assert freed > 100
    assert {entry.key for entry in store.entries()} == {"new-1", "kept-1"}
    assert not work.exists()
    store.prune()
    assert store.size() == 0


def test_the_default_root_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ELASTIC_EXPORT_HOME", str(tmp_path / "own"))
    assert default_root() == tmp_path / "own"
    monkeypatch.delenv("ELASTIC_EXPORT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert Store().root == tmp_path / "cache" / "elastic-export"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store().root == tmp_path / ".cache" / "elastic-export"


def test_an_intact_store_is_silent(store: Store) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.build(KEY, "train", _fill)
        store.get(KEY)
