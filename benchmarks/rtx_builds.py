"""What TensorRT-RTX's builder accepts: every family, in every precision, for every GPU.

    python benchmarks/rtx_builds.py [--families NAME ...] [--sm N ...] [--json]

A tiny network of each family (the largest of a small space, random weights, BatchNorm folded) is
exported at opset 20 in FP32, FP16 and strongly typed INT8 (FP16 with Q/DQ), and built ahead of time
with ``SPARSE_WEIGHTS``. *accepted* says that the builder took the graph; nothing was run, so no
kernel is known. Seconds are those of parsing and building, on this machine's CPU.

Each build has a process of its own: after it refused a graph for one GPU, the builder of 1.7.1 may
refuse the same graph for another that it would have accepted (ConvNeXt V2 in FP32 behind sm_75).

Progress goes to stderr; ``--json`` prints one JSON document on stdout instead of the table. Exits
with 3 where something was refused.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from int8_models import RandomSplit
from torch import Tensor, nn

from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.elastic import Supernet, extract
from elastic_export.elastic.fold import fold_batchnorm
from elastic_export.engine.builder import BuildOptions, EngineBuilder
from elastic_export.errors import CheckFailed, ElasticExportError
from elastic_export.export import emit, emit_fp16, export_fp32
from elastic_export.families import get_family
from elastic_export.families.registry import families, family_config
from elastic_export.quantize.calibrate import calibrate

SMS = (80, 86, 89, 120)
PRECISIONS = ("fp32", "fp16", "int8")
IMAGES = 4

_VIT = {"image_size": 32, "patch_size": 8, "num_classes": 10, "width": [32], "depth": [2]}
_STEM = {"stem_depth": [1], "stem_channels": [16], "head_dim": 16, "head_expand": 2}
_TOKENS = [{"depth": [2], "channels": [32]}, {"depth": [1], "channels": [48]}]
_BLOCK = {"width": [16, 32], "depth": [1], "kernel_size": [3, 5], "stride": 2}
_LEVEL = {"embed": 32, "inner": 32, "hidden": 64}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit", {**_VIT, "heads": [2], "mlp_ratio": [2.0]}),
    "swin": (
        "swin",
        {
            "image_size": 32,
            "patch_size": 2,
            "num_classes": 10,
            "width": [32],
            "window": 4,
            "stages": [{"depth": [2], "heads": [h], "mlp_ratio": [2.0]} for h in (2, 4)],
        },
    ),
    "autoformer": (
        "autoformer",
        {
            **_VIT,
            "super_width": 128,
            "super_depth": 2,
            "super_heads": 2,
            "super_mlp_ratio": 2.0,
            "heads": [1],
            "mlp_ratio": [2.0],
            "max_relative_position": 2,
        },
    ),
    "elasticvit": (
        "elasticvit",
        {
            **_STEM,
            "image_size": 64,
            "resolution": [64],
            "num_classes": 10,
            "head_hidden": 32,
            "dropout": 0.0,
            "stages": [
                {"kind": "C", "depth": [2], "channels": [16], "ratio": [2], "kernel": [3]},
                {
                    "kind": "C",
                    "depth": [1],
                    "channels": [32],
                    "ratio": [2],
                    "kernel": [3],
                    "se": True,
                },
                *({"kind": "T", **each} for each in _TOKENS),
            ],
        },
    ),
    "alphanet": (
        "alphanet",
        {
            "image_size": 48,
            "resolution": [48],
            "num_classes": 10,
            "stem": [16],
            "stages": [
                {**_BLOCK, "expand_ratio": [1], "stride": 1, "se": False},
                {**_BLOCK, "expand_ratio": [4], "se": True},
            ],
            "head": [64],
        },
    ),
    "convnext": (
        "convnext",
        {
            "image_size": 32,
            "num_classes": 10,
            "stages": [{"depth": [2], "width": [w], "mlp_ratio": [2.0]} for w in (32, 48)],
        },
    ),
    "convnext v2": (
        "convnext",
        {
            "image_size": 32,
            "num_classes": 10,
            "layer_scale": False,
            "grn": True,
            "stages": [{"depth": [1], "width": [w], "mlp_ratio": [2.0]} for w in (32, 48)],
        },
    ),
    "resnet": (
        "resnet",
        {
            "image_size": 32,
            "num_classes": 10,
            "stem": [32],
            "stages": [{"depth": [2], "width": [w], "expand": [0.5]} for w in (64, 128)],
        },
    ),
    "vgg": (
        "vgg",
        {
            "image_size": 32,
            "num_classes": 10,
            "cfg": [16, "M", 32, 64, "M"],
            "norm": True,
            "pool": 2,
            "fc": [64],
        },
    ),
    "ofa_mbv3": (
        "ofa_mbv3",
        {"resolution": [48], "num_classes": 10, "width_mult": 0.25, "depth_list": [1, 2]},
    ),
    "ofa_resnet50d": (
        "ofa_resnet50d",
        {"resolution": [48], "num_classes": 10, "width_mult_list": [0.125]},
    ),
    "nested vit": (
        "nested",
        {
            "image_size": 32,
            "num_classes": 10,
            "network": {"arch": "vit", "patch_size": 8, "depth": 2},
            "levels": [{"sizes": _LEVEL, "heads": 2}],
        },
    ),
    "nested resnet": (
        "nested",
        {
            "image_size": 32,
            "num_classes": 10,
            "network": {
                "arch": "resnet",
                "block": "basic",
                "depths": [2, 1],
                "shortcuts": ["layer2.0"],
            },
            "levels": [{"sizes": {"stem": 16, "inner1": 16, "out": 32}}],
        },
    ),
    "nested vgg": (
        "nested",
        {
            "image_size": 20,
            "num_classes": 10,
            "network": {"arch": "vgg", "forms": [{"plan": "CCMC"}], "fc": [32], "pool": 7},
            "levels": [{"sizes": {"conv0": 16, "conv1": 16, "conv2": 32}}],
        },
    ),
}
"""Networks by name: the family and its settings. Every family has one."""


def network(name: str) -> tuple[nn.Module, Tensor]:
    """Make a network with numbers everywhere, and images for it."""
    family_name, raw = CONFIGS[name]
    family = get_family(family_name)
    config = family_config(family, raw)
    supernet = Supernet.create(family, config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, tensor in supernet.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator) * 0.1
                tensor.add_(noise.abs() if "var" in key else noise)
    spec = supernet.space.max()
    module = extract(supernet, spec).module.eval()
    fold_batchnorm(module, family.fold_pairs(module))
    shape = family.input_shape(config, spec)
    return module, torch.randn(IMAGES, *shape, generator=generator)


def write(name: str, folder: Path) -> dict[str, Path]:
    """Write a network in every precision."""
    module, images = network(name)
    exported = export_fp32(module, images[:1], folder / "fp32.onnx", opset=20)
    emit_fp16(exported.path, folder / "fp16.onnx")
    recipe = CalibrationRecipe(name="benchmark", images=IMAGES, batch_size=1)
    record = calibrate(module, RandomSplit(images), recipe)
    emit("trt-strong", exported.path, exported.table, record, folder / "int8.onnx")
    return {precision: folder / f"{precision}.onnx" for precision in PRECISIONS}


def build(path: Path, sm: int) -> dict[str, Any]:
    """Build one file, and say what the builder said."""
    builder = EngineBuilder("tensorrt-rtx")
    try:
        report = builder.build(path, path.with_suffix(".engine"), BuildOptions(sparse=True, sm=sm))
    except CheckFailed as error:
        return {"status": "refused", "reason": error.what}
    return {"status": report.status, "seconds": round(report.seconds, 2), "bytes": report.bytes}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--sm", type=int, nargs="+", default=list(SMS))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    missing = set(families()) - {family for family, _ in CONFIGS.values()}
    if missing:
        parser.error(f"no tiny network is given of {', '.join(sorted(missing))}")
    rows: list[dict[str, Any]] = []
    try:
        builder = EngineBuilder("tensorrt-rtx")
        with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as alone:
            for name in asked.families:
                print(f"{name} ...", file=sys.stderr, flush=True)
                with tempfile.TemporaryDirectory(prefix="rtx-builds-") as folder:
                    for precision, path in write(name, Path(folder)).items():
                        for sm in asked.sm:
                            place = {"network": name, "precision": precision, "sm": sm}
                            rows.append(place | alone.apply(build, (path, sm)))
    except ElasticExportError as error:
        print(f"{error.what} {error.fix}", file=sys.stderr)
        return error.exit_code
    if asked.json:
        print(json.dumps({"version": builder.version, "builds": rows}, indent=1))
    else:
        show(builder.version, rows, asked.sm)
    return 3 if any(row["status"] == "refused" for row in rows) else 0


def show(version: str, rows: list[dict[str, Any]], sms: list[int]) -> None:
    """Print a line for each network and precision, and below it why something was refused."""
    print(f"TensorRT-RTX {version}: seconds to build, or 'refused'")
    print(f"{'network':14}{'precision':>10}" + "".join(f"{f'sm_{sm}':>10}" for sm in sms))
    found = {(row["network"], row["precision"], row["sm"]): row for row in rows}
    for name, precision in dict.fromkeys((row["network"], row["precision"]) for row in rows):
        cells = [found[name, precision, sm] for sm in sms]
        print(
            f"{name:14}{precision:>10}"
            + "".join(f"{cell.get('seconds', 'refused'):>10}" for cell in cells)
        )
        for reason in dict.fromkeys(cell["reason"] for cell in cells if "reason" in cell):
            print(f"    {reason}")
    accepted = sum(row["status"] == "accepted" for row in rows)
    print(f"{accepted} of {len(rows)} accepted")


if __name__ == "__main__":
    sys.exit(main())
