"""From a descendant to weights that are ready for INT8 and their record: smooth, calibrate, train.

What is found is kept in the stage's work folder, so that a stage that is interrupted later does not
begin with it again.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from elastic_export.artifacts.files import write_atomically
from elastic_export.artifacts.store import Artifact
from elastic_export.checkpoints import load_descendant, save_descendant
from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.config.recipe import QuantizeConfig
from elastic_export.config.targets import ResolvedTarget
from elastic_export.data.evaluate import top1
from elastic_export.elastic import Descendant
from elastic_export.export.reference import rounded_like
from elastic_export.pipeline.descend import frozen_masks
from elastic_export.pipeline.quantizing.trials import int8_flavour
from elastic_export.pipeline.workshop import DESCENDANT, Workshop
from elastic_export.quantize.calibrate import calibrate
from elastic_export.quantize.qat import qat
from elastic_export.quantize.record import QuantizationRecord
from elastic_export.quantize.smooth import smooth

__all__ = ["Prepared", "prepare"]

_RECORD = "record"
_TOLD = "told.json"


@dataclass
class Prepared:
    """A descendant with the weights that are deployed, its record, and what was done.

    ``told`` names calibrator and images, and has ``smoothed`` and ``qat`` where these ran.
    """

    one: Descendant
    record: QuantizationRecord
    told: dict[str, Any]


def prepare(
    shop: Workshop,
    source: Artifact,
    asked: QuantizeConfig,
    recipe: CalibrationRecipe,
    target: ResolvedTarget,
    work: Path,
) -> Prepared:
    """Smooth and train where the recipes ask for it, and calibrate the weights that result."""
    kept = work / "prepared"
    if (kept / _TOLD).exists():
        told = json.loads((kept / _TOLD).read_text())
        one = load_descendant(kept / DESCENDANT)
        return Prepared(one, QuantizationRecord.load(kept / _RECORD), told)
    found = _prepare(shop, source, asked, recipe, target, work)
    kept.mkdir(parents=True, exist_ok=True)
    save_descendant(found.one, kept / DESCENDANT)
    found.record.save(kept / _RECORD)
    # Written last: its presence says that the others are whole.
    write_atomically(kept / _TOLD, json.dumps(found.told).encode())
    return found


def _prepare(
    shop: Workshop,
    source: Artifact,
    asked: QuantizeConfig,
    recipe: CalibrationRecipe,
    target: ResolvedTarget,
    work: Path,
) -> Prepared:
    one = shop.descendant(source)
    data = shop.data_of(one.genes)
    split = data.train.head(recipe.images, name="calibration")
    told: dict[str, Any] = {}
    if recipe.smooth is not None:
        smoothed = smooth(one.module, split, recipe, shop.progress)
        one.module = smoothed.module
        told["smoothed"] = {
            "alpha": recipe.smooth,
            "layers": list(smoothed.layers),
            "left": dict(smoothed.left),
        }

    def ranges(module: nn.Module) -> QuantizationRecord:
        return calibrate(module, split, recipe, work=work / "ranges", progress=shop.progress)

    record = ranges(one.module)
    if asked.qat is not None:
        flavour = int8_flavour(target)
        teacher = copy.deepcopy(one.module).to(shop.device).eval()

        def score(module: nn.Module, found: QuantizationRecord) -> float:
            rounded = rounded_like(module, found, flavour, attention=asked.attention)
            return top1(rounded, data.search)

        before = score(one.module, record)
        tuned = qat(
            one.module,
            record.placed(flavour, attention=asked.attention),
            data.train,
            asked.qat,
            recalibrate=ranges,
            seed=shop.recipe.seed,
            masks=frozen_masks(one),
            teacher=teacher,
            asymmetric=flavour == "ort-cpu",
            device=shop.device,
            progress=shop.progress,
        )
        one.module, record = tuned.module, tuned.record
        after = score(one.module, record)
        told["qat"] = {
            "before": before,
            "after": after,
            "steps": tuned.report.steps,
            "seconds": tuned.report.seconds,
        }
    told |= {"calibrator": record.calibrator, "images": record.images}
    return Prepared(one, record, told)
