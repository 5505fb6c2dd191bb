"""SmoothQuant: moves the spread of activations into weights, where INT8 has a scale per channel.

G. Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", arXiv 2211.10438: input channel ``j`` of the layers that read a LayerNorm is divided by
``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`` and column ``j`` of their weights multiplied by it.
The division is folded into weight and bias of the LayerNorm, so nothing is added to the network.
A column of zeros stays one and so do the zeros of an N:M pattern, which runs along the columns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.data import Split
from elastic_export.errors import CheckFailed
from elastic_export.progress import Progress, no_progress
from elastic_export.quantize.batches import batch_count, calibration_images, run_batches
from elastic_export.quantize.policy import judge, quantizable_layers
from elastic_export.quantize.ranges import finite_range
from elastic_export.quantize.readers import Readers, find_readers, functions_of

__all__ = ["Smoothed", "smooth"]

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest logit: what ``fold`` has to hold, too."""
FLOW_IMAGES = 2


@dataclass(frozen=True)
class Smoothed:
    """A smoothed copy of a network.

    Args:
        module: The copy, in eval mode, with the same function in floating point.
        layers: Names of the ``Linear`` layers whose columns were scaled.
        left: LayerNorm name to one sentence that says why it was left as it is.
    """

    module: nn.Module
    layers: tuple[str, ...]
    left: Mapping[str, str]


def smooth(
    module: nn.Module,
    split: Split,
    recipe: CalibrationRecipe,
    progress: Progress = no_progress,
) -> Smoothed:
    """Fold the scales of SmoothQuant into LayerNorms and the Linears that alone read them.

    Which these are is found from the tensors of one forward pass (``readers``). A LayerNorm is left
    as it is where anything else reads it, where it has no weight, or where none of its readers
    may become INT8.

    Args:
        module: A folded plain module in float32; it is copied, not changed.
        split: The calibration images, ``(B, C, H, W)`` float32, already transformed.
        recipe: ``smooth`` is alpha, from 0 (all spread stays in activations) to 1 (all of it goes
            into weights); None leaves every weight. Images and batches are those of calibration.
        progress: Told of every batch.

    Raises:
        UserError: as :func:`calibrate.calibrate` for images and values.
        CheckFailed: the copy computes something else.
    """
    images = calibration_images(split, recipe)
    for name, layer in quantizable_layers(module).items():
        finite_range(layer.weight, f'the weight of layer "{name}"')
    twin = copy.deepcopy(module).eval()
    if recipe.smooth is None:
        return Smoothed(twin, (), {})
    first = next(iter(images.batches(recipe.batch_size)))[0].to(next(twin.parameters()).device)
    groups, left = _groups(twin, find_readers(twin, first[:FLOW_IMAGES]), recipe)
    if not groups:
        return Smoothed(twin, (), left)
    largest = _Largest(twin, groups)
    progress.start("smooth", batch_count(recipe))
    try:
        with torch.no_grad():
            with largest:
                run_batches(twin, images, recipe, lambda _: progress.advance())
            before = twin(first)
            for norm, linears in groups.items():
                _fold(twin, norm, linears, largest.of[norm], recipe.smooth)
            _check_same(before, twin(first))
    finally:
        progress.finish()
    return Smoothed(twin, tuple(name for linears in groups.values() for name in linears), left)


def _groups(
    twin: nn.Module, readers: Mapping[str, Readers], recipe: CalibrationRecipe
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the Linears to scale with each LayerNorm, and why the other LayerNorms are left."""
    groups: dict[str, list[str]] = {}
    left: dict[str, str] = {}
    norms = [name for name, part in twin.named_modules() if isinstance(part, nn.LayerNorm)]
    for name in norms:
        why = _why_left(twin, twin.get_submodule(name), readers.get(name), recipe)
        if why:
            left[name] = why
        else:
            groups[name] = readers[name].linears
    return groups, left


def _why_left(
    twin: nn.Module, norm: nn.Module, found: Readers | None, recipe: CalibrationRecipe
) -> str:
    weight = norm.weight
    if weight is None:
        return "It has no weight that a scale could be folded into."
    if found is None:
        return "It was not called on the calibration images."
    if found.others:
        too = ", too" if found.linears else ""
        return f"Its output is read by {', '.join(found.others)}{too}."
    if not found.linears or not isinstance(weight, Tensor) or weight.ndim != 1:
        return "No Linear reads its channels one by one."
    layers = quantizable_layers(twin)
    if all(judge(name, layers[name], recipe.skip).reason for name in found.linears):
        return "None of the layers that read it becomes INT8."
    return ""


class _Largest(TorchFunctionMode):
    """Keeps the largest absolute value of each channel of the chosen LayerNorms, float32 (C,)."""

    def __init__(self, module: nn.Module, norms: Mapping[str, object]) -> None:
        super().__init__()
        chosen = functions_of(module, nn.LayerNorm).items()
        self._norms = {weight: name for weight, name in chosen if name in norms}
        self.of: dict[str, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``; look at what a LayerNorm gives."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if getattr(func, "__name__", "") == "layer_norm":
            for each in (*args, *kwargs.values()):
                if id(each) in self._norms:
                    self._collect(self._norms[id(each)], out)
        return out

    def _collect(self, name: str, out: Tensor) -> None:
        finite_range(out, f'the output of LayerNorm "{name}"')
        largest = out.detach().reshape(-1, out.shape[-1]).abs().amax(dim=0)
        known = self.of.get(name)
        self.of[name] = largest if known is None else torch.maximum(known, largest)


def _fold(
    twin: nn.Module, norm_name: str, linears: Sequence[str], largest: Tensor, alpha: float
) -> None:
    """Divide a LayerNorm by the scales and multiply the columns of its readers by them."""
    norm = twin.get_submodule(norm_name)
    weights = [_parameter(twin.get_submodule(name), "weight") for name in linears]
    columns = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
    exact = largest.double() ** alpha / columns.double() ** (1 - alpha)
    alive = (largest > 0) & (columns > 0)
    scale = torch.where(alive, exact, 1.0)
    for parameter in (_parameter(norm, "weight"), norm.bias):
        if isinstance(parameter, Tensor):
            parameter.copy_(parameter.double() / scale)
    for weight in weights:
        weight.copy_(weight.double() * scale)


def _parameter(module: nn.Module, name: str) -> Tensor:
    parameter = getattr(module, name)
    assert isinstance(parameter, Tensor)
    return parameter


def _check_same(before: Tensor, after: Tensor) -> None:
    off = float((before - after).abs().max() / before.abs().max().clamp_min(1e-30))
    if not off <= TOLERANCE:
        raise CheckFailed(
            f"Smoothing changed what the network computes: its outputs differ by {off:.1e} of the "
            "largest.",
            "Leave smooth out of the calibration recipe, and report this network.",
        )
