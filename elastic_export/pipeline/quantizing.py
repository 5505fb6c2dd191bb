"""The quantize stage: ModelOpt's ranges in one record, kept within the accuracy guard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from elastic_export.artifacts.store import Artifact
from elastic_export.config.loader import load_calibration
from elastic_export.data.evaluate import top1
from elastic_export.pipeline.flow import Flow
from elastic_export.pipeline.workshop import Workshop
from elastic_export.quantize.calibrate import calibrate
from elastic_export.quantize.fake import check_pattern_int8, fake_quantize
from elastic_export.quantize.guard import guard
from elastic_export.quantize.record import QuantizationRecord

__all__ = ["RECORD", "quantize"]

RECORD = "record"


def quantize(flow: Flow, shop: Workshop, name: str, source: Artifact | None) -> Artifact | None:
    """Calibrate one descendant; layers return to float until the guard holds.

    Returns:
        An artifact with the quantization record, or None where the recipe asks for no INT8.
    """
    asked = shop.recipe.quantize
    if asked is None:
        return None
    recipe = load_calibration(asked.calibration)

    def make(folder: Path, work: Path) -> dict[str, Any]:
        assert source is not None
        one = shop.descendant(source)
        data = shop.data_of(one.genes)
        split = data.train.head(recipe.images, name="calibration")
        record = calibrate(one.module, split, recipe, progress=shop.progress)
        told: dict[str, Any] = {"calibrator": record.calibrator, "images": record.images}
        if asked.guard is not None:

            def accuracy(candidate: QuantizationRecord) -> float:
                return top1(fake_quantize(one.module, candidate), data.search)

            baseline = top1(one.module, data.search)
            held = guard(record, accuracy, baseline, asked.guard.max_drop, progress=shop.progress)
            record = held.record
            told["guard"] = held.to_json()
        check_pattern_int8(one.module, record, one.patterns)
        record.save(folder / RECORD)
        return told

    config = {
        "calibration": recipe,
        "guard": asked.guard,
        "data": [shop.data_digests["train"], shop.data_digests["search"]],
    }
    return flow.do(
        "quantize",
        name,
        config=config,
        inputs=[source],
        make=make,
        tools=["torch", "nvidia-modelopt"],
    )
