"""Calibration: one forward pass over images, one range per site, into the quantization record.

ModelOpt (https://github.com/NVIDIA/Model-Optimizer) calibrates inputs per tensor and weights per
output channel. In the same pass our hooks collect min and max of every layer's input and output.
For percentile and entropy ModelOpt's calibration runs with our own histogram (see ``histogram``
for what was wrong with its own).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.data import Split
from elastic_export.errors import UserError
from elastic_export.progress import Progress, no_progress
from elastic_export.quantize.bridge import (
    insert_quantizers,
    load_modelopt,
    read_amax,
    run_calibration,
)
from elastic_export.quantize.histogram import Histogram
from elastic_export.quantize.policy import float_reason, is_plain, quantizable_layers
from elastic_export.quantize.ranges import RangeHooks, finite_range
from elastic_export.quantize.record import QuantizationRecord, Role, Site

__all__ = ["calibrate", "model_digest"]


def calibrate(
    module: nn.Module,
    split: Split,
    recipe: CalibrationRecipe,
    *,
    progress: Progress = no_progress,
) -> QuantizationRecord:
    """Take the ranges of every ``Linear`` and ``Conv2d`` of a module.

    A layer is dead where its input, weight or output is zero on every image; it stays in floating
    point and its reason says so. Only if no layer at all sees anything but zeros is that an error,
    because then the images are to blame.

    Args:
        module: A folded plain module in float32; it is copied, not changed.
        split: The calibration images, ``(B, C, H, W)`` float32, already transformed.
        recipe: Method, number of images and names to skip.
        progress: Told of every batch.

    Returns:
        Sites ``input``, ``weight`` and ``output`` of every layer, floating-point ones included.
        Same module, images and recipe give the same bits.

    Raises:
        UserError: fewer images than asked, images the module cannot take, NaN or infinite values
            in weights or activations, nothing to quantize, or ModelOpt missing.
    """
    names = list(quantizable_layers(module))
    if not names:
        raise UserError(
            "The module has neither a Linear nor a Conv2d layer, so nothing can be quantized.",
            "Check which model the recipe extracts.",
        )
    images = split.head(recipe.images)
    progress.start("calibrate", math.ceil(recipe.images / recipe.batch_size) + 1)
    try:
        sites = _measure(module, images, recipe, progress)
    finally:
        progress.finish()
    if not any(float(sites[(name, "input")].amax) > 0 for name in names):
        raise UserError(
            f'Every layer from "{names[0]}" on saw nothing but zeros during calibration.',
            "Check the images and the normalisation in data.transform.",
        )
    return QuantizationRecord(
        sites, _calibrator_name(recipe), recipe.images, images.digest, model_digest(module)
    )


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
    module: nn.Module, images: Split, recipe: CalibrationRecipe, progress: Progress
) -> dict[tuple[str, str], Site]:
    """Run the images through a calibrated copy and make every site."""
    load_modelopt()
    progress.advance(note="ModelOpt loaded")
    range_of = _range_function(recipe)
    twin = copy.deepcopy(module).eval()
    layers = quantizable_layers(twin)
    # Read before ModelOpt changes the layers' classes.
    reasons = {name: float_reason(name, layer, recipe.skip) for name, layer in layers.items()}
    weights = {
        name: finite_range(layer.weight, f'the weight of layer "{name}"')
        for name, layer in layers.items()
    }
    plain = [name for name, layer in layers.items() if is_plain(layer)]
    insert_quantizers(twin, plain, range_of)
    calibrated = {name: twin.get_submodule(name) for name in layers}
    hooks = RangeHooks(calibrated, histogram=range_of is not None)

    def forward_loop(model: nn.Module) -> None:
        for x, _ in images.batches(recipe.batch_size):
            _forward(model, module, x)
            progress.advance()

    with torch.no_grad(), hooks:
        run_calibration(twin, forward_loop)

    sites: dict[tuple[str, str], Site] = {}
    for name, layer in calibrated.items():
        inputs, outputs = hooks.inputs[name], hooks.outputs[name]
        found: dict[Role, np.ndarray] = {
            "input": _amax(read_amax(layer, "input"), inputs.amax(None)),
            "weight": _weight_amax(layer),
            "output": _amax(None, outputs.amax(range_of)),
        }
        bounds: dict[Role, tuple[float, float]] = {
            "input": inputs.bounds,
            "weight": weights[name],
            "output": outputs.bounds,
        }
        reason = reasons[name] or _dead(found, inputs.seen)
        for role, amax in found.items():
            sites[(name, role)] = _site(name, role, bounds[role], amax, reason)
    return sites


def _range_function(recipe: CalibrationRecipe) -> Callable[[Histogram], float] | None:
    if recipe.method == "percentile":
        percent = recipe.percentile
        return lambda histogram: histogram.percentile(percent)
    if recipe.method == "entropy":
        return Histogram.entropy
    return None


def _calibrator_name(recipe: CalibrationRecipe) -> str:
    if recipe.method == "percentile":
        return f"percentile-{recipe.percentile:g}"
    return recipe.method


def _forward(model: nn.Module, module: nn.Module, x: Tensor) -> None:
    """Run one batch; a batch the module cannot take becomes an error that says what it wants."""
    finite_range(x, "the calibration images")
    parameter = next(module.parameters())
    try:
        model(x.to(parameter.device))
    except (RuntimeError, AssertionError, ValueError) as error:
        first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
        shape = tuple(x.shape[1:])
        if first is not None and first.in_channels != x.shape[1]:
            raise UserError(
                f"The calibration images have {x.shape[1]} channel(s), but the module takes "
                f"{first.in_channels}.",
                "Set data.transform.channels to what the module was trained with.",
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"The module cannot take calibration images of shape {shape}: {reason}.",
            "Set data.transform to the size and channels the module was trained with.",
        ) from error


def _amax(measured: np.ndarray | None, otherwise: float) -> np.ndarray:
    return np.asarray(otherwise if measured is None else measured, dtype=np.float32)


def _weight_amax(layer: nn.Module) -> np.ndarray:
    measured = read_amax(layer, "weight")
    if measured is not None:
        return measured
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().abs().flatten(1).amax(dim=1).float().cpu().numpy()


def _dead(found: dict[Role, np.ndarray], called: bool) -> str:
    """Say why a layer without a usable range stays in floating point, or nothing."""
    if not called:
        return "It was not called on the calibration images."
    for role, amax in found.items():
        if not np.any(amax > 0):
            return f"Its {role} is zero on every calibration image."
    return ""


def _site(
    name: str, role: Role, bounds: tuple[float, float], amax: np.ndarray, reason: str
) -> Site:
    """Make one site; min and max are clipped to what the calibrator keeps."""
    limit = float(amax.max())
    return Site(
        module=name,
        role=role,
        min=max(bounds[0], -limit),
        max=min(bounds[1], limit),
        amax=amax,
        axis=0 if role == "weight" else None,
        policy="float" if reason else "int8",
        reason=reason,
    )
