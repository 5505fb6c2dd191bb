"""Calibration: one forward pass over images, one range per site, into the quantization record.

ModelOpt (https://github.com/NVIDIA/Model-Optimizer) calibrates inputs per tensor and weights per
output channel. In the same pass our hooks collect min and max of every layer's input and output,
and the ranges of skip connections and attention products. For percentile, entropy and least squared
error ModelOpt's calibration runs with our own histogram (see ``histogram`` for what was wrong with
its own). Memory does not depend on the number of images.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.data import Split
from elastic_export.errors import UserError
from elastic_export.progress import Progress, no_progress
from elastic_export.quantize.batches import batch_count, calibration_images, run_batches
from elastic_export.quantize.bridge import (
    calibrator_states,
    insert_quantizers,
    load_calibrators,
    load_modelopt,
    read_amax,
    read_histogram,
    run_calibration,
)
from elastic_export.quantize.methods import method_of
from elastic_export.quantize.policy import is_plain, quantizable_layers
from elastic_export.quantize.products import ProductHooks
from elastic_export.quantize.ranges import Range, RangeHooks, finite_range
from elastic_export.quantize.record import QuantizationRecord, Role
from elastic_export.quantize.resume import SavedPass, load_products, pass_key, products_state
from elastic_export.quantize.sites import Measured, MeasuredRange, make_sites
from elastic_export.sparsity.masks import check_skip

__all__ = ["calibrate", "model_digest"]


def calibrate(
    module: nn.Module,
    split: Split,
    recipe: CalibrationRecipe,
    *,
    work: Path | None = None,
    progress: Progress = no_progress,
) -> QuantizationRecord:
    """Take the ranges of every ``Linear`` and ``Conv2d`` of a module, and of its products.

    A layer is dead where its input, weight or output is zero on every image; it stays in floating
    point and its reason says so. Only if every layer is dead is that an error.

    Args:
        module: A folded plain module in float32; it is copied, not changed.
        split: The calibration images, ``(B, C, H, W)`` float32, already transformed.
        recipe: Method, number of images and names to skip. ``smooth`` is not applied here: give
            the module that ``smooth.smooth`` returned.
        work: Folder for the state of an interrupted pass, saved every few seconds under a key of
            module, images and recipe. It is removed at the end, and when the input is at fault.
        progress: Told of every batch.

    Returns:
        Sites ``input``, ``weight`` and ``output`` of every layer, floating-point ones included,
        ``skip`` of those whose output is added to something, and the operands of every attention.
        Same module, images and recipe give the same bits, interrupted or not.

    Raises:
        UserError: a skip pattern that matches nothing, no or fewer images than asked, images that
            cannot be read or that the module cannot take, NaN or infinite values in weights or
            activations, nothing to quantize, no layer that is alive, ModelOpt missing, or a folder
            that cannot be written.
    """
    layers = quantizable_layers(module)
    if not layers:
        raise UserError(
            "The module has neither a Linear nor a Conv2d layer, so nothing can be quantized.",
            "Check which model the recipe extracts.",
        )
    check_skip(module, recipe.skip, "skip of the calibration recipe")
    images = calibration_images(split, recipe)
    digest = model_digest(module)
    saved = SavedPass(work, pass_key(digest, images.digest, recipe))
    progress.start("calibrate", batch_count(recipe) + 1)
    try:
        sites = make_sites(layers, _measure(module, images, recipe, saved, progress), recipe.skip)
    except UserError:
        saved.remove()
        raise
    finally:
        progress.finish()
    saved.remove()
    return QuantizationRecord(sites, method_of(recipe).name, recipe.images, images.digest, digest)


def model_digest(module: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of everything in the state dict."""
    state = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        state.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        state.update(flat.view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _measure(
    module: nn.Module,
    images: Split,
    recipe: CalibrationRecipe,
    saved: SavedPass,
    progress: Progress,
) -> Measured:
    """Run the images through a copy that ModelOpt and our hooks watch."""
    for name, layer in quantizable_layers(module).items():
        finite_range(layer.weight, f'the weight of layer "{name}"')
    load_modelopt()
    progress.advance(note="ModelOpt loaded")
    watched = _Watched(module, recipe)

    def forward_loop(model: nn.Module) -> None:
        done, problem = saved.load(watched.load)
        if done or problem:
            progress.advance(done, problem or f"went on after batch {done}")

        def after(batches: int) -> None:
            saved.save(batches, watched.state)
            progress.advance()

        run_batches(model, images, recipe, after, start=done)

    with torch.no_grad(), watched.ranges, watched.products:
        run_calibration(watched.twin, forward_loop)
    return watched.measured()


class _Watched:
    """A copy of a module with ModelOpt's quantizers and our hooks, and all that they collect."""

    def __init__(self, module: nn.Module, recipe: CalibrationRecipe) -> None:
        self.method = method = method_of(recipe)
        self.twin = copy.deepcopy(module).eval()
        layers = quantizable_layers(self.twin)
        self.plain = [name for name, layer in layers.items() if is_plain(layer)]
        insert_quantizers(self.twin, self.plain, method.limit, sums=method.least_error)
        # By name, because ModelOpt changes the layers' classes.
        self.layers = {name: self.twin.get_submodule(name) for name in layers}
        kept = {"histogram": method.histogram, "sums": method.least_error}
        self.ranges = RangeHooks(self.layers, **kept)
        self.products = ProductHooks(self.twin, self.layers, **kept)

    def state(self) -> dict[str, Any]:
        """Return everything collected, as numbers and tensors."""
        return {
            "ranges": self.ranges.state(),
            "products": products_state(self.products),
            "calibrators": calibrator_states(self.twin, self.plain),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self.ranges.load(state["ranges"])
        load_products(self.products, state["products"])
        load_calibrators(self.twin, state["calibrators"])

    def measured(self) -> Measured:
        """Read all ranges."""
        found: dict[tuple[str, Role], MeasuredRange] = {}
        for name, layer in self.layers.items():
            inputs = self.ranges.inputs[name]
            inputs.histogram = read_histogram(layer)
            found[name, "weight"] = self._weight(layer)
            found[name, "input"] = self._range(inputs, read_amax(layer, "input"))
            found[name, "output"] = self._range(self.ranges.outputs[name])
        for key, each in self.products.ranges.items():
            found[key] = self._range(each)
        called = frozenset(name for name, each in self.ranges.inputs.items() if each.seen)
        return Measured(found, called, self.products.positions)

    def _range(self, each: Range, amax: NDArray[np.float32] | None = None) -> MeasuredRange:
        limit = self.method.amax(each) if amax is None else float(amax)
        return MeasuredRange(np.asarray(limit, np.float32), *self.method.bounds(each, limit))

    def _weight(self, layer: nn.Module) -> MeasuredRange:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        amax = None if self.method.least_error else read_amax(layer, "weight")
        amax = self.method.weight_amax(weight) if amax is None else amax
        low, high = finite_range(weight, "a weight")
        limit = float(amax.max())
        return MeasuredRange(amax, max(low, -limit), min(high, limit))
