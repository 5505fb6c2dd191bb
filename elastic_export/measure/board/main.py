"""The command line of the script on the board."""

import hashlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from typing import Any, Dict, List, Optional, Tuple

from elastic_export.measure.board.bundle import BoardBundle, open_bundle
from elastic_export.measure.board.clocks import PinnedClocks
from elastic_export.measure.board.identity import banner_of, describe_board
from elastic_export.measure.board.options import option_parser
from elastic_export.measure.board.ort import OrtBoardRunner
from elastic_export.measure.board.power import PowerMeter
from elastic_export.measure.board.session import (
    Candidate,
    check_accuracy,
    in_words,
    measure_settled,
    prepare,
    report_layers,
)
from elastic_export.measure.board.shell import Cannot, FileLock, Teller, find_program, write_json
from elastic_export.measure.board.tensorrt_build import BUILD, build_with_module
from elastic_export.measure.board.tensorrt_module import MODULE_MISSING, TensorrtModuleRunner
from elastic_export.measure.board.trtexec import TrtexecRunner, release_for
from elastic_export.measure.board.watch import Watch

__all__ = ["main"]

LOCK = "elastic-export.measure.lock"
"""Of the whole machine: a second run's builders and timings would be measured along with these."""
SCHEMA_VERSION = 2
"""1: the energy of trtexec's runs held what came after the inferences; one name for all rails."""
BOARD_SAME = ("model", "power_mode", "tensorrt", "python")
HOW = ("rounds", "seconds", "warmup_ms", "threads", "runtime", "no_clocks", "no_power")
"""Options that decide what a figure means; a result of others is measured again."""


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command line; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == [BUILD]:
        return build_with_module(words[1])
    chosen, unknown = option_parser().parse_known_args(words)
    if unknown:
        chosen.own.error("unknown: " + " ".join(unknown))
    # So that clocks are restored when somebody ends it, the board shuts down, or a terminal closes.
    signal.signal(signal.SIGTERM, _interrupt)
    if not chosen.detached:
        signal.signal(signal.SIGHUP, _interrupt)
    if chosen.command == "probe":
        print(json.dumps(describe_board(), indent=1, sort_keys=True))
        return 0
    teller = Teller(chosen.progress)
    try:
        return _measure(chosen, teller)
    except Cannot as error:
        if teller.form == "json":
            print(json.dumps({"error": error.to_json()}))
        sys.stderr.write("{}\n{}\n".format(error.what, error.remedy))
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; what was finished is in {}.\n".format(chosen.out))
        return 130


def _measure(chosen: Any, teller: Teller) -> int:
    here = os.path.dirname(os.path.abspath(__file__))
    folders = [os.path.abspath(folder) for folder in [chosen.bundle or here, *chosen.also]]
    # A bundle's files stay as they were checked: one more, and it would no longer be whole.
    chosen.out = os.path.abspath(chosen.out or folders[0] + ".result.json")
    _check_out(chosen.out, folders)
    bundles = [open_bundle(folder) for folder in folders]
    board = describe_board()
    if chosen.trtexec:
        board["trtexec"] = chosen.trtexec
        board["tensorrt"] = banner_of(chosen.trtexec) or board["tensorrt"]
    board["tensorrt"] = board["tensorrt"] or _module_version("tensorrt")
    candidates = _candidates(bundles, chosen, board, teller)
    wanted = [one.name for one in candidates]
    how = {key: getattr(chosen, key) for key in HOW}
    kept, method = _finished(chosen.out, board, how)
    old: Dict[str, Any] = {}
    for one in candidates:
        before = kept.get(one.name)
        if before is None:
            continue
        same = all(before[key] == one.found[key] for key in ("sha256", "runtime"))
        profiled = chosen.no_profile or "layers" in before
        if chosen.fresh or not same or not profiled:
            del kept[one.name]
        if same and one.name not in kept:
            old[one.name] = before
    candidates = [one for one in candidates if one.name not in kept]
    for name in wanted:
        if name in kept:
            teller.note("{} was measured before; --fresh measures it again".format(name))
    state: Dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "complete": False,
        "board": board,
        "methodology": dict(method, **dict(how, interleaved=True)),
        "models": dict(kept, **old),
    }
    write_json(chosen.out, state)
    if candidates:
        waiting = "another measurement runs here; this one begins when that has ended"
        with FileLock(os.path.join(tempfile.gettempdir(), LOCK), teller, waiting):
            _measure_all(candidates, chosen, state, teller)
    state["complete"] = all(one.usable for one in candidates)
    write_json(chosen.out, state)
    failed = sum(not one.usable for one in candidates)
    teller.phase("Done{}: {}".format(", {} failed".format(failed) if failed else "", chosen.out))
    if teller.form != "json":
        print("\n".join(in_words(name, state["models"][name]) for name in wanted))
    wrong = any("wrong_logits" in state["models"][name].get("flags", []) for name in wanted)
    return 3 if wrong else 0 if state["complete"] else 1


def _check_out(out: str, folders: List[str]) -> None:
    """Refuse a result file that could not be written, or would spoil a bundle.

    Raises:
        Cannot: its folder is missing or a bundle's, or it is no file.
    """
    folder = os.path.dirname(out)
    if not os.path.isdir(folder):
        raise Cannot(
            "There is no folder {}.".format(folder), "Make it, or name another file with --out."
        )
    if os.path.exists(out) and not os.path.isfile(out):
        raise Cannot("{} is no file.".format(out), "Name a file with --out.")
    for bundle in folders:
        if (folder + os.sep).startswith(bundle + os.sep):
            raise Cannot(
                "{} would lie in the bundle {}, whose files stay as they are.".format(out, bundle),
                "Leave --out away, and it goes beside the bundle; or name another folder.",
            )


def _measure_all(
    candidates: List[Candidate], chosen: Any, state: Dict[str, Any], teller: Teller
) -> None:
    """Prepare, check, time and profile; the result file has what there is after every step.

    What is measured again keeps its old figures there until it has all the new ones.
    """
    power, before = PowerMeter(not chosen.no_power), dict(state["models"])
    idle: Optional[float] = None

    def keep() -> None:
        for one in candidates:
            whole = len(one.samples) >= chosen.rounds
            if whole or not one.usable or one.name not in before:
                state["models"][one.name] = one.result(power, idle)
            if whole:
                # A second attempt has to be whole as well to take its place.
                before[one.name] = state["models"][one.name]
        write_json(chosen.out, state)

    prepare(candidates, teller)
    keep()
    if not before and not any(one.usable for one in candidates):
        first = candidates[0].found["error"]
        raise Cannot(first["what"], first["remedy"])
    check_accuracy(candidates, teller)
    keep()
    with PinnedClocks(teller, not chosen.no_clocks) as clocks:
        state["methodology"].update(clocks_pinned=clocks.pinned, why_not=clocks.why_not)
        watch = Watch(clocks.pinned)
        try:
            power.start()
            if power.source is not None:
                begin = time.monotonic()
                time.sleep(chosen.idle_seconds)
                idle = power.mean_watts(begin, time.monotonic())
            watch.start()
            measure_settled(
                candidates,
                chosen.rounds,
                chosen.seconds / chosen.rounds,
                chosen.warmup_ms,
                watch,
                teller,
                keep,
            )
        finally:
            try:
                power.stop()
                watch.stop()
            finally:
                keep()
        if not chosen.no_profile:
            report_layers(candidates, teller)
            keep()


def _candidates(
    bundles: List[BoardBundle], chosen: Any, board: Dict[str, Any], teller: Teller
) -> List[Candidate]:
    names = [bundle.name for bundle in bundles]
    if len(set(names)) < len(names):
        raise Cannot("Two of the bundles have the same name.", "Measure them one after the other.")
    found = []
    for bundle in bundles:
        for precision in chosen.precision or bundle.precisions:
            if precision in bundle.precisions:
                found.append(Candidate(bundle, precision, None))
                try:
                    found[-1].use(_runner(bundle, precision, chosen, board, teller))
                except Cannot as error:
                    found[-1].found["error"] = error.to_json()
        if any("other_runtime" in one.flags for one in found if one.bundle is bundle):
            text = "{0} is made for {1} and is measured with ONNX Runtime: no figures of {1}"
            teller.note(text.format(bundle.name, bundle.runtime))
    if not found:
        raise Cannot(
            "No bundle has a model of the precision that was asked for.",
            "There is: {}.".format(", ".join(bundles[0].precisions)),
        )
    return found


def _runner(
    bundle: BoardBundle, precision: str, chosen: Any, board: Dict[str, Any], teller: Teller
) -> Any:
    """Choose what executes a model here: what the bundle is made for, else ONNX Runtime."""
    wanted = chosen.runtime
    trtexec = chosen.trtexec or find_program("trtexec", board["trtexec"] or "")
    if wanted == "auto":
        wanted = _best_runtime(bundle, trtexec)
    onnx, digest = bundle.model(precision), bundle.digest(precision)
    ports = bundle.manifest["inputs"] + bundle.manifest["outputs"]
    shapes = {port["name"]: port["shape"] for port in ports}
    if wanted == "onnxruntime":
        elsewhere = bundle.runtime != "onnxruntime"
        return OrtBoardRunner(onnx, shapes["input"], chosen.threads, gpu=elsewhere)
    folder = chosen.engine_dir or os.path.abspath(bundle.folder) + ".engine"
    module = _module_version("tensorrt")
    version = board["tensorrt"] if wanted == "trtexec" else module or board["tensorrt"]
    release = release_for(bundle.plan, precision, version)
    if release["build"] is None and wanted == "trtexec":
        if module is None:
            text = (
                "trtexec of TensorRT {} cannot keep single layers in FP32, as the {} model needs."
            )
            raise Cannot(
                text.format(version, precision),
                "Install TensorRT's Python module (sudo apt install python3-libnvinfer), or "
                "measure another precision with --precision.",
            )
        wanted = "tensorrt"
        release = release_for(bundle.plan, precision, module or version)
    if wanted == "trtexec":
        if not trtexec:
            raise Cannot(
                "trtexec was not found.",
                "Install TensorRT (JetPack brings it), or give its path with --trtexec.",
            )
        made_by = "-".join(part for part in (version, _here(board)) if part)
        return TrtexecRunner(trtexec, onnx, digest, release, made_by, folder, teller)
    return TensorrtModuleRunner(onnx, digest, release, shapes, _here(board), folder, teller)


def _here(board: Dict[str, Any]) -> str:
    """Name what an engine's kernels were chosen on, beside the software: the GPU and its mode.

    Boards may share a home folder, and one machine may have several cards.
    """
    device = [board["model"], board["part"], board["compute_capability"]]
    short = hashlib.sha256(json.dumps(device).encode()).hexdigest()[:6]
    return "-".join(part for part in (board["power_mode"], short) if part)


def _best_runtime(bundle: BoardBundle, trtexec: Optional[str]) -> str:
    """Return the runtime for a bundle; ONNX Runtime where nothing it is made for is here.

    Raises:
        Cannot: the bundle is made for TensorRT, and nothing here can run it.
    """
    if bundle.runtime == "tensorrt":
        if trtexec:
            return "trtexec"
        if _module_version("tensorrt") is not None:
            return "tensorrt"
        if _module_version("onnxruntime") is None:
            raise Cannot(MODULE_MISSING[0], MODULE_MISSING[1])
    return "onnxruntime"


def _module_version(name: str) -> Optional[str]:
    """Return the version of a Python module; None where it is not here or does not load."""
    try:
        module: Any = importlib.import_module(name)
        return str(module.__version__)
    except Exception:
        return None


def _finished(
    path: str, board: Dict[str, Any], how: Dict[str, Any]
) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Return what an earlier run finished: on this board, mode and software, measured this way.

    Returns:
        The models by name, and the methodology of that run; both empty where it was another one.
    """
    try:
        with open(path) as file:
            state = json.load(file)
        if state["schema_version"] != SCHEMA_VERSION:
            return {}, {}
        if any(state["board"].get(key) != board.get(key) for key in BOARD_SAME):
            return {}, {}
        if any(state["methodology"].get(key) != how[key] for key in HOW):
            return {}, {}
        rounds = how["rounds"]
        models = {
            name: one
            for name, one in state["models"].items()
            if one.get("error") is None and len(one.get("samples_ms") or []) >= rounds
        }
        return models, dict(state["methodology"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}, {}


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
