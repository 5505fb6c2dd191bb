"""Export by itself, for people who do not want the whole flow."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from elastic_export.config.loader import load_calibration
from elastic_export.config.recipe import DataConfig
from elastic_export.config.result import Accuracy
from elastic_export.config.targets import ResolvedTarget, load_target
from elastic_export.data import Dataset, top1
from elastic_export.elastic import Descendant
from elastic_export.engine import tensorrt_rtx
from elastic_export.engine.runners import OrtRunner
from elastic_export.errors import CheckFailed, UserError
from elastic_export.pipeline.bundling import Content, bundle
from elastic_export.pipeline.exporting import (
    DENSE,
    TUNED,
    File,
    file_for,
    lint_for,
    write_files,
)
from elastic_export.pipeline.inputs import assumed_transform, dataset_for, open_descendant
from elastic_export.pipeline.measuring import how, predictor
from elastic_export.pipeline.result import target_notes
from elastic_export.progress import Progress, no_progress
from elastic_export.quantize.calibrate import calibrate
from elastic_export.quantize.record import QuantizationRecord
from elastic_export.quantize.smooth import smooth

__all__ = ["export_one"]

_PARITY_IMAGES = 16
_SAMPLES = 4


def export_one(
    descendant: Path,
    *,
    target: str,
    out: Path,
    data: DataConfig | None = None,
    calibration: str = "max",
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Export one descendant as a bundle for one target.

    Without ``data`` there is nothing to calibrate on or to measure accuracy with: the bundle then
    holds the floating-point files alone, and its sample is random.

    Args:
        descendant: What :func:`extract_one` wrote.
        target: ``NAME[+dla][@SOFTWARE[:MODE]]`` or a file.
        out: Where the bundle goes, as ``NAME/TARGET``.
        data: The data set, for INT8 and accuracy.
        calibration: The calibration recipe.
        progress: Told of everything that takes time.

    Returns:
        What was written: folder, files, accuracies, checks.

    Raises:
        UserError: An input cannot be used.
        CheckFailed: A post-condition of the export does not hold.
    """
    place = load_target(target)
    one, family, config, spec = open_descendant(descendant)
    shape = family.input_shape(config, spec)
    if data is None:
        dataset, transform = None, assumed_transform(family, config, spec)
    else:
        dataset = dataset_for(family, config, spec, data)
        transform = dataset.transform
    tuned, record = one, None
    if dataset is not None and "int8" in place.flavours:
        tuned, record = _quantized(one, dataset, calibration, progress)
    files = _files(place, record, TUNED if tuned is not one else DENSE)
    name = descendant.name.removesuffix(".safetensors")
    folder = out / name / place.identity.replace(":", "-")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as draft:
        notes: list[str] = []
        weights = {DENSE: one, TUNED: tuned} if tuned is not one else {DENSE: one}
        content = _content(
            Path(draft), weights, files, record, dataset, shape, place, notes, progress
        )
        notes += target_notes(place, dict(content.reports), content.files)
        if dataset is None:
            notes.append("The preprocessing is assumed, because no data set was given: check it.")
        if record is None and "int8" in place.flavours:
            notes.append("There is no INT8 file: give --data to calibrate on.")
        if "int8" not in place.flavours:
            notes.append(f"There is no INT8 file: {place.identity} does not run INT8.")
        if one.patterns and not place.target.sparse_2_4:
            notes.append(f"The 2:4 weights save no time on {place.identity}.")
        models = bundle(folder, name, one, place, transform, content, chosen=None, notes=notes)
    return {
        "folder": str(folder),
        "target": place.identity,
        "models": models,
        "accuracy": {p: a.model_dump() for p, a in content.accuracy.items()},
        "checks": dict(content.checks),
        "engines": dict(content.reports),
        "notes": notes,
    }


def _quantized(
    one: Descendant, dataset: Dataset, calibration: str, progress: Progress
) -> tuple[Descendant, QuantizationRecord]:
    """Calibrate; the descendant is another one where the recipe smooths its weights."""
    recipe = load_calibration(calibration)
    if recipe.images > len(dataset.train):
        raise UserError(
            f"The calibration recipe {calibration} takes {recipe.images} images, and the train "
            f"split has {len(dataset.train)}.",
            "Add images, or give --calibration a recipe file with fewer.",
        )
    split = dataset.train.head(recipe.images, name="calibration")
    if recipe.smooth is not None:
        one = replace(one, module=smooth(one.module, split, recipe, progress).module)
    return one, calibrate(one.module, split, recipe, progress=progress)


def _files(place: ResolvedTarget, record: QuantizationRecord | None, int8: str) -> dict[str, File]:
    """The files by precision; ``int8`` names the weights of the INT8 one."""
    return {
        precision: file_for(place, precision, int8 if precision == "int8" else DENSE)
        for precision in place.flavours
        if precision != "int8" or record is not None
    }


def _content(
    draft: Path,
    weights: Mapping[str, Descendant],
    files: dict[str, File],
    record: QuantizationRecord | None,
    dataset: Dataset | None,
    shape: tuple[int, int, int],
    place: ResolvedTarget,
    notes: list[str],
    progress: Progress,
) -> Content:
    """Write what a bundle holds into ``draft``; what cannot be deployed is left out and noted."""
    if dataset is None:
        x = torch.randn(_PARITY_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    else:
        count = min(_PARITY_IMAGES, len(dataset.search))
        x = next(iter(dataset.search.head(count).batches(count)))[0]
    failed: set[File] = set()

    def give_up(file: File, error: CheckFailed) -> None:
        failed.add(file)
        notes.append(f"There is no {file.precision.upper()} file: {error.what}")

    progress.start("export", len(files))
    records = None if record is None else lambda flavour: record
    checks: dict[str, dict[str, Any]] = {}
    for name, one in weights.items():
        some = [file for file in files.values() if file.weights == name]
        wanted = list({File(name, "fp32", "plain"), *some})
        checks |= write_files(draft, one, wanted, records, x, 1, progress, give_up)
    progress.finish()
    files = {precision: file for precision, file in files.items() if file not in failed}
    for file in files.values():
        checks[file.name]["lint"] = lint_for(draft, file, place)[place.identity]
    samples = {"input": x[:_SAMPLES].numpy()}
    accuracy = {}
    for precision, file in files.items():
        run = predictor(OrtRunner(draft / file.name), 1)
        samples[file.name] = torch.cat([run(part) for part in x[:_SAMPLES].split(1)]).numpy()
        if dataset is not None:
            accuracy[precision] = Accuracy(
                top1=top1(run, dataset.test, batch_size=1),
                images=len(dataset.test),
                split="test",
                runner="ONNX Runtime",
                how=how(place),
            )
    paths = {precision: draft / file.name for precision, file in files.items()}
    reports: dict[str, dict[str, Any]] = {}
    if place.software.runtime == "tensorrt-rtx" and tensorrt_rtx.available() is not None:
        assert place.target.sm is not None  # every gpu target has one
        reports = tensorrt_rtx.build_all(paths, draft, sm=place.target.sm, progress=progress)
    return Content(
        paths=paths,
        files=files,
        samples=samples,
        checks={p: checks[file.name] for p, file in files.items()},
        accuracy=accuracy,
        engines={p: draft / f"{p}.engine" for p in reports},
        reports=reports,
        sparse=frozenset(files) if weights[DENSE].patterns else frozenset(),
    )
