"""Which layers are quantized: the placement rules, as data, with the sentence that explains each.

The thresholds are those of NVIDIA's ModelOpt for ONNX (K or N below 16, convolutions with few
channels) and of NVIDIA's advice to keep the first convolution and the classifier in floating
point: INT8 kernels want 16 channels or more, and a classifier at batch 1 is a matrix-vector
product.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

__all__ = ["CLASSIFIERS", "MIN_WIDTH", "Layer", "float_reason", "quantizable_layers"]

MIN_WIDTH = 16
"""Fewest input or output channels that an INT8 kernel makes good use of."""

CLASSIFIERS = (
    "head",
    "head_dist",
    "head.fc",
    "heads.head",
    "fc",
    "classifier",
)
"""Names of classifiers in timm, torchvision and Hugging Face models (shell patterns)."""

Layer = nn.Linear | nn.Conv2d


def quantizable_layers(module: nn.Module) -> dict[str, Layer]:
    """Return every ``Linear`` and ``Conv2d`` by name, in the order of registration."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, Layer)}


def float_reason(name: str, layer: Layer, skip: Sequence[str]) -> str:
    """Say in one sentence why a layer stays in floating point; empty if it becomes INT8.

    Args:
        name: Dotted name of the layer.
        layer: The layer.
        skip: Shell patterns of the calibration recipe, matched against the whole name of the
            layer and of every module it lies in.
    """
    parts = name.split(".")
    names = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
    for pattern in skip:
        if any(fnmatchcase(each, pattern) for each in names):
            return f'The calibration recipe skips it (pattern "{pattern}").'
    if any(fnmatchcase(name, pattern) for pattern in CLASSIFIERS):
        return "It is the classifier, a matrix-vector product at batch 1."
    if not is_plain(layer):
        return f"Its class {type(layer).__name__} computes more than a Linear or Conv2d."
    if isinstance(layer, nn.Linear):
        return _too_narrow(layer.in_features, layer.out_features, "features")
    if layer.groups > 1 and layer.in_channels // layer.groups < MIN_WIDTH:
        each = layer.in_channels // layer.groups
        return f"It is a grouped convolution with {each} input channel(s) per group."
    return _too_narrow(layer.in_channels, layer.out_channels, "channels")


def is_plain(layer: Layer) -> bool:
    """Tell whether the layer computes exactly what its base class does from its weight.

    A weight-standardised convolution, for example, uses another weight than the one it stores.
    """
    if isinstance(layer, nn.Linear):
        return type(layer).forward is nn.Linear.forward
    kind = type(layer)
    same = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
    return same and layer.padding_mode == "zeros"


def _too_narrow(inputs: int, outputs: int, unit: str) -> str:
    if inputs < MIN_WIDTH:
        return f"It has {inputs} input {unit}, fewer than {MIN_WIDTH}."
    if outputs < MIN_WIDTH:
        return f"It has {outputs} output {unit}, fewer than {MIN_WIDTH}."
    return ""
