"""Bundles on boards over ssh: several in one visit, several boards at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from elastic_export.engine.bundle import Bundle, load_bundle
from elastic_export.errors import ElasticExportError, UserError
from elastic_export.measure.board_match import Wanted, mismatches
from elastic_export.measure.compare import choose
from elastic_export.measure.protocol import Timing
from elastic_export.measure.remote import Parcel, VisitOptions, probe, visit
from elastic_export.measure.ssh import Board
from elastic_export.pipeline.estimating import learn_from
from elastic_export.progress import Progress, no_progress

__all__ = ["bench_on", "probe_board"]

_NEVER_CHOSEN = {"wrong_logits", "other_runtime"}
"""Marks of a figure that says nothing for deployment."""


def probe_board(
    destination: str, *, ssh_config: Path | None = None, python: str = "python3"
) -> dict[str, Any]:
    """Ask a board what it is (see ``measure.remote.probe``)."""
    with Board(destination, config=ssh_config, patience=0) as board:
        return probe(board, python=python)


def bench_on(
    folders: Sequence[Path],
    destinations: Sequence[str],
    options: VisitOptions,
    *,
    ssh_config: Path | None = None,
    patience: float = 300.0,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Measure bundles on boards; on each, all models take turns in one run.

    What was measured of a target also fits its later estimates (``estimating.learn_from``).

    Args:
        folders: Bundles; their names must differ.
        destinations: What ``ssh`` takes; each board works by itself, at the same time.
        options: How to measure.
        ssh_config: Another configuration than ``~/.ssh/config``.
        patience: Seconds to keep trying after a lost connection.
        progress: Told of every step of every board.

    Returns:
        ``boards``: destination to ``result`` (the script's document), ``chosen`` (bundle to the
        precision to deploy there, and why) and ``notes``, or to ``error``. ``failed`` lists the
        boards that have no result.

    Raises:
        UserError: A folder is no bundle, two have one name, or a destination is given twice.
        CheckFailed: A file of a bundle was changed.
    """
    bundles = [load_bundle(folder) for folder in folders]
    _all_different([bundle.manifest.name for bundle in bundles], "bundles", "name")
    _all_different(list(destinations), "boards", "destination")
    parcels = [Parcel(b.manifest.name, b.folder.resolve(), b.manifest.digest) for b in bundles]
    told = _Told(progress, len(destinations))
    boards = [
        Board(name, config=ssh_config, patience=patience, told=told.noter(name))
        for name in destinations
    ]

    stop = threading.Event()

    def one(board: Board) -> dict[str, Any]:
        with board:
            try:
                listener = told.listener(board.destination)
                result = visit(board, parcels, options, listener, stop)
            except ElasticExportError as error:
                return {"error": {"what": error.what, "fix": error.fix}}
        notes = [*told.notes[board.destination], *_mismatches(bundles, result["board"])]
        return {
            "result": result,
            "chosen": _choices(result, [parcel.name for parcel in parcels]),
            "notes": notes,
        }

    try:
        if len(boards) == 1:
            found = {boards[0].destination: one(boards[0])}
        else:
            with ThreadPoolExecutor(len(boards)) as pool:
                try:
                    found = dict(zip(destinations, pool.map(one, boards), strict=True))
                except BaseException:
                    stop.set()  # the other boards end their runs, and the pool waits for that
                    raise
    finally:
        told.close()
    for part in found.values():
        if "result" in part:
            part["notes"] += learn_from(part["result"], bundles)
    failed = [name for name, part in found.items() if "error" in part]
    return {"boards": found, "failed": failed}


def _all_different(names: list[str], things: str, what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f'Two {things} have the {what} "{twice[0]}", so their figures could not be told apart.',
            "Give each once, or measure them one after the other.",
        )


def _choices(result: dict[str, Any], names: list[str]) -> dict[str, dict[str, str]]:
    """Choose a precision for each bundle by what was measured there."""
    found = {}
    for name in names:
        timings = {
            key.rpartition("/")[2]: _timing(model)
            for key, model in result["models"].items()
            if key.rpartition("/")[0] == name
            and model.get("samples_ms")
            and not _NEVER_CHOSEN & set(model["flags"])
        }
        baseline = next((p for p in ("fp16", "fp32") if p in timings), None)
        # INT8 competes with FP16, which a GPU runs at no cost in accuracy.
        if baseline is not None and len({len(t.sample_ms) for t in timings.values()}) == 1:
            chosen, why = choose(timings, baseline=baseline)
            found[name] = {"precision": chosen, "why": why}
    return found


def _timing(model: dict[str, Any]) -> Timing:
    figures = model["latency_ms"]
    return Timing(
        median_ms=figures["median"],
        p90_ms=figures["p90"],
        p99_ms=figures["p99"],
        cov=figures["cov"],
        samples=len(model["samples_ms"]),
        runs=figures["n"],
        settled=model["settled"],
        sample_ms=tuple(model["samples_ms"]),
        unsettled_because=model["why"],
    )


def _mismatches(bundles: Sequence[Bundle], board: dict[str, Any]) -> list[str]:
    """Say where a board is not the target a bundle was made for."""
    notes = []
    for bundle in bundles:
        manifest = bundle.manifest
        wanted = Wanted.of_identity(
            manifest.target, manifest.runtime.name, manifest.runtime.version
        )
        notes += [
            f"The bundle is for {manifest.target}, and the board has {other}."
            for other in mismatches(board, wanted)
        ]
    return list(dict.fromkeys(notes))


class _Told:
    """Events of several boards on one progress; safe to call from their threads."""

    def __init__(self, progress: Progress, boards: int) -> None:
        self.notes: dict[str, list[str]] = {}
        self._progress = progress
        self._many = boards > 1
        self._open = False
        self._lock = threading.Lock()
        if self._many:
            progress.start(f"Measuring on {boards} boards", 0)
            self._open = True

    def noter(self, name: str) -> Any:
        """Return what keeps a board's notes."""
        self.notes[name] = []

        def note(text: str) -> None:
            with self._lock:
                self.notes[name].append(text)
                # A line of its own: whoever waits should see it, in a log as well.
                self._progress.start(text, 0)
                self._progress.finish()

        return note

    def listener(self, name: str) -> Any:
        """Return what takes a board's events."""

        def listen(event: dict[str, Any]) -> None:
            kind, text = event.get("event"), str(event.get("text", ""))
            with self._lock:
                if kind == "note":
                    self.notes[name].append(text)
                elif kind == "phase" and not self._many:
                    self._finish()
                    self._progress.start(text, int(event.get("total") or 0))
                    self._open = True
                elif self._open:
                    self._progress.advance(
                        1 if kind == "progress" else 0,
                        note=f"{name}: {text}" if self._many else text,
                    )

        return listen

    def close(self) -> None:
        """End what is open."""
        with self._lock:
            self._finish()

    def _finish(self) -> None:
        if self._open:
            self._progress.finish()
        self._open = False
