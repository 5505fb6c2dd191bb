"""Engines built and timed with trtexec, and what its logs and files say.

Formats: ``samples/common/sampleReporting.cpp`` in github.com/NVIDIA/TensorRT, releases 8.2 to 11.
The arguments are not decided here: the bundle's ``device.json`` holds those of each release.
"""

import hashlib
import json
import os
import re
import shutil
import time
from typing import Any, Dict, List, Optional, Tuple

from elastic_export.measure.board.dla import count_dla_layers
from elastic_export.measure.board.shell import Cannot, Teller, run, write_json

__all__ = ["TrtexecRunner", "parse_layers", "parse_sparsity", "parse_times", "release_for"]

WORKSPACES_MIB = (1024, 512, 256, 128)
LEVELS = (2, 1)
BUILD_SECONDS = 4 * 3600.0
NO_MEMORY = re.compile(
    r"^.*\[E\].*(?:out of memory|OutOfMemory|bad_alloc|Cannot allocate memory|MemoryAllocation)",
    re.I | re.M,
)
NO_SPACE = re.compile(r"No space left on device", re.I)
KILLED = (-9, 137)
PROFILE_ROWS = 30
LOG_TAIL = 20


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
        version: Of TensorRT, in the engine's name too: an engine fits no other.
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
        version: str,
        folder: str,
        teller: Teller,
    ) -> None:
        self.program = program
        self.onnx = onnx
        self.release = release
        self.folder = folder
        self.teller = teller
        # Equal models may be built differently: FP32 and FP16 of a weakly typed graph, for one.
        how = hashlib.sha256(json.dumps(release["build"]).encode()).hexdigest()
        name = "{}-{}.trt{}".format(digest[:16], how[:8], version)
        self.engine = os.path.join(folder, name + ".engine")
        self.log = os.path.join(folder, name + ".build.log")
        # Loaded without its DLA core, an engine runs on core 0, whichever it was built for.
        self.load = ["--loadEngine=" + self.engine, *list(release.get("load") or [])]

    def prepare(self) -> Dict[str, Any]:
        """Build the engine, with less memory and less effort where the board has too little.

        Returns:
            ``seconds``, ``workspace_mb``, ``level``, ``retries``, ``engine_bytes``, ``reused``.

        Raises:
            Cannot: the build fails for another reason, or with the smallest workspace too.
        """
        os.makedirs(self.folder, exist_ok=True)
        told = self.engine + ".json"
        earlier = _told(told) if os.path.isfile(self.engine) else None
        if earlier is not None:
            return dict(earlier, reused=True)
        self._check_space()
        begin = time.time()
        for attempt, (mib, level) in enumerate(self._attempts()):
            if attempt:
                text = "building needs too much memory; trying {} MiB of workspace{}"
                self.teller.note(text.format(mib, ", level {}".format(level) if level else ""))
            code = self._build(mib, level)
            if code == 0:
                found = {
                    "seconds": round(time.time() - begin, 1),
                    "workspace_mb": mib,
                    "level": level,
                    "retries": attempt,
                    "engine_bytes": os.path.getsize(self.engine),
                    "reused": False,
                }
                write_json(told, found)
                return found
            log = _read_log(self.log)
            if NO_SPACE.search(log):
                raise Cannot(
                    "The disk is full: the engine could not be written to {}.".format(self.folder),
                    "Free some space, or name another folder with --engine-dir.",
                )
            if code not in KILLED and not NO_MEMORY.search(log):
                raise Cannot(
                    "trtexec could not build {}: {}".format(
                        os.path.basename(self.onnx), _last_error(log)
                    ),
                    "The whole log is {}.".format(self.log),
                )
        raise Cannot(
            "This board has too little memory to build {}.".format(os.path.basename(self.onnx)),
            "Add swap, stop the desktop (sudo systemctl isolate multi-user.target), and try again.",
        )

    def sample(self, seconds: float, warmup_ms: int) -> Tuple[List[float], List[float]]:
        """Time the engine.

        Returns:
            Latency and GPU compute of every inference, in milliseconds.

        Raises:
            Cannot: trtexec fails.
        """
        times = self.engine + ".times.json"
        done = run(
            [
                self.program,
                *self.load,
                *list(self.release["time"]),
                "--warmUp={}".format(warmup_ms),
                "--duration={:g}".format(seconds),
                "--iterations=10",
                "--exportTimes=" + times,
            ],
            timeout=600 + 10 * seconds,
        )
        if not done.ok:
            raise Cannot(
                "trtexec could not run the engine: {}".format(_last_error(done.out + done.err)),
                "Remove {} and run again.".format(self.engine),
            )
        found = parse_times(_load(times))
        os.remove(times)
        return found

    def logits(self, batches: List[bytes], classes: int) -> List[List[float]]:
        """Run whole batches and return one list of logits an image.

        Raises:
            Cannot: trtexec fails, or does not write its outputs.
        """
        rows: List[List[float]] = []
        source, sink = self.engine + ".input", self.engine + ".output.json"
        try:
            for batch in batches:
                with open(source, "wb") as file:
                    file.write(batch)
                done = run(
                    [
                        self.program,
                        *self.load,
                        "--loadInputs=input:" + source,
                        "--exportOutput=" + sink,
                        "--iterations=1",
                        "--duration=0",
                        "--warmUp=0",
                    ],
                    timeout=600,
                )
                if not done.ok:
                    raise Cannot(
                        "trtexec could not run the sample: " + _last_error(done.out + done.err),
                        "The latency stands; check the accuracy with the tensorrt module.",
                    )
                (output,) = [one for one in _load(sink) if one.get("name") == "logits"]
                values = [float(value) for value in output["values"]]
                rows += [values[i : i + classes] for i in range(0, len(values), classes)]
        finally:
            for path in (source, sink):
                if os.path.exists(path):
                    os.remove(path)
        return rows

    def layers(self) -> Optional[Dict[str, Any]]:
        """Profile in a run of its own, because profiling slows everything; None where it fails."""
        profile, info = self.engine + ".profile.json", self.engine + ".layers.json"
        done = run(
            [
                self.program,
                *self.load,
                "--dumpProfile",
                "--separateProfileRun",
                "--profilingVerbosity=detailed",
                "--exportProfile=" + profile,
                "--exportLayerInfo=" + info,
                "--iterations=100",
                "--duration=2",
            ],
            timeout=900,
        )
        if not done.ok or not (os.path.isfile(profile) and os.path.isfile(info)):
            return None
        found = parse_layers(_load(profile), _load(info))
        log = _read_log(self.log)
        found.update(parse_sparsity(log))
        found.update(count_dla_layers(log, self.release["api"].get("dla"), self.teller))
        return found

    def log_tail(self) -> List[str]:
        """Return the last lines of the build's log."""
        return _read_log(self.log).splitlines()[-LOG_TAIL:]

    def _attempts(self) -> List[Tuple[int, Optional[int]]]:
        attempts: List[Tuple[int, Optional[int]]] = [(mib, None) for mib in WORKSPACES_MIB]
        if self.release.get("level"):
            attempts += [(WORKSPACES_MIB[-1], level) for level in LEVELS]
        return attempts

    def _build(self, mib: int, level: Optional[int]) -> Optional[int]:
        draft = self.engine + ".part"
        arguments = [str(one).replace("{mib}", str(mib)) for one in self.release["build"]]
        if level is not None:
            arguments.append(str(self.release["level"]).replace("{level}", str(level)))
        done = run(
            [
                self.program,
                "--onnx=" + self.onnx,
                "--saveEngine=" + draft,
                "--timingCacheFile=" + os.path.join(self.folder, "timing.cache"),
                "--verbose",
                *arguments,
            ],
            timeout=BUILD_SECONDS,
            log=self.log,
        )
        if done.ok and os.path.isfile(draft):
            os.replace(draft, self.engine)
            return 0
        if os.path.exists(draft):
            os.remove(draft)
        if done.ok:
            return 1
        return done.code if done.code is not None else 1

    def _check_space(self) -> None:
        needed = 3 * os.path.getsize(self.onnx) + (16 << 20)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            text = "Building {} needs about {} MB of disk and {} has {}."
            raise Cannot(
                text.format(os.path.basename(self.onnx), needed >> 20, self.folder, free >> 20),
                "Free some space, or name another folder with --engine-dir.",
            )


def parse_times(rows: List[Dict[str, Any]]) -> Tuple[List[float], List[float]]:
    """Read ``--exportTimes``: latency and GPU compute of each inference, in milliseconds."""
    return (
        [float(row["latencyMs"]) for row in rows],
        [float(row["computeMs"]) for row in rows],
    )


def parse_sparsity(log: str) -> Dict[str, List[str]]:
    """Read what the builder said of 2:4: which layers could use it, which do."""
    found: Dict[str, List[str]] = {"eligible_sparse": [], "picked_sparse": []}
    for key, sentence in (
        ("eligible_sparse", r"Layers eligible for sparse math:(.*)"),
        ("picked_sparse", r"picked sparse implementation for layers:(.*)"),
    ):
        for line in re.findall(r"\(Sparsity\).*?" + sentence, log):
            found[key] += [name.strip() for name in line.split(",") if name.strip()]
    return found


def parse_layers(profile: List[Dict[str, Any]], info: Dict[str, Any]) -> Dict[str, Any]:
    """Read ``--exportProfile`` and ``--exportLayerInfo``.

    Returns:
        ``profile`` (the slowest layers, milliseconds each), ``fused_attention`` (kernels whose
        name says ``mha``), ``int8_layers`` (layers that read INT8; None where the information is
        not detailed).
    """
    rows = [row for row in profile if "name" in row]
    slowest = sorted(rows, key=lambda row: -float(row.get("averageMs", 0.0)))[:PROFILE_ROWS]
    layers = info.get("Layers") or []
    detailed = [layer for layer in layers if isinstance(layer, dict)]
    words = [json.dumps(layer).lower() for layer in detailed] or [str(x).lower() for x in layers]
    int8: Optional[int] = None
    if detailed:
        int8 = sum("int8" in json.dumps(layer.get("Inputs", [])).lower() for layer in detailed)
    return {
        "profile": [
            {"name": str(row["name"]), "ms": float(row.get("averageMs", 0.0))} for row in slowest
        ],
        "fused_attention": sum("mha" in text for text in words),
        "int8_layers": int8,
        "layers": len(layers),
    }


def _told(path: str) -> Optional[Dict[str, Any]]:
    """Return what is known of an engine that was built before; None where that is damaged."""
    try:
        with open(path) as file:
            return dict(json.load(file))
    except (OSError, ValueError, TypeError):
        return None


def _load(path: str) -> Any:
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise Cannot(
            "trtexec's file {} cannot be read: {}.".format(path, error),
            "Run again; if it stays so, report it with the version of TensorRT.",
        )


def _read_log(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _last_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "[E]" in line or "rror" in line]
    return (errors or lines or ["it says nothing"])[-1][:300] + "."
