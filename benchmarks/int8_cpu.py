"""INT8 on this machine's CPU in ONNX Runtime: ours against FP32 and against what peers write.

    python benchmarks/int8_cpu.py [--models NAME ...] [--threads N] [--batch N] [--json]

All contenders of a model take turns in one run with ONNX Runtime's default session options; figures
are medians, ratios are FP32 latency over theirs. Weights and calibration images are random, which
does for speed and says nothing about accuracy; `error` is only there to show that a contender
computes the network: the largest difference from torch's FP32 logits, relative to the largest
logit.

| contender | what it is |
|---|---|
| `fp32` | our clean FP32 export, which is also what quantize_static starts from |
| `ort-cpu` | our INT8 flavour |
| `quantize_static` | ONNX Runtime's own quantizer with its defaults, after its shape inference |
| `quantize_static tuned` | the fastest of the settings in `TUNED`, each tried on this machine |
| `modelopt legacy` | ModelOpt's INT8_DEFAULT_CFG, exported by torch's TorchScript exporter |

Progress goes to stderr; `--json` prints one JSON document on stdout instead of the table.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import timm
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.config.recipe import MeasureConfig
from elastic_export.export import emit, export_fp32, fused_ops, integer_products
from elastic_export.measure.machine import describe_machine
from elastic_export.measure.protocol import Timing, measure_interleaved
from elastic_export.quantize.calibrate import calibrate

MODELS = (
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "resnet50",
)

IMAGES = 4
"""Calibration images; more would change ranges, not speed."""

DENSE = ["Conv", "MatMul", "Gemm"]
CONSTANT = {"MatMulConstBOnly": True}
FLOAT_OUT = {**CONSTANT, "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}

U8 = {"per_channel": True, "activation_type": QuantType.QUInt8}
S8 = {"per_channel": True, "activation_type": QuantType.QInt8}
QOPERATOR = {"quant_format": QuantFormat.QOperator}

TUNED: dict[str, dict[str, Any]] = {
    "U8S8, QDQ, all operators": U8,
    "U8S8, QOperator, all operators": {**U8, **QOPERATOR},
    "U8S8, QDQ, constant weights": {
        **U8,
        "op_types_to_quantize": DENSE,
        "extra_options": CONSTANT,
    },
    "U8S8, QOperator, constant weights": {
        **U8,
        **QOPERATOR,
        "op_types_to_quantize": DENSE,
        "extra_options": CONSTANT,
    },
    "U8S8, QDQ, constant weights, products left in float": {
        **U8,
        "op_types_to_quantize": DENSE,
        "extra_options": FLOAT_OUT,
    },
    "S8S8, QDQ, constant weights": {
        **S8,
        "op_types_to_quantize": DENSE,
        "extra_options": CONSTANT,
    },
    "S8S8, QDQ, constant weights, products left in float": {
        **S8,
        "op_types_to_quantize": DENSE,
        "extra_options": FLOAT_OUT,
    },
    "U8U8, QDQ, constant weights": {
        **U8,
        "weight_type": QuantType.QUInt8,
        "op_types_to_quantize": DENSE,
        "extra_options": CONSTANT,
    },
}


class RandomSplit:
    """Random images with the protocol of a data split."""

    name = "calibration"
    num_classes = 1000
    digest = "random"

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def head(self, n: int, *, name: str | None = None) -> RandomSplit:
        """Take the first images."""
        return RandomSplit(self.images[:n])

    def batches(
        self, batch_size: int, *, seed: int | None = None, drop_last: bool = False, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images in the stored order, with labels that nobody reads."""
        for part in self.images.split(batch_size)[start:]:
            yield part, torch.zeros(len(part), dtype=torch.int64)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The same images for quantize_static, one at a time."""

    def __init__(self, images: Tensor) -> None:
        self.rows = iter(images.split(1))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next image, or None at the end."""
        row = next(self.rows, None)
        return None if row is None else {"input": row.numpy()}


def say(text: str) -> None:
    """Tell the reader what is going on."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the peers' own notes off the terminal."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def make_model(name: str) -> nn.Module:
    """A timm network with random weights, BatchNorm with real numbers and folded."""
    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False).eval()
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in norms:
        nn.init.uniform_(part.weight, 0.5, 1.0)
        nn.init.normal_(part.bias, std=0.1)
    if norms:
        parts = dict(module.named_modules())
        for node in fx.symbolic_trace(module).graph.nodes:
            if node.op == "call_module" and isinstance(parts[node.target], nn.BatchNorm2d):
                before = node.args[0].target
                module.set_submodule(before, fuse_conv_bn_eval(parts[before], parts[node.target]))
                module.set_submodule(node.target, nn.Identity())
    return module


def ours(module: nn.Module, images: Tensor, folder: Path, batch: int) -> dict[str, Path]:
    """Write our FP32 export and our INT8 flavour, as the pipeline does."""
    exported = export_fp32(module, images[:1].repeat(batch, 1, 1, 1), folder / "fp32.onnx")
    recipe = CalibrationRecipe(name="benchmark", images=IMAGES, batch_size=1)
    record = calibrate(module, RandomSplit(images), recipe)
    emit("ort-cpu", exported.path, exported.table, record, folder / "ort-cpu.onnx")
    return {"fp32": exported.path, "ort-cpu": folder / "ort-cpu.onnx"}


def static(fp32: Path, images: Tensor, path: Path, batch: int, **settings: Any) -> Path:
    """Quantize with ONNX Runtime's own tool."""
    prepared = fp32.with_name("prepared.onnx")
    rows = images[:batch] if batch > 1 else images
    with quiet():
        if not prepared.exists():
            quant_pre_process(str(fp32), str(prepared))
        reader = Reader(rows) if batch == 1 else BatchReader(rows)
        quantize_static(str(prepared), str(path), reader, **settings)
    return path


class BatchReader(Reader):
    """All images as one batch, for graphs of a fixed batch size above 1."""

    def __init__(self, images: Tensor) -> None:
        self.rows = iter([images])


def modelopt_legacy(module: nn.Module, images: Tensor, path: Path, batch: int) -> Path:
    """Quantize with ModelOpt and export with the TorchScript exporter."""
    import modelopt.torch.quantization as mtq

    with quiet(), torch.no_grad():
        twin = mtq.quantize(
            copy.deepcopy(module), mtq.INT8_DEFAULT_CFG, lambda model: model(images)
        )
        torch.onnx.export(
            twin,
            (images[:1].repeat(batch, 1, 1, 1),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["input"],
            output_names=["logits"],
        )
    return path


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


def run_model(name: str, threads: int, batch: int, rounds: int) -> dict[str, Any]:
    """Write and measure all contenders of one model."""
    module: Any = make_model(name)
    size = module.pretrained_cfg["input_size"]
    images = torch.randn(max(IMAGES, batch), *size)
    x = images[:batch].numpy()
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        say(f"{name}: exporting and calibrating")
        paths = ours(module, images, folder, batch)
        fp32 = paths["fp32"]

        def attempt(contender: str, make: Callable[[Path], Path]) -> None:
            say(f"{name}: writing {contender}")
            try:
                path = make(folder / f"{contender.replace(' ', '-').replace(',', '')}.onnx")
                session(path, threads)
                paths[contender] = path
            except Exception as error:  # a peer may fail in any way; the table then says so
                failed[contender] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"

        attempt("quantize_static", lambda path: static(fp32, images, path, batch))
        known = set(paths)
        for title, settings in TUNED.items():
            attempt(title, lambda path, s=settings: static(fp32, images, path, batch, **s))  # type: ignore[misc]
        tuned = {title: path for title, path in paths.items() if title not in known}
        say(f"{name}: choosing the fastest of {len(tuned)} settings of quantize_static")
        trial = measure(tuned, x, threads, max(3, rounds // 4))[0]
        best = min(trial, key=lambda title: trial[title].median_ms)
        for title in tuned:
            del paths[title]
        paths["quantize_static tuned"] = tuned[best]
        attempt("modelopt legacy", lambda path: modelopt_legacy(module, images, path, batch))
        say(f"{name}: measuring {len(paths)} contenders, {rounds} rounds")
        timings, logits = measure(paths, x, threads, rounds)
        with torch.no_grad():
            reference = module(images[:batch]).numpy()
        rows = {
            title: {
                **figures(timing, timings["fp32"]),
                "error": float(np.abs(logits[title] - reference).max() / np.abs(reference).max()),
                "megabytes": round(paths[title].stat().st_size / 1e6, 2),
                "integer_products": integer_products(fused_ops(paths[title], threads)),
            }
            for title, timing in timings.items()
        }
    return {
        "model": name,
        "threads": threads,
        "batch": batch,
        "contenders": rows,
        "tuned_settings": best,
        "tuned_trial_ms": {title: round(t.median_ms, 3) for title, t in trial.items()},
        "failed": failed,
    }


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
        f"{'contender':24}{'median ms':>11}{'p90 ms':>9}{'x FP32':>8}{'MB':>8}{'int ops':>9}"
        f"{'error':>10}  settled",
    ]
    for title, row in result["contenders"].items():
        lines.append(
            f"{title:24}{row['median_ms']:11.2f}{row['p90_ms']:9.2f}{row['ratio']:8.2f}"
            f"{row['megabytes']:8.1f}{row['integer_products']:9d}{row['error']:10.1e}  "
            f"{'yes' if row['settled'] else 'no'}"
        )
    lines.append(f"tuned = {result['tuned_settings']}")
    lines += [f"{title} failed: {reason}" for title, reason in result["failed"].items()]
    return "\n".join(lines)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20, help="samples of each contender")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    results = []
    for name in chosen.models:
        results.append(run_model(name, chosen.threads, chosen.batch, chosen.rounds))
        if not chosen.json:
            print(table(results[-1]), end="\n\n", flush=True)
    if chosen.json:
        versions = {"onnxruntime": ort.__version__, "torch": torch.__version__}
        report = {"machine": describe_machine(), "versions": versions, "results": results}
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
