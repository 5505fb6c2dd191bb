"""The export and compile stages: ONNX flavours proven equal to torch, engines where possible."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from elastic_export.artifacts.store import Artifact
from elastic_export.config.target import Flavour, Precision
from elastic_export.config.targets import ResolvedTarget
from elastic_export.elastic import Descendant
from elastic_export.engine import tensorrt_rtx
from elastic_export.errors import CheckFailed
from elastic_export.export import (
    Exported,
    ExportTable,
    check_activations,
    check_finite,
    check_half_range,
    check_no_weight_slices,
    check_opset,
    check_parity,
    check_pattern_onnx,
    clipped_shares,
    emit,
    emit_fp16,
    export_fp32,
    fused_ops,
)
from elastic_export.export.lint import check_lint
from elastic_export.export.lowering import lower_file
from elastic_export.export.reference import rounded_like
from elastic_export.pipeline.extracting import cost_of
from elastic_export.pipeline.flow import Flow
from elastic_export.pipeline.quantizing import record_for, weights_change
from elastic_export.pipeline.workshop import Workshop
from elastic_export.progress import Progress
from elastic_export.quantize.placement import placement_rules
from elastic_export.quantize.record import AttentionPrecision, QuantizationRecord

__all__ = [
    "CHECKS",
    "OPSET",
    "TOLERANCE",
    "File",
    "compile_engines",
    "export",
    "file_for",
    "files_for",
    "lint_for",
    "write_files",
]

OPSET = 20
CHECKS = "checks.json"
DENSE, LEAN, TUNED = "dense", "sparse", "tuned"
_TOOLS = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime")
_PARITY_IMAGES = 16

# Largest difference of a logit relative to the largest logit, by precision. FP32 is float rounding;
# FP16 has eleven bits; an INT8 graph may round single values the other way than torch does, and
# each such step travels through the layers behind it.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 1e-1}


@dataclass(frozen=True)
class File:
    """One ONNX file: which weights it holds, its precision and its flavour.

    ``opset`` and ``lacks`` are those of the runtime that reads it.
    """

    weights: str
    precision: str
    flavour: Flavour
    opset: int = OPSET
    lacks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name: ``sparse.int8.ort-cpu.onnx``; older opsets are named in it."""
        form = f"{self.weights}.{self.precision}.{self.flavour}"
        if self.opset != OPSET:
            form += f".opset{self.opset}"
        return ".".join([form, *(f"no-{op.lower()}" for op in self.lacks), "onnx"])


def files_for(shop: Workshop, target: ResolvedTarget) -> dict[str, File]:
    """The files a target gets, by precision.

    FP32 is the dense network, the yardstick; FP16 and INT8 hold the sparse weights where the
    recipe makes some, and INT8 those of the quantize stage where that changes them.
    """
    recipe = shop.recipe
    lean = LEAN if recipe.sparsify is not None else DENSE
    weights = {"fp32": DENSE, "fp16": lean, "int8": TUNED if weights_change(recipe) else lean}
    found: dict[str, File] = {}
    for precision in target.flavours:
        if precision == "int8" and recipe.quantize is None:
            continue
        found[precision] = file_for(target, precision, weights[precision])
    return found


def file_for(target: ResolvedTarget, precision: Precision, weights: str) -> File:
    """The form in which a target's runtime reads one precision.

    Where the builder chooses FP16 by itself (weak typing), its file is the plain FP32 one.
    """
    flavour = target.flavours[precision]
    software = target.software
    inside = precision if flavour != "plain" or _is_strong(target) else "fp32"
    return File(weights, inside, flavour, min(OPSET, software.max_opset), software.lacks)


def _is_strong(target: ResolvedTarget) -> bool:
    return "trt-strong" in target.flavours.values()


def export(
    flow: Flow,
    shop: Workshop,
    name: str,
    sources: dict[str, Artifact | None],
    record: Artifact | None,
    targets: list[ResolvedTarget],
) -> Artifact | None:
    """Write every file the targets need, each checked before it is kept.

    Args:
        flow: The store and the plan.
        shop: The recipe and what is loaded.
        name: The descendant's name.
        sources: ``dense`` and, where made, ``sparse`` and ``tuned`` descendants.
        record: The quantize stage's, of the last of them.
        targets: All targets of the recipe.
    """
    files = {file for target in targets for file in files_for(shop, target).values()}
    files |= {File(weights, "fp32", "plain") for weights in sources}
    wanted = sorted(files, key=lambda file: file.name)
    attention = shop.recipe.quantize.attention if shop.recipe.quantize is not None else "float"
    config = {
        "files": [file.name for file in wanted],
        "batch_size": shop.recipe.measure.batch_size,
        "sample": shop.data_digests["search"],
        "attention": attention,
        "rules": placement_rules(),
        "targets": {target.identity: target.software for target in targets},
    }
    quantized = any(file.precision == "int8" for file in wanted)
    inputs = [*sources.values(), *([record] if quantized else [])]

    def make(folder: Path, work: Path) -> dict[str, Any]:
        loaded = {
            weights: shop.descendant(artifact)
            for weights, artifact in sources.items()
            if artifact is not None
        }
        records = None if record is None else partial(record_for, record)
        batch = shop.recipe.measure.batch_size
        count = max(batch, _PARITY_IMAGES // batch * batch)
        genes = next(iter(loaded.values())).genes
        x = next(iter(shop.data_of(genes).search.head(count).batches(count)))[0]
        shop.progress.start(f"export {name}", len(wanted))
        checks: dict[str, dict[str, Any]] = {}
        try:
            for weights, one in loaded.items():
                some = [file for file in wanted if file.weights == weights]
                checks |= write_files(
                    folder, one, some, records, x, batch, shop.progress, attention=attention
                )
        finally:
            shop.progress.finish()
        for target in targets:
            for file in files_for(shop, target).values():
                checks[file.name].setdefault("lint", {}).update(lint_for(folder, file, target))
        (folder / CHECKS).write_text(json.dumps(checks, indent=1, sort_keys=True))
        lean = loaded[LEAN if LEAN in loaded else DENSE]
        return {"files": len(checks), "cost": cost_of(lean, *x.shape[1:3]).model_dump()}

    return flow.do("export", name, config=config, inputs=inputs, make=make, tools=_TOOLS)


def lint_for(folder: Path, file: File, target: ResolvedTarget) -> dict[str, list[dict[str, Any]]]:
    """Hold a written file against what a target's parser takes.

    Returns:
        The target to what is slower there, or good to know.

    Raises:
        CheckFailed: The target refuses the file.
    """
    found = check_lint(
        folder / file.name, target.software, target=target.identity, device=target.target
    )
    return {target.identity: [finding.to_json() for finding in found]}


def write_files(
    folder: Path,
    one: Descendant,
    files: list[File],
    records: Callable[[str], QuantizationRecord] | None,
    x: Tensor,
    batch_size: int,
    progress: Progress,
    give_up: Callable[[File, CheckFailed], None] | None = None,
    *,
    attention: AttentionPrecision = "float",
) -> dict[str, dict[str, Any]]:
    """Write and check the files of one set of weights; the plain one first, the rest from it.

    Args:
        folder: Where to write.
        one: The descendant, folded.
        files: What to write, the plain FP32 file at the newest opset among them.
        records: The descendant's quantization record by flavour, where an INT8 file is wanted.
        x: Images for the parity check (n, C, H, W), n a multiple of ``batch_size``.
        batch_size: The fixed batch of the graphs.
        progress: One step a file.
        give_up: Told of each further file whose check fails, which is then left out; without it,
            a failed check ends the export.
        attention: The form of the attention products in INT8 files.

    Returns:
        File name to what each check found.

    Raises:
        CheckFailed: A post-condition does not hold.
    """
    checks: dict[str, dict[str, Any]] = {}
    plain = next(f for f in files if (f.flavour, f.opset, f.lacks) == ("plain", OPSET, ()))
    exported = export_fp32(one.module, x[:batch_size], folder / plain.name, opset=OPSET)
    for file in [plain, *(f for f in files if f is not plain)]:
        try:
            told = _write(folder, one, file, exported, records, x, attention)
            checks[file.name] = {"batch_size": batch_size} | told
        except CheckFailed as error:
            if give_up is None or file is plain:
                raise
            (folder / file.name).unlink(missing_ok=True)
            give_up(file, error)
        progress.advance(note=file.name)
    return checks


def _write(
    folder: Path,
    one: Descendant,
    file: File,
    exported: Exported,
    records: Callable[[str], QuantizationRecord] | None,
    x: Tensor,
    attention: AttentionPrecision,
) -> dict[str, Any]:
    """Write one file, which the plain one may be already, and check it."""
    path, images = folder / file.name, x.numpy()
    reference: nn.Module = one.module
    told: dict[str, Any] = {}
    form: dict[str, Any] = {"opset": file.opset, "without": file.lacks}
    if file.precision == "fp16" or file.flavour == "trt-strong":
        told["half"] = check_half_range(exported.path, images)
    if file.precision == "fp16":
        emit_fp16(exported.path, path, **form)
    elif file.precision == "int8":
        assert records is not None
        assert file.flavour != "plain"
        record = records(file.flavour)
        form["attention"] = attention
        report = emit(file.flavour, exported.path, exported.table, record, path, **form)
        told |= {"int8_layers": len(report.int8), "float_layers": report.kept_float}
        told["clipped"] = _most_clipped(exported, record, file.flavour, images, attention)
        reference = rounded_like(one.module, record, file.flavour, attention=attention)
    elif path != exported.path:
        lower_file(exported.path, path, **form)
    return told | _check(path, file, one, reference, x, exported.table)


def _most_clipped(
    exported: Exported,
    record: QuantizationRecord,
    flavour: str,
    images: np.ndarray,
    attention: AttentionPrecision,
) -> dict[str, Any]:
    """The share of values beyond its range at the site that clips most."""
    shares = clipped_shares(
        exported.path, exported.table, record, flavour, images, attention=attention
    )
    (module, role), share = max(shares.items(), key=lambda item: item[1])
    return {"share": share, "module": module, "role": role}


def _check(
    path: Path,
    file: File,
    one: Descendant,
    reference: nn.Module,
    x: Tensor,
    table: ExportTable,
) -> dict[str, Any]:
    images = x.numpy()
    with torch.no_grad():
        logits: np.ndarray = reference(x).numpy()
    parity = partial(check_parity, module=reference, table=table)
    found = {
        "opset": check_opset(path, file.opset),
        "finite": check_finite(path),
        "activations": check_activations(path, images),
        "no_weight_slices": check_no_weight_slices(path),
        "parity": parity(path, images, logits, TOLERANCE[file.precision]),
        "bytes": path.stat().st_size,
    }
    if one.patterns:
        found["patterns"] = check_pattern_onnx(path, table, one.patterns)
    if file.flavour == "ort-cpu":
        found["fused_ops"] = fused_ops(path)
    return found


def compile_engines(
    flow: Flow,
    shop: Workshop,
    name: str,
    exported: Artifact | None,
    target: ResolvedTarget,
) -> Artifact | None:
    """Build engines for a TensorRT-RTX target, where the package is installed.

    Targets with the same compute capability share their engines.
    """
    if target.software.runtime != "tensorrt-rtx" or tensorrt_rtx.available() is None:
        return None
    files = files_for(shop, target)
    sm = target.target.sm
    assert sm is not None  # every gpu target has one

    def make(folder: Path, work: Path) -> dict[str, Any]:
        assert exported is not None
        paths = {precision: exported.path / file.name for precision, file in files.items()}
        return tensorrt_rtx.build_all(paths, folder, sm=sm, progress=shop.progress)

    config = {"sm": sm, "files": {precision: file.name for precision, file in files.items()}}
    return flow.do(
        "compile",
        f"{name} sm_{sm}",
        config=config,
        inputs=[exported],
        make=make,
        tools=["tensorrt-rtx"],
    )
