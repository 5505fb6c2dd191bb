"""Quantization-aware training: a network learns to compute with the integers it is deployed with.

Weights and inputs of the quantized layers are rounded in the forward pass and the gradient goes
straight through (Bengio et al., 2013, arXiv:1308.3432; for clipped inputs it is zero outside the
range, as in Jacob et al., 2018, arXiv:1712.05877). Weight limits are read anew from the weights at
each step. Input ranges are those of the record, fixed: the network learns to live within them, and
they go into the final record. Widening them to what the trained network would like to use undoes
much of the training (on digits, with outlier channels: 96 % top-1 with the ranges it was trained
with, 82 % with fresh ones). All other ranges are calibrated again on the trained weights. Training
itself is ``train.finetune``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from elastic_export.config.recipe import FinetuneConfig
from elastic_export.data import Split
from elastic_export.errors import CheckFailed
from elastic_export.progress import Progress, no_progress
from elastic_export.quantize.fake import int8_weights
from elastic_export.quantize.policy import Layer, quantizable_layers
from elastic_export.quantize.record import INT8_MAX, UINT8_MAX, QuantizationRecord, Site
from elastic_export.train import FinetuneReport, finetune

__all__ = ["Tuned", "qat"]

Rounding = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tuned:
    """What the training left: the trained module, its own record, and the report of the steps."""

    module: nn.Module
    record: QuantizationRecord
    report: FinetuneReport


def qat(
    module: nn.Module,
    record: QuantizationRecord,
    split: Split,
    config: FinetuneConfig,
    *,
    recalibrate: Callable[[nn.Module], QuantizationRecord],
    seed: int,
    masks: Mapping[str, Tensor] | None = None,
    teacher: Callable[[Tensor], Tensor] | None = None,
    asymmetric: bool = True,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> Tuned:
    """Train a copy of a network with its INT8 roundings in the forward pass.

    Args:
        module: The plain, folded module; not changed.
        record: Which layers are quantized, and the ranges of their inputs.
        split: Training images.
        config: Steps, rates and the rest, as for :func:`train.finetune`.
        recalibrate: Takes the ranges of the trained module; those of the inputs it was trained with
            are put back into what it returns.
        seed: All randomness is a function of it and of the step.
        masks: Parameter name to a bool tensor of its shape; weights under False stay zero.
        teacher: From images to logits; the float module itself is a good one.
        asymmetric: Inputs as UINT8 with a zero point (``ort-cpu``), else as symmetric INT8
            (TensorRT).
        device: Where to train.
        progress: Told of the steps.

    Raises:
        CheckFailed: the loss diverged, the record belongs to another module, or a weight under a
            mask is not zero afterwards.
    """
    twin = copy.deepcopy(module)
    with _rounding_layers(twin, record, asymmetric):
        report = finetune(
            twin,
            split,
            config,
            seed=seed,
            teacher=teacher,
            masks=masks,
            device=device,
            progress=progress,
        )
    tuned = _with_trained_ranges(recalibrate(twin), record)
    _check_zeros(twin, tuned, masks or {})
    return Tuned(twin, tuned, report)


@contextmanager
def _rounding_layers(
    module: nn.Module, record: QuantizationRecord, asymmetric: bool
) -> Iterator[None]:
    """Let the quantized layers compute with rounded inputs and weights.

    Only ``forward`` of the instance changes: names of parameters, which masks and optimizer go
    by, stay.
    """
    layers = quantizable_layers(module)
    chosen = [_layer(layers, record, name) for name in record.quantized_modules()]
    for layer, site in chosen:
        layer.forward = _forward(layer, _input_rounding(site, asymmetric))  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer, _ in chosen:
            del layer.forward


def _layer(
    layers: Mapping[str, Layer], record: QuantizationRecord, name: str
) -> tuple[Layer, Site]:
    channels = record.site(name, "weight").amax.size
    if name not in layers or len(layers[name].weight) != channels:
        raise CheckFailed(
            f'The quantization record has {channels} ranges for the layer "{name}", which the '
            "module does not have so.",
            "Calibrate this module again; the record belongs to another one.",
        )
    return layers[name], record.site(name, "input")


def _forward(layer: Layer, rounded: Rounding) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        inputs, weight = rounded(x), _rounded_weight(layer.weight)
        if isinstance(layer, nn.Linear):
            return nn.functional.linear(inputs, weight, layer.bias)
        return layer._conv_forward(inputs, weight, layer.bias)

    return forward


def _rounded_weight(weight: Tensor) -> Tensor:
    """Round to symmetric INT8 per output channel, at the limits the weights have now."""
    limits = weight.detach().abs().flatten(1).amax(1).float() / INT8_MAX
    tiny = torch.finfo(torch.float32).tiny
    scale = torch.where(limits > 0, limits.clamp_min(tiny), torch.ones_like(limits))
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -INT8_MAX, INT8_MAX)


def _input_rounding(site: Site, asymmetric: bool) -> Rounding:
    if asymmetric:
        step, zero = site.affine_u8()
        scale, low, high = float(step), 0, UINT8_MAX
    else:
        scale, zero, low, high = float(site.scale), 0, -INT8_MAX - 1, INT8_MAX

    def rounded(x: Tensor) -> Tensor:
        # float32 whatever the network computes in, as in the deployed graphs.
        codes = torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, low, high)
        return codes.to(x.dtype)

    return rounded


def _with_trained_ranges(
    fresh: QuantizationRecord, record: QuantizationRecord
) -> QuantizationRecord:
    sites = dict(fresh.sites)
    for name in record.quantized_modules():
        kept = record.site(name, "input")
        sites[(name, "input")] = replace(
            fresh.site(name, "input"), min=kept.min, max=kept.max, amax=kept.amax
        )
    return replace(fresh, sites=sites, calibrator=f"{fresh.calibrator}+qat")


def _check_zeros(
    module: nn.Module, record: QuantizationRecord, masks: Mapping[str, Tensor]
) -> None:
    """Prove on the deployed weights that what the masks forbid is zero."""
    integers = {f"{name}.weight": value for name, value in int8_weights(module, record).items()}
    tensors = dict(module.named_parameters()) | integers
    for name, mask in masks.items():
        if (tensors[name].detach().cpu()[~mask.cpu()] != 0).any():
            raise CheckFailed(
                f"{name} is not zero under its mask after quantization-aware training.",
                "This is a fault of elastic-export; leave quantize.qat out and report it.",
            )
