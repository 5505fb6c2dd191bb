"""A visit to a board: send the script and the bundles, start it there, follow it, fetch the result.

The script runs detached on the board, so that a lost connection costs nothing: this side looks at
its log again when it is back. A second visit finds a run that still goes on and follows it, and
finished results are not measured again.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from elastic_export.errors import UserError
from elastic_export.measure.board.compose import SCRIPT, compose
from elastic_export.measure.ssh import Answer, Board, ConnectionLost

__all__ = ["Parcel", "VisitOptions", "probe", "visit"]

HOME = ".elastic-export"
POLL_SECONDS = 1.0

# The number alone may be another process's after a restart of the board.
_ALIVE = "pid=$(cat {run}/pid 2>/dev/null) && grep -aqs {run} /proc/$pid/cmdline"

Told = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Parcel:
    """A bundle to send: its name, its folder here, and the digest of its manifest."""

    name: str
    folder: Path
    digest: str


@dataclass(frozen=True)
class VisitOptions:
    """How to measure there; the defaults are the script's.

    Attributes:
        seconds: Measured time of each model.
        rounds: Samples of each model.
        precisions: Only these, all where empty.
        arguments: Further arguments of the script, as they are.
        python: The interpreter there.
        poll_seconds: How often to look.
    """

    seconds: float = 15.0
    rounds: int = 10
    precisions: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    python: str = "python3"
    poll_seconds: float = POLL_SECONDS


def probe(board: Board, *, python: str = "python3") -> dict[str, Any]:
    """Ask a board what it is.

    Returns:
        The document of ``on_device.py probe``: model, JetPack, TensorRT, power mode, and more.

    Raises:
        UserError: The board cannot be reached or has no usable Python.
    """
    script = _send_script(board)
    done = board.run(f"{shlex.quote(python)} {script} probe")
    try:
        return dict(json.loads(done.out))
    except ValueError:
        reason = (done.err.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(
            f"{board.destination} could not tell what it is: {reason}.",
            "It needs Python 3.6 or newer; name another interpreter with --python.",
        ) from None


def visit(
    board: Board,
    parcels: Sequence[Parcel],
    options: VisitOptions,
    told: Told,
    stop: Event | None = None,
) -> dict[str, Any]:
    """Measure bundles on a board, all of them interleaved in one run.

    Args:
        board: Where.
        parcels: What; their names must differ.
        options: How.
        told: Called with each event of the script (``phase``, ``progress``, ``note``).
        stop: Set by another thread to end the run there, as an interrupt does.

    Returns:
        The script's result document.

    Raises:
        UserError: The board cannot be reached, or the script could not do it; what it said.
        KeyboardInterrupt: Passed on after the run there was stopped (its clocks are restored).
    """
    script = _send_script(board)
    places = [_send(board, parcel, told) for parcel in parcels]
    run = f"{HOME}/runs/{_key(parcels, options)}"
    board.run(f"mkdir -p {run}")
    if not _is_running(board, run):
        _start(board, run, script, places, options)
    try:
        _follow(board, run, options.poll_seconds, told, stop or Event())
    except KeyboardInterrupt:
        with suppress(ConnectionLost):
            board.once(f"{_ALIVE.format(run=run)} && kill -TERM $pid; true")
        raise
    try:
        return _result(board, run)
    except UserError as error:
        if "In the bundle" not in error.what:
            raise
        board.run(f"rm -rf {shlex.join(places)}")
        raise UserError(error.what, "The same command sends it again.") from error


def _send_script(board: Board) -> str:
    """Put the script there unless this very version is; returns its path."""
    text = compose().encode()
    path = f"{HOME}/{hashlib.sha256(text).hexdigest()[:16]}.{SCRIPT}"
    here = board.run(f"mkdir -p {HOME}/bundles {HOME}/runs && test -f {path}")
    if here.code != 0:
        draft = f"{path}.part"
        put = f"cat > {draft} && mv {draft} {path}"
        done = board.patiently(lambda: board.once(put, give=text))
        if done.code != 0:
            raise UserError(
                f"Nothing can be written to the home folder of {board.destination}: "
                f"{(done.err.strip().splitlines() or ['no reason given'])[-1]}.",
                "Free some space there, or check its permissions.",
            )
    return path


def _send(board: Board, parcel: Parcel, told: Told) -> str:
    """Put a bundle there unless it is; the script checks every byte of it again."""
    place = f"{HOME}/bundles/{_plain(parcel.name)}-{parcel.digest[:16]}"
    if board.run(f"test -f {place}/manifest.json").code != 0:
        told({"event": "phase", "text": f"Sending {parcel.name}", "total": 0})
        board.push(parcel.folder, place)
    return place


def _start(
    board: Board, run: str, script: str, places: Sequence[str], options: VisitOptions
) -> None:
    """Start the script so that it outlives the connection; its exit code goes into a file."""
    arguments = [
        options.python,
        script,
        "run",
        places[0],
        *(part for place in places[1:] for part in ("--with", place)),
        *(part for one in options.precisions for part in ("--precision", one)),
        f"--seconds={options.seconds:g}",
        f"--rounds={options.rounds}",
        f"--engine-dir={HOME}/engines",
        f"--out={run}/result.json",
        "--progress=json",
        "--detached",
        *options.arguments,
    ]
    # The number of Python itself, so that a signal reaches it and not the shell.
    inner = (
        f"echo $$ > {run}/pid; rm -f {run}/code; "
        f"{shlex.join(arguments)} > {run}/out 2> {run}/log & child=$!; echo $child > {run}/pid; "
        f"wait $child; echo $? > {run}/code"
    )
    command = (
        f"rm -f {run}/pid {run}/code; : > {run}/log; "
        f"nohup sh -c {shlex.quote(inner)} > /dev/null 2>&1 < /dev/null & "
        f"for i in 1 2 3 4 5 6 7 8 9 10; do test -s {run}/pid && exit 0; sleep 0.2; done; exit 1"
    )

    def start() -> Answer:
        # The connection may have been lost after the start: then it runs.
        running = _is_running(board, run)
        return Answer(0, "", "") if running else board.once(command)

    started = board.patiently(start)
    if started.code != 0:
        raise UserError(
            f"The measurement could not be started on {board.destination}: {started.err.strip()}.",
            "Log in there and look at its home folder.",
        )


def _is_running(board: Board, run: str) -> bool:
    return board.run(f"test ! -f {run}/code && {_ALIVE.format(run=run)}").code == 0


def _follow(board: Board, run: str, poll_seconds: float, told: Told, stop: Event) -> None:
    """Pass on what the script says until it ends."""
    seen, ended = 0, False
    while True:
        if stop.is_set():
            raise KeyboardInterrupt
        # The code first: what is in the log after it is all there is. Plain characters only, so
        # that what is counted here is what lies there.
        look = board.run(
            f"cat {run}/code 2>/dev/null; echo; echo ----; "
            f"tail -c +{seen + 1} {run}/log | LC_ALL=C tr -c '\\11\\12\\40-\\176' '?'; "
            f"echo; echo ----; {_ALIVE.format(run=run)} && echo alive; true"
        )
        code, log, alive = [*look.out.split("\n----\n"), "", ""][:3]
        complete = log[: log.rfind("\n") + 1]
        for line in complete.splitlines():
            _tell(line, told)
        seen += len(complete)
        if ended:
            return
        # What was written while this look was under way is read by one more.
        ended = bool(code.strip()) or "alive" not in alive
        if not ended:
            time.sleep(poll_seconds)


def _tell(line: str, told: Told) -> None:
    try:
        event = json.loads(line)
    except ValueError:
        event = {"event": "note", "text": line}
    if isinstance(event, dict) and line.strip():
        told(event)


def _result(board: Board, run: str) -> dict[str, Any]:
    got = board.run(f"cat {run}/result.json")
    code = board.run(f"cat {run}/code 2>/dev/null; true").out.strip()
    said = board.run(f"cat {run}/out; tail -n 3 {run}/log")
    try:
        error = json.loads(said.out.strip().splitlines()[0])["error"]
    except (ValueError, KeyError, IndexError, TypeError):
        try:
            result = dict(json.loads(got.out))
        except ValueError:
            result = {}
        # 1 says that a model could not be measured, 3 that one gives other logits.
        if result.get("models") and code in ("0", "1", "3"):
            return result
        last = (said.out.strip().splitlines() or ["it said nothing"])[-1]
        error = {
            "what": f"The script ended before it was done (exit code {code or 'none'}): {last}.",
            "remedy": "The same command goes on there; run on_device.py by hand to see more.",
        }
    raise UserError(f"{board.destination}: {error['what']}", error["remedy"])


def _key(parcels: Sequence[Parcel], options: VisitOptions) -> str:
    """Name a run by what it measures and how, so that the same command finds it again."""
    parts = [[parcel.name, parcel.digest] for parcel in parcels]
    how = [options.seconds, options.rounds, options.precisions, options.arguments, options.python]
    return hashlib.sha256(json.dumps([parts, how]).encode()).hexdigest()[:16]


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", name) or "bundle"
