"""INT8 on this machine's CPU in ONNX Runtime: ours against FP32 and against what peers write.

    python benchmarks/int8_cpu.py [--models NAME ...] [--threads N [N ...]] [--batch N] [--json]
                                  [--peer-venv modelopt=DIR] [--peer-venv nncf=DIR]

All contenders of a model take turns in one run with ONNX Runtime's default session options; figures
are medians, ratios are FP32 latency over theirs. Weights and calibration images are random, which
does for speed and says nothing about accuracy; `error` is only there to show that a contender
computes the network: the largest difference from torch's FP32 logits, relative to the largest
logit.

| contender | what it is |
|---|---|
| `fp32` | our clean FP32 export, which is also what every tool for ONNX files starts from |
| `ort-cpu` | our INT8 flavour |
| `quantize_static` | ONNX Runtime's own quantizer with its defaults, after its shape inference |
| `quantize_static tuned` | the fastest of the settings in `int8_peers.TUNED`, each tried here |
| `modelopt legacy` | ModelOpt's INT8_DEFAULT_CFG, exported by torch's TorchScript exporter |
| `modelopt onnx` | `modelopt.onnx.quantization.quantize` with its defaults |
| `nncf` | `nncf.quantize` with the model type it asks for |

The last two pin packages that ours does not, so each lives in a virtual environment of its own; a
contender without one is listed as left out:

    python -m venv DIR1 && DIR1/bin/pip install "nvidia-modelopt[onnx]" requests
    python -m venv DIR2 && DIR2/bin/pip install nncf onnx onnxruntime

Progress goes to stderr; `--json` prints one JSON document on stdout instead of the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from int8_models import MODELS, Network, RandomSplit, make_network
from int8_peers import ENVIRONMENTS, TUNED, modelopt_legacy, quantize_elsewhere, static
from torch import Tensor

from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.config.recipe import MeasureConfig
from elastic_export.export import emit, export_fp32, fused_ops, integer_products
from elastic_export.export.fused import INTEGER_OPS
from elastic_export.measure.machine import describe_machine
from elastic_export.measure.protocol import Timing, measure_interleaved
from elastic_export.quantize.calibrate import calibrate

IMAGES = 4
"""Calibration images; more would change ranges, not speed."""

Written = dict[str, Path]


def say(text: str) -> None:
    """Tell the reader what is going on."""
    print(text, file=sys.stderr, flush=True)


def ours(network: Network, images: Tensor, folder: Path, batch: int) -> Written:
    """Write our FP32 export and our INT8 flavour, as the pipeline does."""
    module = network.module
    exported = export_fp32(module, images[:1].repeat(batch, 1, 1, 1), folder / "fp32.onnx")
    recipe = CalibrationRecipe(name="benchmark", images=IMAGES, batch_size=1)
    record = calibrate(module, RandomSplit(images), recipe)
    emit("ort-cpu", exported.path, exported.table, record, folder / "ort-cpu.onnx")
    return {"fp32": exported.path, "ort-cpu": folder / "ort-cpu.onnx"}


def write_all(
    name: str, network: Network, images: Tensor, folder: Path, batch: int, venvs: dict[str, Path]
) -> tuple[Written, Written, dict[str, str]]:
    """Let every contender write its file.

    Returns:
        The contenders' files, those of the settings of quantize_static, and why others failed.
    """
    say(f"{name}: exporting and calibrating")
    paths = ours(network, images, folder, batch)
    fp32 = paths["fp32"]
    tuned: Written = {}
    failed: dict[str, str] = {}

    def attempt(into: Written, contender: str, make: Callable[[Path], Path]) -> None:
        say(f"{name}: writing {contender}")
        try:
            path = make(folder / f"{contender.replace(' ', '-').replace(',', '')}.onnx")
            session(path, 1)
            into[contender] = path
        except Exception as error:  # a peer may fail in any way; the table then says so
            lines = str(error).splitlines() or [""]
            failed[contender] = f"{type(error).__name__}: {lines[0][:200]}"

    attempt(paths, "quantize_static", lambda path: static(fp32, images, path, batch))
    for title, settings in TUNED.items():
        attempt(tuned, title, lambda path, s=settings: static(fp32, images, path, batch, **s))  # type: ignore[misc]
    attempt(
        paths,
        "modelopt legacy",
        lambda path: modelopt_legacy(network.module, images, path, batch),
    )
    for peer, contender in ENVIRONMENTS.items():
        if peer not in venvs:
            failed[contender] = f"left out, because --peer-venv {peer}=DIR was not given"
        elif batch > 1:
            failed[contender] = "left out, because its calibration reads single images"
        else:
            attempt(
                paths,
                contender,
                lambda path, peer=peer: quantize_elsewhere(  # type: ignore[misc]
                    peer, venvs[peer], fp32, images, path, transformer=network.transformer
                ),
            )
    return paths, tuned, failed


def session(path: Path, threads: int) -> ort.InferenceSession:
    """Load a file with default options but for the threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def caller(running: ort.InferenceSession, x: np.ndarray) -> Callable[[], object]:
    """Make what is timed: one inference."""
    feed = {running.get_inputs()[0].name: x}
    return lambda: running.run(None, feed)


def measure(
    paths: dict[str, Path], x: np.ndarray, threads: int, rounds: int
) -> tuple[dict[str, Timing], dict[str, np.ndarray]]:
    """Run every file once for its logits, then time them turn by turn."""
    sessions = {name: session(path, threads) for name, path in paths.items()}
    logits = {
        name: running.run(None, {running.get_inputs()[0].name: x})[0]
        for name, running in sessions.items()
    }
    settings = MeasureConfig(threads=threads, min_samples=rounds, sample_ms=100, warmup_ms=300)
    calls = {name: caller(running, x) for name, running in sessions.items()}
    return measure_interleaved(calls, settings), logits


def run_model(
    name: str, threads: list[int], batch: int, rounds: int, venvs: dict[str, Path]
) -> list[dict[str, Any]]:
    """Write all contenders of one model and measure them at each number of threads."""
    network = make_network(name)
    images = torch.randn(max(IMAGES, batch), *network.size)
    with torch.no_grad():
        reference = network.module(images[:batch]).numpy()
    with tempfile.TemporaryDirectory() as text:
        paths, tuned, failed = write_all(name, network, images, Path(text), batch, venvs)
        return [
            {
                "model": name,
                "threads": count,
                "batch": batch,
                **compare(name, paths, tuned, images[:batch].numpy(), reference, count, rounds),
                "failed": failed,
            }
            for count in threads
        ]


def compare(
    name: str,
    paths: Written,
    tuned: Written,
    x: np.ndarray,
    reference: np.ndarray,
    threads: int,
    rounds: int,
) -> dict[str, Any]:
    """Measure all contenders turn by turn; of the settings of quantize_static the fastest."""
    say(f"{name}: choosing the fastest of {len(tuned)} settings of quantize_static")
    trial = measure(tuned, x, threads, max(3, rounds // 4))[0]
    best = min(trial, key=lambda title: trial[title].median_ms)
    paths = {**paths, "quantize_static tuned": tuned[best]}
    say(f"{name}: measuring {len(paths)} contenders, {threads} thread(s), {rounds} rounds")
    timings, logits = measure(paths, x, threads, rounds)
    size = paths["fp32"].stat().st_size
    rows: dict[str, Any] = {}
    for title, timing in timings.items():
        found = fused_ops(paths[title], threads)
        own = paths[title].stat().st_size
        rows[title] = {
            **figures(timing, timings["fp32"]),
            "error": float(np.abs(logits[title] - reference).max() / np.abs(reference).max()),
            "megabytes": round(own / 1e6, 2),
            "size_ratio": round(own / size, 3),
            "integer_products": integer_products(found),
            "fused_ops": {op: count for op, count in found.items() if _is_integer(op)},
        }
    return {
        "contenders": rows,
        "tuned_settings": best,
        "tuned_trial_ms": {title: round(t.median_ms, 3) for title, t in trial.items()},
    }


def _is_integer(op: str) -> bool:
    return op in INTEGER_OPS or op.startswith("QLinear") or op == "QAttention"


def figures(timing: Timing, baseline: Timing) -> dict[str, Any]:
    """Summarise one timing; the ratio is the median over rounds of FP32 over it."""
    ratios = np.asarray(baseline.sample_ms) / np.asarray(timing.sample_ms)
    return {
        "median_ms": round(timing.median_ms, 3),
        "p90_ms": round(timing.p90_ms, 3),
        "ratio": round(float(np.median(ratios)), 3),
        "settled": timing.settled,
    }


def table(result: dict[str, Any]) -> str:
    """Lay out one model's figures for a terminal."""
    lines = [
        f"{result['model']}, {result['threads']} thread(s), batch {result['batch']}",
        f"{'contender':24}{'median ms':>11}{'p90 ms':>9}{'x FP32':>8}{'MB':>8}{'size':>7}"
        f"{'error':>10}  settled  integer operators",
    ]
    for title, row in result["contenders"].items():
        ops = ", ".join(f"{count} {op}" for op, count in row["fused_ops"].items())
        lines.append(
            f"{title:24}{row['median_ms']:11.2f}{row['p90_ms']:9.2f}{row['ratio']:8.2f}"
            f"{row['megabytes']:8.1f}{row['size_ratio']:7.2f}{row['error']:10.1e}  "
            f"{'yes' if row['settled'] else 'no':7}  {ops}"
        )
    lines.append(f"tuned = {result['tuned_settings']}")
    lines += [f"{title} failed: {reason}" for title, reason in result["failed"].items()]
    return "\n".join(lines)


def environments(given: list[str]) -> dict[str, Path]:
    """Read ``NAME=DIR`` pairs."""
    found = {}
    for pair in given:
        name, _, folder = pair.partition("=")
        if name not in ENVIRONMENTS or not (Path(folder) / "bin" / "python").exists():
            known = ", ".join(ENVIRONMENTS)
            raise SystemExit(f"--peer-venv takes NAME=DIR, with NAME of {known}; not {pair}")
        found[name] = Path(folder).absolute()
    return found


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20, help="samples of each contender")
    parser.add_argument("--peer-venv", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    venvs = environments(chosen.peer_venv)
    torch.set_num_threads(max(chosen.threads))
    results = []
    for name in chosen.models:
        for result in run_model(name, chosen.threads, chosen.batch, chosen.rounds, venvs):
            results.append(result)
            if not chosen.json:
                print(table(result), end="\n\n", flush=True)
    if chosen.json:
        versions = {"onnxruntime": ort.__version__, "torch": torch.__version__}
        report = {"machine": describe_machine(), "versions": versions, "results": results}
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
