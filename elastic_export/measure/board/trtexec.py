"""Engines built and timed with trtexec, and what its files say.

Formats: ``samples/common/sampleReporting.cpp`` and ``sampleInference.cpp`` in
github.com/NVIDIA/TensorRT, releases 8.2 to 11. The arguments are not decided here: the bundle's
``device.json`` holds those of each release.
"""

import hashlib
import json
import os
import re
import time
from typing import Any, Dict, List, Optional

from elastic_export.measure.board.dla import count_dla_layers
from elastic_export.measure.board.engines import EngineFile, build_engine, last_error
from elastic_export.measure.board.layers import parse_layers, parse_sparsity
from elastic_export.measure.board.shell import Cannot, Teller, follow
from elastic_export.measure.board.stats import Series

__all__ = ["TrtexecRunner", "read_times", "release_for"]

STARTED = re.compile(r"\[I\] Starting inference")
CLOCK_SECONDS = 0.05
"""How far a moment that a line came at may lie from the one it was written at."""


def release_for(plan: Dict[str, Any], precision: str, version: Optional[str]) -> Dict[str, Any]:
    """Choose the arguments for this board's TensorRT.

    Args:
        plan: The bundle's ``device.json``.
        precision: Of the model.
        version: Of TensorRT on this board, such as ``10.3.0.30``.

    Raises:
        Cannot: the version is unknown, or the model cannot be built with it.
    """
    if version is None:
        raise Cannot(
            "The version of TensorRT on this board could not be read.",
            "Give the path of its trtexec with --trtexec.",
        )
    numbers = [int(part) for part in re.findall(r"\d+", version)[:2]] + [0]
    releases = (plan.get("precisions") or {}).get(precision, {}).get("releases") or []
    for release in releases:
        if list(release["first"]) <= numbers[:2] <= list(release["last"]):
            return dict(release)
    known = ", ".join("{}.{} to {}.{}".format(*(r["first"] + r["last"])) for r in releases)
    raise Cannot(
        "The {} model of this bundle was not made for TensorRT {}.".format(precision, version),
        "Export the bundle for this board's JetPack{}.".format(
            "; this one is for TensorRT " + known if known else ""
        ),
    )


class TrtexecRunner:
    """One model as an engine of this board.

    Args:
        program: trtexec.
        onnx: The model.
        digest: SHA-256 of the model; the engine's file is named by it.
        release: What ``release_for`` chose.
        made_by: TensorRT's version, the GPU and the power mode, in the engine's name too: an engine
            holds kernels that were chosen on one GPU at one mode's clocks, for one release alone.
        folder: Where engine, timing cache and logs go.
        teller: Told of retries.
    """

    runtime = "trtexec"

    def __init__(
        self,
        program: str,
        onnx: str,
        digest: str,
        release: Dict[str, Any],
        made_by: str,
        folder: str,
        teller: Teller,
    ) -> None:
        self.program = program
        self.onnx = onnx
        self.release = release
        self.teller = teller
        # Equal models may be built differently: FP32 and FP16 of a weakly typed graph, for one.
        how = hashlib.sha256(json.dumps(release["build"]).encode()).hexdigest()
        name = "{}-{}.trt{}".format(digest[:16], how[:8], made_by)
        self.place = EngineFile(folder, name, made_by)
        # Loaded without its DLA core, an engine runs on core 0, whichever it was built for.
        self.load = ["--loadEngine=" + self.place.path, *list(release.get("load") or [])]

    def prepare(self) -> Dict[str, Any]:
        """Build the engine, or take the one that is there; see ``build_engine``."""
        levels = bool(self.release.get("level"))
        return build_engine(self.place, self.onnx, "trtexec", levels, self._command, self.teller)

    def sample(self, seconds: float, warmup_ms: int) -> Series:
        """Time the engine.

        Raises:
            Cannot: trtexec fails.
        """
        times = self.place.beside("times.json")
        started: List[float] = []

        def listen(line: str, when: float) -> None:
            if STARTED.search(line):
                started.append(when)

        begin = time.monotonic()
        try:
            done = follow(
                [
                    self.program,
                    *self.load,
                    *list(self.release["time"]),
                    "--warmUp={}".format(warmup_ms),
                    "--duration={:g}".format(seconds),
                    "--iterations=10",
                    "--exportTimes=" + times,
                ],
                600 + 10 * seconds,
                listen,
            )
            end = time.monotonic()
            if not done.ok:
                raise Cannot(
                    "trtexec could not run the engine: " + last_error(done.out + done.err),
                    "Remove {} and run again.".format(self.place.path),
                )
            return read_times(_load(times), warmup_ms, started[0] if started else None, begin, end)
        finally:
            _remove(times)

    def logits(self, batches: List[bytes], classes: int) -> List[List[float]]:
        """Run whole batches and return one list of logits an image.

        Raises:
            Cannot: trtexec fails, or does not write its outputs.
        """
        rows: List[List[float]] = []
        source, sink = self.place.beside("input"), self.place.beside("output.json")
        try:
            for batch in batches:
                with open(source, "wb") as file:
                    file.write(batch)
                done = follow(
                    [
                        self.program,
                        *self.load,
                        "--loadInputs=input:" + source,
                        "--exportOutput=" + sink,
                        "--iterations=1",
                        "--duration=0",
                        "--warmUp=0",
                    ],
                    600,
                )
                if not done.ok:
                    raise Cannot(
                        "trtexec could not run the sample: " + last_error(done.out + done.err),
                        "The latency stands; check the accuracy with the tensorrt module.",
                    )
                (output,) = [one for one in _load(sink) if one.get("name") == "logits"]
                values = [float(value) for value in output["values"]]
                rows += [values[i : i + classes] for i in range(0, len(values), classes)]
        finally:
            _remove(source)
            _remove(sink)
        return rows

    def layers(self) -> Optional[Dict[str, Any]]:
        """Profile in a run of its own, because profiling slows everything; None where it fails."""
        files = {name: self.place.beside(name) for name in ("profile.json", "layers.json")}
        try:
            done = follow(
                [
                    self.program,
                    *self.load,
                    "--dumpProfile",
                    "--separateProfileRun",
                    "--profilingVerbosity=detailed",
                    "--exportProfile=" + files["profile.json"],
                    "--exportLayerInfo=" + files["layers.json"],
                    "--iterations=100",
                    "--duration=2",
                ],
                900,
            )
            if not done.ok or not all(os.path.isfile(path) for path in files.values()):
                self.teller.note("trtexec gave no layer times: " + last_error(done.out + done.err))
                return None
            found = parse_layers(_load(files["profile.json"]), _load(files["layers.json"]))
            for name, path in files.items():
                os.replace(path, "{}.{}".format(self.place.path, name))
        finally:
            for path in files.values():
                _remove(path)
        log = self.place.read_log()
        found.update(parse_sparsity(log))
        found.update(count_dla_layers(log, self.release["api"].get("dla"), self.teller))
        return found

    def log_tail(self) -> List[str]:
        """Return the last lines of the build's log."""
        return self.place.log_tail()

    def _command(self, mib: int, level: Optional[int], draft: str) -> List[str]:
        arguments = [str(one).replace("{mib}", str(mib)) for one in self.release["build"]]
        if level is not None:
            arguments.append(str(self.release["level"]).replace("{level}", str(level)))
        return [
            self.program,
            "--onnx=" + self.onnx,
            "--saveEngine=" + draft,
            "--timingCacheFile=" + self.place.timings,
            "--verbose",
            *arguments,
        ]


def read_times(
    rows: List[Dict[str, Any]],
    warmup_ms: float,
    started: Optional[float],
    begin: float,
    end: float,
) -> Series:
    """Read ``--exportTimes``.

    Its times count from the start of the inference loop, right before which trtexec writes that it
    starts. Loading comes before, and writing files and taking the engine down after: neither draws
    the power of an inference. Releases that write the inferences of the warm-up too are freed of
    them here, by the rule with which trtexec summarizes: ``startComputeMs`` before ``--warmUp``.

    Args:
        rows: One an inference.
        warmup_ms: What ``--warmUp`` was.
        started: When the line came (``time.monotonic``), None where it did not.
        begin: When trtexec was started.
        end: When it had ended.

    Raises:
        Cannot: there is no inference.
    """
    told = all("startComputeMs" in row and "endComputeMs" in row for row in rows)
    if told:
        first = [i for i, row in enumerate(rows) if float(row["startComputeMs"]) >= warmup_ms]
        rows = rows[first[0] :] if first else rows
    if not rows:
        raise Cannot("trtexec timed nothing.", "Give it more time with --seconds.")
    latency = [float(row["latencyMs"]) for row in rows]
    compute = [float(row["computeMs"]) for row in rows]
    if told and started is not None:
        # Compute alone: transfers are switched off, or overlap with it.
        since = started + min(float(row["startComputeMs"]) for row in rows) / 1000.0
        until = started + max(float(row["endComputeMs"]) for row in rows) / 1000.0
        if begin <= since < until <= end + CLOCK_SECONDS:
            return Series(latency, compute, since, min(until, end))
    # The measured part is near the end of the run; what comes after it is counted too.
    return Series(latency, compute, max(begin, end - sum(latency) / 1000.0), end, exact=False)


def _load(path: str) -> Any:
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise Cannot(
            "trtexec's file {} cannot be read: {}.".format(path, error),
            "Run again; if it stays so, report it with the version of TensorRT.",
        )


def _remove(path: str) -> None:
    if os.path.exists(path):
        os.remove(path)
