"""Bundles on boards over ssh: several in one visit, several boards at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from elastic_export.engine.bundle import Bundle, load_bundle
from elastic_export.errors import ElasticExportError, UserError
from elastic_export.measure.board_match import Wanted, mismatches
from elastic_export.measure.compare import choose_deployed
from elastic_export.measure.marks import SPOILT
from elastic_export.measure.protocol import Timing
from elastic_export.measure.remote import Parcel, VisitOptions, probe, visit
from elastic_export.measure.ssh import Board
from elastic_export.pipeline.estimating import learn_from
from elastic_export.progress import Lanes, Progress, no_progress

__all__ = ["bench_on", "probe_board", "timing_of", "together"]

T = TypeVar("T")


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
    stop: threading.Event | None = None,
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
        stop: Set by another thread to end the runs, as an interrupt does.

    Returns:
        ``boards``: destination to ``result`` (the script's document), ``chosen`` (bundle to the
        precision to deploy there, and why), ``notes`` and ``learned`` (what changed in later
        estimates), or to ``error``. ``failed`` lists the
        boards that have no result. ``bundles``: name to ``target``, and by precision ``macs`` (of
        one image, as the target computes them) and ``top1``.

    Raises:
        UserError: A folder is no bundle, two have one name, or a destination is given twice.
        CheckFailed: A file of a bundle was changed.
    """
    bundles = [load_bundle(folder) for folder in folders]
    _all_different([bundle.manifest.name for bundle in bundles], "bundles", "name")
    _all_different(list(destinations), "boards", "destination")
    parcels = [Parcel(b.manifest.name, b.folder.resolve(), b.manifest.digest) for b in bundles]
    stop = stop or threading.Event()

    def one(destination: str, shown: Progress) -> dict[str, Any]:
        told = _Told(shown)
        with Board(
            destination, config=ssh_config, patience=patience, told=told.note, stop=stop
        ) as board:
            try:
                result = visit(board, parcels, options, told.listen, stop)
            except ElasticExportError as error:
                return {"error": {"what": error.what, "fix": error.fix}}
            finally:
                told.close()
        return {
            "result": result,
            "chosen": _choices(result, bundles),
            "notes": [*told.notes, *_mismatches(bundles, result["board"])],
        }

    found = together(destinations, one, progress, stop)
    for part in found.values():
        if "result" in part:
            part["learned"] = learn_from(part["result"], bundles)
    failed = [name for name, part in found.items() if "error" in part]
    told = {
        bundle.manifest.name: {
            "target": bundle.manifest.target,
            "macs": {precision: bundle.macs(precision) for precision in bundle.manifest.models},
            "top1": {precision: bundle.top1(precision) for precision in bundle.manifest.models},
        }
        for bundle in bundles
    }
    return {"boards": found, "failed": failed, "bundles": told}


def together(
    destinations: Sequence[str],
    work: Callable[[str, Progress], T],
    progress: Progress,
    stop: threading.Event,
) -> dict[str, T]:
    """Work on several boards at once, each in a thread of its own.

    Args:
        destinations: The boards, all different.
        work: Called with a board and where it tells what it does.
        progress: Told of all of them.
        stop: Set when one raises, so that the others end their runs; that is waited for.

    Returns:
        What ``work`` returned, by board, in their order.
    """
    if len(destinations) == 1:
        return {destinations[0]: work(destinations[0], progress)}
    lanes = Lanes(progress, f"Measuring on {len(destinations)} boards")
    try:
        with ThreadPoolExecutor(len(destinations)) as pool:
            try:
                done = pool.map(lambda name: work(name, lanes.lane(name)), destinations)
                return dict(zip(destinations, done, strict=True))
            except BaseException:
                stop.set()
                raise
    finally:
        lanes.close()


def _all_different(names: list[str], things: str, what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f'Two {things} have the {what} "{twice[0]}", so their figures could not be told apart.',
            "Give each once, or measure them one after the other.",
        )


def _choices(result: dict[str, Any], bundles: Sequence[Bundle]) -> dict[str, dict[str, str]]:
    """Choose a precision for each bundle by what was measured there."""
    found = {}
    for bundle in bundles:
        name, gpu = bundle.manifest.name, bundle.manifest.runtime.name != "onnxruntime"
        timings = {
            key.rpartition("/")[2]: timing_of(model)
            for key, model in result["models"].items()
            if key.rpartition("/")[0] == name
            and model.get("samples_ms")
            and not SPOILT & set(model["flags"])
        }
        chosen, why = choose_deployed(timings, gpu=gpu)
        if chosen is not None:
            found[name] = {"precision": chosen, "why": why}
    return found


def timing_of(model: Mapping[str, Any]) -> Timing:
    """Read what the board's script measured of a model."""
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
    """What a board tells: its notes kept, its phases and steps on a progress."""

    def __init__(self, progress: Progress) -> None:
        self.notes: list[str] = []
        self._progress = progress
        self._open = False

    def note(self, text: str) -> None:
        """Keep what the reader should know, and show it now, as a line of its own."""
        self.notes.append(text)
        self._progress.start(text, 0)
        self._progress.finish()

    def listen(self, event: dict[str, Any]) -> None:
        """Take an event of the board's script."""
        kind, text = event.get("event"), str(event.get("text", ""))
        if kind == "note":
            self.notes.append(text)
        elif kind == "phase":
            self.close()
            self._progress.start(text, int(event.get("total") or 0))
            self._open = True
        elif self._open:
            self._progress.advance(1 if kind == "progress" else 0, note=text)

    def close(self) -> None:
        """End what is open."""
        if self._open:
            self._progress.finish()
        self._open = False
