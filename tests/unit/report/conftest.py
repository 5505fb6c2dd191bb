"""A result as a build leaves it, in all the sizes and with all the gaps a report must bear."""

from __future__ import annotations

import pytest

from elastic_export.config.result import (
    Accuracy,
    BuildResult,
    BundleResult,
    Cost,
    DescendantResult,
    Latency,
    LatencyEstimate,
)

MACHINE = {
    "cpu": "Imaginary Xeon 9000",
    "cores": 2,
    "threads": 2,
    "isa": ["avx2", "avx512_vnni"],
    "memory_gb": 15.6,
    "os": "Some Linux 9",
    "arch": "x86_64",
    "python": "3.11.7",
}


def accuracy(top1, how="deployed"):
    return Accuracy(top1=top1, images=360, split="test", runner="onnxruntime", how=how)


def latency(precision, median, settled=True):
    return Latency(
        runner="onnxruntime",
        precision=precision,
        batch_size=1,
        threads=1,
        median_ms=median,
        p90_ms=median * 1.04,
        p99_ms=median * 1.19,
        cov=0.031,
        samples=12,
        runs=2400,
        settled=settled,
        machine=MACHINE,
    )


def host_bundle(name, top1, int8, fp32_ms, macs, with_int8, with_latency, settled):
    files = {"fp32": "model_fp32.onnx"}
    sizes = {"fp32": 40_000 + macs // 10}
    found = {"fp32": accuracy(top1)}
    timed = {"fp32": latency("fp32", fp32_ms)} if with_latency else {}
    chosen, because = "fp32", "fp32 is the only one measured."
    if with_int8:
        files["int8"] = "model_int8.onnx"
        sizes["int8"] = int(sizes["fp32"] * 0.31)
        found["int8"] = accuracy(int8)
        if with_latency:
            timed["int8"] = latency("int8", fp32_ms / 1.6, settled)
            chosen = "int8"
            because = "int8 runs at 1.60x the speed of fp32 (95 % interval 1.57-1.63x)."
    return BundleResult(
        target="host-cpu",
        folder=f"bundles/{name}/host-cpu",
        files=files,
        bytes=sizes,
        accuracy=found,
        latency=timed,
        chosen=chosen if with_latency else None,
        chosen_because=because if with_latency else "",
        checks={precision: checks(precision) for precision in files},
    )


def checks(precision):
    """What the export stage writes of a file, in its form."""
    error, tolerance = {"fp32": (3.1e-7, 1e-4), "int8": (2.2e-3, 1e-1)}[precision]
    found = {
        "opset": {"opset": 20, "max_opset": 20},
        "parity": {"relative_error": error, "tolerance": tolerance, "top1_agreement": 1.0},
        "activations": {"largest": 6.63, "largest_at": 'Gemm "head"', "values": 36},
        "lint": [],
    }
    if precision == "int8":
        found |= {
            "int8_layers": 15,
            "fused_ops": {"Add": 4, "QLinearMatMul": 16, "MatMulIntegerToFloat": 1},
            "float_layers": {"patch_embed.proj": "It reads an image."},
            "clipped": {"share": 5.7e-5, "module": "blocks.0.mlp.fc1", "role": "input"},
            "patterns": {f"blocks.{i}.mlp.fc1.weight": {"pattern": "2:4"} for i in range(16)},
        }
    return found


def gpu_bundle(name, int8, macs):
    engine = {
        "status": "accepted",
        "runtime": "TensorRT-RTX",
        "version": "1.7.1.116",
        "sm": 86,
        "seconds": 2.41,
        "bytes": 912_331,
        "layers": 47,
        "message": "",
    }
    return BundleResult(
        target="rtx-a6000",
        folder=f"bundles/{name}/rtx-a6000",
        files={"fp16": "model_fp16.onnx", "int8": "model_int8.onnx"},
        bytes={"fp16": 21_000 + macs // 20, "int8": 14_000 + macs // 33},
        accuracy={"int8": accuracy(int8, "emulated")},
        engines={"fp16": engine | {"seconds": 1.9}, "int8": engine},
        checks={"int8": checks("int8")},
        estimate={
            "int8": LatencyEstimate(
                ms=0.5, low_ms=0.375, high_ms=0.665, basis="fitted to 66 published figures"
            )
        },
        notes=("No device of this kind is here: the engine was accepted by the builder, not run.",),
    )


BOARD = {"model": "Imaginary Orin", "power_mode": "15W", "tensorrt": "10.3.0"}


def measured_jetson(name, top1, ms, unsettled=False, marks=("unpinned",)):
    """A board's figures, with all that only a board has."""

    def timed(precision, median):
        figures = latency(precision, median).model_dump()
        own = {
            "runner": "TensorRT 10.3.0",
            "on": "user@orin",
            "compute_ms": median * 0.9,
            "energy_mj": median * 11.0,
            "energy_is": "net of idle",
            "marks": marks,
            "machine": BOARD,
            "settled": not unsettled,
            "unsettled_because": "only 70 % of the samples lie within 5 % of the median"
            if unsettled
            else "",
        }
        return Latency(**{**figures, **own})

    built = {
        "status": "built",
        "runtime": "TensorRT",
        "version": "10.3.0",
        "layers": 31,
        "int8_layers": 12,
        "fused_attention": 2,
        "eligible_sparse": ["a", "b", "c"],
        "picked_sparse": ["a"],
    }
    precisions = ("fp32", "fp16", "int8")
    return BundleResult(
        target="orin-nano-8gb@jp6.2:15W",
        folder=f"bundles/{name}/orin-nano-8gb@jp6.2-15W",
        files={p: f"model.{p}.onnx" for p in precisions},
        bytes=dict.fromkeys(precisions, 31_000),
        accuracy={p: accuracy(top1, "emulated") for p in precisions},
        latency={
            "fp32": timed("fp32", ms),
            "fp16": timed("fp16", ms / 2),
            "int8": timed("int8", ms / 2.5),
        },
        chosen="int8",
        chosen_because="int8 runs at 1.25x the speed of fp16.",
        engines=dict.fromkeys(precisions, built),
    )


def jetson_bundle(name, int8):
    return BundleResult(
        target="orin-nano-8gb",
        folder=f"bundles/{name}/orin-nano-8gb",
        files={"int8": "model_int8.onnx"},
        bytes={"int8": 31_000},
        accuracy={"int8": accuracy(int8, "emulated")},
        notes=("Jetson engines are built on the board: run build_engine.sh there.",),
    )


def build(
    count=5,
    *,
    int8=True,
    sparse=True,
    latencies=True,
    unsettled=(),
    names=None,
    gpu=True,
    bundles=True,
    board=False,
) -> BuildResult:
    descendants = []
    for index in range(count):
        share = (index + 1) / count
        name = names[index] if names else f"d{index + 1}"
        macs = int(300_000 * 12**share)
        top1 = 94.2 + 3.9 * share**0.6
        half = int(macs * 0.58) if sparse else macs
        found = {"fp32": accuracy(top1)}
        if sparse:
            found["2:4"] = accuracy(top1 - 0.6)
        if int8:
            found["int8"] = accuracy(top1 - 0.85 + 0.2 * (index % 2))
        own = ()
        if bundles:
            fp32_ms = 0.11 + macs / 9e6
            own = (
                host_bundle(
                    name, top1, top1 - 0.9, fp32_ms, macs, int8, latencies, index not in unsettled
                ),
            )
            if gpu and int8:
                own += (gpu_bundle(name, top1 - 0.8, macs), jetson_bundle(name, top1 - 0.8))
        if board:
            own = (measured_jetson(name, top1 - 0.9, 2.0 + macs / 1e6), *own)
        descendants.append(
            DescendantResult(
                name=name,
                spec_id=f"{index:012x}",
                spec={"dim": 32 + 8 * (index % 5), "depth": 2 + index % 3, "heads": [2, 2]},
                cost=Cost(macs=macs, algorithmic_macs=half, hardware_macs=half, params=macs // 11),
                accuracy=found,
                search_accuracy=top1 - 1.0,
                bundles=own,
            )
        )
    return BuildResult(
        name="digits",
        created="2026-01-02T03:04:05Z",
        recipe={
            "schema_version": 1,
            "name": "digits",
            "model": {"family": "vit", "config": {"dim": [32, 48, 64]}},
            "targets": ["host-cpu", "rtx-a6000", "orin-nano-8gb"],
        },
        machine=MACHINE,
        versions={"elastic-export": "0.1.0", "torch": "2.9.0", "onnxruntime": "1.22.0"},
        dataset={"name": "digits", "num_classes": 10, "train": 1237, "search": 200, "test": 360},
        supernet={"family": "vit", "macs_min": 300_000, "macs_max": 3_600_000, "specs": 10**6},
        descendants=tuple(descendants),
        stages=(
            {"stage": "train", "seconds": 61.2, "cached": False},
            {"stage": "search", "seconds": 8.4, "cached": True},
            {"stage": "measure", "seconds": 12.0, "cached": False},
        ),
        wall_seconds=128.4,
    )


@pytest.fixture
def make_result():
    return build
