"""The quantize stage: weights fit for INT8, one record, the guard, and where INT8 is worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic_export.artifacts.store import Artifact
from elastic_export.checkpoints import save_descendant
from elastic_export.config.loader import load_calibration
from elastic_export.config.recipe import GuardConfig, QuantizeConfig, Recipe
from elastic_export.config.targets import ResolvedTarget
from elastic_export.data.evaluate import top1
from elastic_export.errors import UserError
from elastic_export.measure.machine import describe_machine
from elastic_export.pipeline.flow import Flow
from elastic_export.pipeline.quantizing.accuracy import hold
from elastic_export.pipeline.quantizing.placing import place_by_speed, timed_here
from elastic_export.pipeline.quantizing.trials import Trials, int8_flavour
from elastic_export.pipeline.quantizing.weights import Prepared, prepare
from elastic_export.pipeline.workshop import DESCENDANT, Workshop
from elastic_export.quantize.fake import check_pattern_int8
from elastic_export.quantize.placement import placement_rules
from elastic_export.quantize.record import QuantizationRecord

__all__ = ["check_placement", "quantize", "record_for", "weights_change"]

_RECORD = "record"


def check_placement(recipe: Recipe, targets: Sequence[ResolvedTarget]) -> None:
    """Refuse a measured placement where nothing can be measured.

    Raises:
        UserError: No target of the recipe runs on this machine.
    """
    asked = recipe.quantize
    if asked is not None and asked.placement == "measured" and _host(targets) is None:
        raise UserError(
            "The recipe asks for quantize.placement: measured, but none of its targets runs on "
            "this machine, so nothing can be measured.",
            "Add host-cpu to targets, or set quantize.placement to policy.",
        )


def weights_change(recipe: Recipe) -> bool:
    """Whether the stage changes weights, so that INT8 files hold others than the stage before."""
    asked = recipe.quantize
    if asked is None:
        return False
    return asked.qat is not None or load_calibration(asked.calibration).smooth is not None


def record_for(artifact: Artifact, flavour: str) -> QuantizationRecord:
    """The record of a quantize stage for one flavour: its own where it was placed by measurement.

    Raises:
        UserError: The record cannot be read.
    """
    own = artifact.path / f"{_RECORD}.{flavour}"
    return QuantizationRecord.load(own if own.exists() else artifact.path / _RECORD)


def quantize(
    flow: Flow,
    shop: Workshop,
    name: str,
    source: Artifact | None,
    targets: Sequence[ResolvedTarget],
) -> Artifact | None:
    """Make the quantization record of one descendant, and its weights where they change.

    Returns:
        An artifact with the record (see :func:`record_for`) and, where :func:`weights_change` says
        so, a descendant with the weights it belongs to; None where the recipe asks for no INT8.
    """
    asked = shop.recipe.quantize
    if asked is None:
        return None
    recipe = load_calibration(asked.calibration)
    first = targets[0]

    def make(folder: Path, work: Path) -> dict[str, Any]:
        assert source is not None
        ready = prepare(shop, source, asked, recipe, first, work)
        steps = _Steps(shop, asked, targets, source, ready, work)
        told, record = ready.told, ready.record
        if asked.guard is not None:
            record, told["guard"] = steps.hold(record, asked.guard, first)
        steps.save(record, folder / _RECORD)
        if asked.placement == "measured":
            told["placement"] = steps.place(record, folder)
        if weights_change(shop.recipe):
            save_descendant(ready.one, folder / DESCENDANT)
        return told

    config = {
        "calibration": recipe,
        "quantize": asked.model_dump(mode="json", exclude={"calibration"}),
        "rules": placement_rules(),
        "data": [shop.data_digests["train"], shop.data_digests["search"]],
        "form": [first.software.model_dump(mode="json"), first.flavours],
    }
    if asked.qat is not None:
        config |= {"seed": shop.recipe.seed, "device": shop.device}
    if asked.placement == "measured":
        host = _host(targets)
        runner = None if host is None else host.software.model_dump(mode="json")
        measure = {"runner": runner, "settings": shop.recipe.measure, "machine": describe_machine()}
        config |= {"measure": measure}
    return flow.do(
        "quantize",
        name,
        config=config,
        inputs=[source],
        make=make,
        tools=["torch", "nvidia-modelopt", "onnxruntime"],
    )


@dataclass(frozen=True)
class _Steps:
    """What follows calibration, for one descendant."""

    shop: Workshop
    asked: QuantizeConfig
    targets: Sequence[ResolvedTarget]
    source: Artifact
    ready: Prepared
    work: Path

    def hold(
        self, record: QuantizationRecord, asked: GuardConfig, target: ResolvedTarget
    ) -> tuple[QuantizationRecord, dict[str, Any]]:
        """Keep the guard against the descendant as it was before it was quantized."""
        search = self.shop.data_of(self.ready.one.genes).search
        return hold(
            self.ready.one.module,
            record,
            search,
            asked,
            target,
            self.asked.attention,
            self._trials(target),
            baseline=top1(self.shop.descendant(self.source).module, search),
            threads=self.shop.recipe.measure.threads,
            state=self.work / f"guard.{int8_flavour(target)}.{record.digest[:16]}.json",
            progress=self.shop.progress,
        )

    def place(self, record: QuantizationRecord, folder: Path) -> dict[str, Any]:
        """Place INT8 for this machine alone: what is slow here need not be so on another device.

        Where every layer is faster in float, the INT8 file stays as the rules placed it: the
        measure stage compares it with FP32 and keeps FP32.
        """
        host = _host(self.targets)
        assert host is not None  # check_placement
        flavour, trials = int8_flavour(host), self._trials(host)
        placed, found = place_by_speed(
            record,
            record.placed(flavour, attention=self.asked.attention).quantized_modules(),
            trials,
            timed_here(trials.sample.numpy(), self.shop.recipe.measure),
            state=self.work / "placement.json",
            progress=self.shop.progress,
        )
        told = found.to_json() | {"flavour": flavour, "target": host.identity}
        if 0 < len(found.kept_float) < found.layers:
            if self.asked.guard is not None:
                # More float seldom costs accuracy, but it may; and the guard before may have held
                # for another target's form.
                placed, told["guard"] = self.hold(placed, self.asked.guard, host)
            self.save(placed, folder / f"{_RECORD}.{flavour}")
        return told

    def save(self, record: QuantizationRecord, folder: Path) -> None:
        """Save a record once the patterns are proven on the integers it gives in every form."""
        one = self.ready.one
        for flavour in {int8_flavour(target) for target in self.targets}:
            placed = record.placed(flavour, attention=self.asked.attention)
            check_pattern_int8(one.module, placed, one.patterns)
        record.save(folder)

    def _trials(self, target: ResolvedTarget) -> Trials:
        batch = self.shop.recipe.measure.batch_size
        sample = next(iter(self.shop.data_of(self.ready.one.genes).test.batches(batch)))[0]
        files = self.work / "trials" / int8_flavour(target)
        return Trials(self.ready.one.module, sample, target, self.asked.attention, files)


def _host(targets: Sequence[ResolvedTarget]) -> ResolvedTarget | None:
    return next((target for target in targets if target.target.kind == "host"), None)
