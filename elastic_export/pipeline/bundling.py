"""Put one descendant's files for one target into a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from elastic_export.artifacts import provenance
from elastic_export.config.result import Accuracy
from elastic_export.config.targets import ResolvedTarget
from elastic_export.config.transform import Transform
from elastic_export.elastic import Descendant
from elastic_export.engine.bundle import sample_file, trtexec_script, write_bundle
from elastic_export.engine.device_plan import PLAN, Graph, device_plan
from elastic_export.engine.sidecar import sidecar_of
from elastic_export.export.lowering import pinned_nodes
from elastic_export.measure.board.compose import SCRIPT, compose
from elastic_export.pipeline.exporting import TOLERANCE, File
from elastic_export.pipeline.extracting import cost_of

__all__ = ["Content", "bundle", "executed_macs"]

_TF32 = 80
"""The first compute capability (times ten) with TF32."""


@dataclass(frozen=True)
class Content:
    """What goes into a bundle beside the descendant and the target.

    Attributes:
        paths: Precision to ONNX file.
        files: Precision to what the file is.
        samples: ``input`` and, by file name, logits.
        engines: Precision to engine file.
        reports: Precision to what the builder said.
        accuracy: Precision to measured accuracy.
        checks: Precision to what the export's checks found.
        sparse: The precisions whose files hold the descendant's N:M weights; FP32 may be dense.
    """

    paths: Mapping[str, Path]
    files: Mapping[str, File]
    samples: Mapping[str, np.ndarray]
    checks: Mapping[str, Any]
    accuracy: Mapping[str, Accuracy] = field(default_factory=dict)
    engines: Mapping[str, Path] = field(default_factory=dict)
    reports: Mapping[str, Any] = field(default_factory=dict)
    sparse: frozenset[str] = frozenset()


def bundle(
    folder: Path,
    name: str,
    one: Descendant,
    target: ResolvedTarget,
    transform: Transform,
    content: Content,
    *,
    chosen: str | None,
    notes: list[str],
) -> dict[str, str]:
    """Write the bundle.

    Returns:
        Precision to the model's file name in the bundle.
    """
    models = {precision: f"model.{precision}.onnx" for precision in content.files}
    inputs = content.samples["input"]
    logits = {p: content.samples[file.name] for p, file in content.files.items()}
    files: dict[str, Path | bytes] = {models[p]: content.paths[p] for p in models}
    files |= {f"model.{p}.engine": path for p, path in content.engines.items()}
    files |= {f"model.{p}.engine.json": sidecar_of(path) for p, path in content.engines.items()}
    files["sample.safetensors"] = sample_file(inputs, logits)
    files[SCRIPT] = compose().encode()
    if target.build_on == "device":
        graphs = {
            p: Graph.on(
                target,
                p,
                sparse=p in content.sparse,
                pins=() if target.strongly_typed else pinned_nodes(content.paths[p]),
            )
            for p in models
        }
        files[PLAN] = device_plan(graphs)
        version = target.software.runtime_version
        for precision, graph in graphs.items():
            script = trtexec_script(models[precision], version=version, **asdict(graph))
            files[f"build_engine_{precision}.sh"] = script.encode()
    classes = next(iter(logits.values())).shape[1]
    batch = int(next(iter(content.checks.values()))["batch_size"])
    write_bundle(
        folder,
        manifest_fields={
            "name": name,
            "target": target.identity,
            "runtime": {
                "name": target.software.runtime,
                "version": _runtime_version(target),
            },
            "models": models,
            "chosen": chosen,
            "descendant": {
                "family": one.family,
                "config": one.config,
                "genes": one.genes,
                "spec_id": one.spec_id,
                "patterns": one.patterns,
                "batchnorm_folded": one.folded,
                "sparse_files": sorted(content.sparse),
                "cost": cost_of(one, *inputs.shape[1:3]).model_dump(),
                "executed_macs": executed_macs(one, target, content),
            },
            "inputs": [_port("input", (batch, *inputs.shape[1:]))],
            "outputs": [_port("logits", (batch, classes))],
            "transform": transform,
            "sample": {
                "file": "sample.safetensors",
                "images": len(inputs),
                "tolerance": {p: _tolerance(p, target) for p in content.files},
            },
            "accuracy": dict(content.accuracy),
            "checks": dict(content.checks),
            "engines": dict(content.reports),
            "versions": provenance.versions(),
            "notes": notes,
        },
        files=files,
    )
    return models


def executed_macs(one: Descendant, target: ResolvedTarget, content: Content) -> dict[str, int]:
    """MACs that the target computes of one image, by precision: zeros in a file may be skipped."""
    cost = cost_of(one, *content.samples["input"].shape[1:3])
    skips = content.sparse if target.target.sparse_2_4 else frozenset()
    return {p: cost.hardware_macs if p in skips else cost.macs for p in content.files}


def _tolerance(precision: str, target: ResolvedTarget) -> float:
    """How far logits may differ by what the device computes in, whatever the file holds.

    A builder makes FP16 of an FP32 file where it is told so. From compute capability 8.0 on
    TensorRT multiplies FP32 as TF32, with the ten bits of FP16's mantissa, unless it is told not to
    (NVIDIA's documentation of ``BuilderFlag.TF32``).
    """
    tensor_cores = target.software.runtime != "onnxruntime" and (target.target.sm or 0) >= _TF32
    return TOLERANCE["fp16" if tensor_cores and precision == "fp32" else precision]


def _port(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "dtype": "float32", "shape": list(shape)}


def _runtime_version(target: ResolvedTarget) -> str:
    """The version on this machine where that is the target, else the one its profile names."""
    here = provenance.version("onnxruntime") if target.target.kind == "host" else None
    return here or target.software.runtime_version
