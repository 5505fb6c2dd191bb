"""What ``doctor`` looks at; each probe stands alone, so that one that fails hides no other."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["Check", "run_probes"]

Status = Literal["ok", "absent", "missing", "broken"]

# Distribution, module, why it is there. Those that load torch share one process: it is loaded once.
_HEAVY = (
    ("torch", "torch", "trains and holds networks"),
    ("timm", "timm", "reads its checkpoints"),
    ("nvidia-modelopt", "modelopt.torch.quantization", "calibrates INT8"),
)
_LIGHT = (
    ("onnx", "onnx", "writes ONNX"),
    ("onnxscript", "onnxscript", "exports ONNX"),
    ("onnxruntime", "onnxruntime", "runs and measures ONNX"),
    ("scikit-learn", "sklearn.datasets", "holds the digits"),
    ("matplotlib", "matplotlib", "draws the plots"),
)
_OPTIONAL = (
    ("tensorrt-rtx", "tensorrt_rtx", 'pip install "elastic-export[rtx]"', "builds GPU engines"),
    ("tensorrt", "tensorrt", 'pip install "elastic-export[trt]"', "builds on NVIDIA hosts"),
)
_FREE_BYTES = 2 << 30
_IMPORT_SECONDS = 180
_CHILD = """
import importlib, json, sys
for name in sys.argv[1:]:
    print(json.dumps({"begin": name}), flush=True)
    try:
        module = importlib.import_module(name)
        root = sys.modules[name.partition(".")[0]]
        told = {"name": name, "version": str(getattr(root, "__version__", ""))}
        if name == "torch":
            told["cuda"] = module.cuda.is_available()
    except BaseException as error:
        told = {"name": name, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
    print(json.dumps(told), flush=True)
"""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        status: ``ok``; ``absent`` (optional and not there); ``missing`` or ``broken`` (needed).
        detail: What was found.
        fix: What to do about it, if anything.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""


def run_probes(store_root: Path) -> list[Check]:
    """Look at everything; no probe can stop another, and none writes anything.

    Args:
        store_root: The store whose disk is looked at.
    """
    with ThreadPoolExecutor(3) as pool:
        heavy = pool.submit(_imports, [module for _, module, _ in _HEAVY])
        light = pool.submit(
            _imports, [entry[1] for entry in _LIGHT] + [entry[1] for entry in _OPTIONAL]
        )
        gpu = pool.submit(_guarded, "gpu", _gpu)
        checks = [
            _guarded("python", _python),
            _guarded("machine", _machine),
            _guarded("disk", lambda: _disk(store_root)),
            _guarded("data", _data),
        ]
        found = {**heavy.result(), **light.result()}
        checks += list(_libraries(found))
        checks += [gpu.result(), _guarded("ssh", _ssh)]
    return checks


def _guarded(name: str, probe: Callable[[], Check]) -> Check:
    try:
        return probe()
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        return Check(name, "broken", detail, "Report this line as a bug.")


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} ({sys.executable})")


def _machine() -> Check:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    detail = f"{platform.system()} {platform.machine()}, {cores} cores, {memory / 2**30:.1f} GiB"
    if memory < 3.5 * 2**30:
        return Check("machine", "broken", detail, "The default recipe needs 4 GB of memory.")
    return Check("machine", "ok", detail)


def _disk(root: Path) -> Check:
    there = root
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    detail = f"{free / 2**30:.1f} GiB free for {root}"
    if not os.access(there, os.W_OK):
        fix = "Choose another folder with --store or ELASTIC_EXPORT_HOME."
        return Check("disk", "broken", f"{there} cannot be written", fix)
    if free < _FREE_BYTES:
        return Check("disk", "broken", detail, "Free space, or choose another folder with --store.")
    return Check("disk", "ok", detail)


def _data() -> Check:
    from elastic_export import resources

    counts = [f"{len(resources.names('targets'))} targets"]
    counts.append(f"{len(resources.names('calibrate'))} calibration recipes")
    counts.append(f"{len(resources.names('benchmarks'))} recipes")
    return Check("data", "ok", ", ".join(counts))


def _gpu() -> Check:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Check("gpu", "absent", "no NVIDIA driver; everything runs on the CPU")
    asked = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode != 0:
        told = (done.stdout + done.stderr).strip().splitlines()
        return Check("gpu", "absent", told[0] if told else "nvidia-smi failed")
    return Check("gpu", "ok", "; ".join(done.stdout.strip().splitlines()))


def _ssh() -> Check:
    found = shutil.which("ssh")
    if found:
        return Check("ssh", "ok", found)
    return Check("ssh", "absent", "needed to reach boards", "Install an OpenSSH client.")


def _libraries(found: dict[str, dict[str, Any]]) -> Iterator[Check]:
    for distribution, module, why in (*_HEAVY, *_LIGHT):
        told = found[module]
        if "error" in told:
            absent = _is_absent(told, module)
            status: Status = "missing" if absent else "broken"
            fix = f'Run: pip install --force-reinstall "{distribution}"'
            yield Check(distribution, status, f"{why}; {told['error']}", fix)
            continue
        cuda = {True: ", with a CUDA device", False: ", on the CPU", None: ""}[told.get("cuda")]
        yield Check(distribution, "ok", f"{told['version']}{cuda}; {why}")
    for distribution, module, fix, why in _OPTIONAL:
        told = found[module]
        if "error" not in told:
            yield Check(distribution, "ok", f"{told['version']}; {why}")
        elif _is_absent(told, module):
            yield Check(distribution, "absent", why, f"Optional: {fix}")
        else:
            yield Check(distribution, "broken", told["error"], f"Run: {fix}")


def _is_absent(told: dict[str, Any], module: str) -> bool:
    root = module.partition(".")[0]
    return bool(told["error"].startswith("ModuleNotFoundError") and f"'{root}'" in told["error"])


def _imports(modules: list[str]) -> dict[str, dict[str, Any]]:
    """Import modules in a process of their own; one that dies takes only its module with it."""
    found: dict[str, dict[str, Any]] = {}
    while rest := [name for name in modules if name not in found]:
        try:
            done = subprocess.run(
                [sys.executable, "-c", _CHILD, *rest],
                capture_output=True,
                text=True,
                timeout=_IMPORT_SECONDS,
                check=False,
            )
            lines, end = done.stdout.splitlines(), f"the process ended with {done.returncode}"
        except subprocess.TimeoutExpired as error:
            told = error.stdout or b""
            text = told.decode(errors="replace") if isinstance(told, bytes) else told
            lines, end = text.splitlines(), f"no answer in {_IMPORT_SECONDS} seconds"
        trying = rest[0]
        for line in lines:
            entry = _entry(line)
            trying = entry.get("begin", trying)
            if "name" in entry:
                found[entry["name"]] = entry
        if trying not in found:
            found[trying] = {"name": trying, "error": f"importing it failed: {end}"}
    return found


def _entry(line: str) -> dict[str, Any]:
    # Libraries print to stdout too when they are imported.
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
