"""Time and memory of reading a large checkpoint, for each format it may have.

    python benchmarks/import_memory.py [--depth N] [--json]

A ViT of width 1024 with random weights (about 0.7 GB in float32 at the default depth of 13) is
written in every format; ``elastic-export inspect`` and ``elastic-export extract`` read it in
processes of their own. ``peak_mb`` is the largest resident set of the process, which has the
interpreter and torch in it (the row ``start`` shows how much that is); ``ratio`` is the peak over
the size of the file. In ``with-optimizer`` a third of the file is weights and the rest belongs to
the optimizer; in ``records`` weights come with pickled settings.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Torch is loaded by the processes that are measured and by those that write the files, never here:
# a process' peak is at least the size its parent had when it started it.
COMMAND = Path(sys.executable).with_name("elastic-export")


def weights(depth: int) -> dict[str, Any]:
    """Random weights with the names of a plain ViT."""
    from elastic_export.elastic import Supernet
    from elastic_export.families import get_family
    from elastic_export.families.registry import family_config

    settings = {"width": [1024], "depth": [depth], "heads": [16], "head_dim": 64}
    family = get_family("vit")
    config = family_config(family, {**settings, "image_size": 224, "mlp_ratio": [4.0]})
    return Supernet.create(family, config).state_dict()


def write(path: Path, kind: str, depth: int) -> None:
    """Write a checkpoint of one kind."""
    import torch
    from safetensors.torch import save_file

    if kind == "with-optimizer":
        state = weights(max(1, depth // 3))
        moments = {
            index: {"step": 5, "exp_avg": tensor * 0.1, "exp_avg_sq": tensor * tensor}
            for index, tensor in enumerate(state.values())
        }
        torch.save({"model": state, "optimizer": {"state": moments}, "epoch": 3}, path)
        return
    state = weights(depth)
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "state-dict":
        torch.save(state, path)
    else:
        content = {"model": state, "args": argparse.Namespace(lr=0.1), "epoch": 3}
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")


def measured(*arguments: str) -> tuple[float, float]:
    """Seconds and the peak of the resident set in MB of one command."""
    started = time.perf_counter()
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}: {said}")
    scale = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - started, usage.ru_maxrss * scale / 1e6


def row(kind: str, command: str, size: float, seconds: float, peak: float) -> dict[str, Any]:
    """One line of the result."""
    told = {
        "format": kind,
        "command": command,
        "file_mb": round(size),
        "seconds": round(seconds, 1),
    }
    return {**told, "peak_mb": round(peak), "ratio": round(peak / size, 2) if size else None}


def main() -> None:
    """Measure all kinds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=13)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", nargs=2, metavar=("KIND", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(Path(options.write[1]), options.write[0], options.depth)
        return
    rows = [row("-", "start", 0, *measured(sys.executable, "-c", "import torch"))]
    for kind in ("state-dict", "records", "legacy", "safetensors", "with-optimizer"):
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / f"net{'.safetensors' if kind == 'safetensors' else '.pth'}"
            depth = ["--depth", str(options.depth)]
            subprocess.run([sys.executable, __file__, "--write", kind, path, *depth], check=True)
            size = path.stat().st_size / 1e6
            given = [str(path), "--set", "heads=[16]"]
            rows.append(row(kind, "inspect", size, *measured(str(COMMAND), "inspect", *given)))
            out = ["--out", name]
            rows.append(
                row(kind, "extract", size, *measured(str(COMMAND), "extract", *given, *out))
            )
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for line in rows:
        print("  ".join(f"{value!s:>14}" for value in line.values()))


if __name__ == "__main__":
    main()
