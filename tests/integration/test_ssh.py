"""Boards over a real sshd on loopback; the far side really measures with ONNX Runtime."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from elastic_export.engine.bundle import load_bundle
from elastic_export.errors import UserError
from elastic_export.measure.remote import Parcel, VisitOptions, probe, visit
from elastic_export.measure.ssh import Board
from tests.board.bundles import make_bundle
from tests.board.sshd import Server

QUICK = VisitOptions(
    seconds=0.2,
    python=sys.executable,
    arguments=("--warmup-ms=10", "--no-clocks", "--no-power"),
    poll_seconds=0.1,
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "server")
    yield running
    running.stop()


@pytest.fixture
def parcels(tmp_path: Path) -> list[Parcel]:
    made = [make_bundle(tmp_path / name, name=name) for name in ("first", "second")]
    return [Parcel(p.name, p, load_bundle(p).manifest.digest) for p in made]


def connect(server: Server, **more: Any) -> Board:
    return Board(server.name, config=server.client, **more)


def test_a_board_tells_what_it_is(server: Server) -> None:
    with connect(server) as board:
        found = probe(board, python=sys.executable)
        assert found["python"] == ".".join(map(str, sys.version_info[:3]))
        assert found["trtexec"] is None
        with pytest.raises(UserError, match="could not tell what it is"):
            probe(board, python="/nowhere/python3")


def test_several_bundles_in_one_visit(server: Server, parcels: list[Parcel]) -> None:
    events: list[dict[str, Any]] = []
    with connect(server) as board:
        result = visit(board, parcels, QUICK, events.append)
        assert set(result["models"]) == {
            f"{name}/{precision}" for name in ("first", "second") for precision in ("fp32", "int8")
        }
        assert result["complete"]
        for model in result["models"].values():
            assert model["accuracy"]["ok"]
            assert len(model["samples_ms"]) == 10
        steps = [e["text"] for e in events if e["event"] == "progress" and e["total"] == 40]
        assert len(steps) in (40, 80)  # all are taken once more where one does not settle
        assert set(steps[:4]) == set(result["models"])
        sent = [e["text"] for e in events if e["text"].startswith("Sending")]
        assert sent == ["Sending first", "Sending second"]
        events.clear()
        again = visit(board, parcels, QUICK, events.append)
        assert again["models"] == result["models"]
        assert not any(e["text"].startswith("Sending") for e in events)


def test_a_lost_connection_loses_nothing(server: Server, parcels: list[Parcel]) -> None:
    """Cut twice in the middle; the same run goes on and is followed to its end."""
    steps: list[str] = []
    notes: list[str] = []
    outage = threading.Event()

    def told(event: dict[str, Any]) -> None:
        if event["event"] != "progress":
            return
        steps.append(event["text"])
        if len(steps) in (10, 20):
            server.cut()
            outage.set()
            threading.Timer(1.5, server.start).start()

    options = VisitOptions(
        seconds=4,
        python=QUICK.python,
        arguments=QUICK.arguments,
        poll_seconds=0.1,
    )
    with connect(server, patience=30, told=notes.append) as board:
        result = visit(board, parcels, options, told)
    assert outage.is_set()
    assert any("lost" in note for note in notes)
    assert any("back" in note for note in notes)
    assert result["complete"]
    assert all(len(model["samples_ms"]) == 10 for model in result["models"].values())
    assert len(list(server.home.glob(".elastic-export/runs/*"))) == 1


def test_a_board_that_stays_away(server: Server, parcels: list[Parcel]) -> None:
    server.cut()
    with (
        connect(server) as board,  # with five minutes of patience, for lost connections alone
        pytest.raises(UserError, match="cannot be reached"),
    ):
        visit(board, parcels, QUICK, lambda event: None)


def test_a_second_visit_follows_a_run_that_goes_on(server: Server, parcels: list[Parcel]) -> None:
    options = VisitOptions(
        seconds=3, python=QUICK.python, arguments=QUICK.arguments, poll_seconds=0.1
    )

    class EnoughError(Exception):
        pass

    def leave(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            raise EnoughError

    with connect(server) as board, pytest.raises(EnoughError):
        visit(board, parcels[:1], options, leave)
    pid = next(server.home.glob(".elastic-export/runs/*/pid")).read_text()
    with connect(server) as board:
        result = visit(board, parcels[:1], options, lambda event: None)
    assert result["complete"]
    assert next(server.home.glob(".elastic-export/runs/*/pid")).read_text() == pid


def test_an_interrupt_here_ends_the_run_there(server: Server, parcels: list[Parcel]) -> None:
    options = VisitOptions(
        seconds=60, python=QUICK.python, arguments=QUICK.arguments, poll_seconds=0.1
    )

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["total"] == 20:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with connect(server) as board, pytest.raises(KeyboardInterrupt):
            visit(board, parcels[:1], options, stop)
    finally:
        signal.signal(signal.SIGINT, before)
    pid = int(next(server.home.glob(".elastic-export/runs/*/pid")).read_text())
    deadline = time.time() + 10
    while Path(f"/proc/{pid}").exists() and time.time() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


def test_what_is_wrong_there_is_told(server: Server, parcels: list[Parcel]) -> None:
    bad = VisitOptions(python=QUICK.python, arguments=("--precision=fp8",), poll_seconds=0.1)
    with connect(server) as board:
        with pytest.raises(UserError, match="No bundle has a model of the precision"):
            visit(board, parcels[:1], bad, lambda event: None)
        broken = VisitOptions(python="/nowhere/python3", poll_seconds=0.1)
        with pytest.raises(UserError, match="ended before it was done"):
            visit(board, parcels[:1], broken, lambda event: None)


def test_a_bundle_damaged_there_is_sent_again(server: Server, parcels: list[Parcel]) -> None:
    with connect(server) as board:
        visit(board, parcels[:1], QUICK, lambda event: None)
        (model,) = server.home.glob(".elastic-export/bundles/*/model.int8.onnx")
        model.write_bytes(b"damaged")
        with pytest.raises(UserError, match=r"was changed.* sends it again"):
            visit(board, parcels[:1], QUICK, lambda event: None)
        assert visit(board, parcels[:1], QUICK, lambda event: None)["complete"]


def test_a_wrong_destination_is_refused() -> None:
    for text in ("", "-oProxyCommand=true", "user@host extra"):
        with pytest.raises(UserError, match="not a machine"):
            Board(text)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return command("bench", *arguments)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("elastic-export")
    return subprocess.run(
        [str(program), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_the_command_measures_on_two_boards_at_once(
    tmp_path: Path, server: Server, parcels: list[Parcel]
) -> None:
    other = Server(tmp_path / "other", name="other")
    config = tmp_path / "both"
    config.write_text(f"Include {server.client}\nInclude {other.client}\n")
    try:
        done = bench(
            *(str(parcel.folder) for parcel in parcels),
            *("--on", "board", "--on", "other", "--on", "absent"),
            *("--ssh-config", str(config), "--python", sys.executable),
            *("--seconds", "0.2", "--patience", "1", "--no-clocks", "--json"),
        )
    finally:
        other.stop()
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["failed"] == ["absent"]
    assert "cannot be reached" in found["boards"]["absent"]["error"]["what"]
    for name in ("board", "other"):
        part = found["boards"][name]
        assert len(part["result"]["models"]) == 4
        assert set(part["chosen"]) == {"first", "second"}


def test_the_command_prints_a_table(server: Server, parcels: list[Parcel]) -> None:
    done = bench(
        str(parcels[0].folder),
        *("--on", "board", "--ssh-config", str(server.client), "--python", sys.executable),
        *("--seconds", "0.2", "--no-clocks", "--precision", "fp32"),
    )
    assert done.returncode == 0, done.stderr
    assert "first/fp32" in done.stdout
    assert "agree" in done.stdout
    assert "first/int8" not in done.stdout
    assert "Measuring, 10 rounds" in done.stderr


def test_probe_names_the_target_or_proposes_a_profile(tmp_path: Path, server: Server) -> None:
    shared = ("--ssh-config", str(server.client), "--python", sys.executable)
    done = command("targets", "probe", "board", *shared, "--json", "--save", str(tmp_path / "own"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["board"]["l4t"] is None
    assert found["identity"] is None
    assert "software" in (tmp_path / "own").read_text()
    away = command("targets", "probe", "nobody@127.0.0.1", "--ssh-config", str(server.client))
    assert away.returncode == 1
    assert "cannot be reached" in away.stderr


def test_bundles_of_one_name_are_refused(parcels: list[Parcel]) -> None:
    done = bench(str(parcels[0].folder), str(parcels[0].folder), "--on", "nobody")
    assert done.returncode == 1
    assert 'the name "first"' in done.stderr
