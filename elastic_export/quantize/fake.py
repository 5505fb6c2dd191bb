"""The quantized network in torch: what the deployed integers compute, in floating point.

Verification compares every ONNX flavour with it, and the accuracy guard may evaluate it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor, nn

from elastic_export.errors import CheckFailed
from elastic_export.quantize.policy import Layer, quantizable_layers
from elastic_export.quantize.record import QuantizationRecord, Site, quantize_int8
from elastic_export.sparsity.masks import check_patterns

__all__ = ["WeightForm", "check_pattern_int8", "fake_quantize", "int8_weights", "rounding"]

WeightForm = Callable[
    [NDArray[np.float32], NDArray[np.float32]], tuple[NDArray[np.int8], NDArray[np.float32]]
]
"""From rows ``(out, K)`` and limits ``(out,)`` to codes ``(out, K)`` and scales ``(out,)``.

K runs over kernel positions first and channels last, the order in which ONNX Runtime sums.
"""


def fake_quantize(
    module: nn.Module,
    record: QuantizationRecord,
    *,
    asymmetric: bool = False,
    outputs: Collection[str] = (),
    scale_dtype: DTypeLike = np.float32,
    weight_form: WeightForm | None = None,
) -> nn.Module:
    """Return a copy whose quantized layers compute with INT8 inputs and weights.

    Weights are rounded per output channel to symmetric INT8, inputs per tensor. Biases stay in
    floating point: as INT32 at the product of both scales their error is far below the others'.

    Args:
        module: The plain module the record was taken from; not changed.
        record: Which layers are quantized, as a flavour places them, and their ranges. Skip
            connections and attentions stay in floating point (see ``export.reference``).
        asymmetric: Inputs (and ``outputs``) as UINT8 with a zero point, as in the ``ort-cpu``
            flavour, instead of symmetric INT8, as in ``trt-strong``.
        outputs: Layers whose output is quantized too (fused ``QLinearMatMul``, ``QLinearConv``).
        scale_dtype: Type the graph stores symmetric scales in (float16 in strongly typed graphs).
        weight_form: How a flavour rounds weights, where it is not to ``amax / 127``.

    Raises:
        CheckFailed: the record names a layer the module does not have.
    """
    twin = copy.deepcopy(module).eval()
    layers = quantizable_layers(twin)
    for name in record.quantized_modules():
        layer = _layer(layers, record, name)
        real = _deployed_weight(layer, record.site(name, "weight"), scale_dtype, weight_form)
        layer.weight = nn.Parameter(real.to(layer.weight), requires_grad=False)
        rounded = rounding(record.site(name, "input"), asymmetric=asymmetric, dtype=scale_dtype)
        layer.register_forward_pre_hook(_before(rounded))
        if name in outputs:
            rounded = rounding(
                record.site(name, "output"), asymmetric=asymmetric, dtype=scale_dtype
            )
            layer.register_forward_hook(_after(rounded))
    return twin


def int8_weights(module: nn.Module, record: QuantizationRecord) -> dict[str, Tensor]:
    """Return the symmetric INT8 weight of every quantized layer, in the layer's shape.

    Raises:
        CheckFailed: the record names a layer the module does not have, or of another width.
    """
    layers = quantizable_layers(module)
    return {
        name: torch.from_numpy(
            quantize_int8(_values(_layer(layers, record, name).weight), record.site(name, "weight"))
        )
        for name in record.quantized_modules()
    }


def check_pattern_int8(
    module: nn.Module, record: QuantizationRecord, patterns: Mapping[str, str]
) -> dict[str, str]:
    """Prove that the N:M patterns hold on the weights that are deployed.

    Args:
        module: The plain module the record was taken from.
        record: Which layers are quantized, and their ranges.
        patterns: Parameter name (``blocks.0.attn.qkv.weight``) to pattern (``2:4``).

    Returns:
        Parameter name to ``int8`` or ``float``: the form in which its pattern was checked.

    Raises:
        CheckFailed: a pattern does not hold; the parameter is named.
    """
    integers = {f"{name}.weight": w for name, w in int8_weights(module, record).items()}
    tensors = {name: p.detach() for name, p in module.named_parameters()} | integers
    check_patterns(tensors, patterns)
    return {name: "int8" if name in integers else "float" for name in patterns}


def _values(weight: Tensor) -> NDArray[np.float32]:
    return np.asarray(weight.detach().float().cpu().numpy())


def _layer(layers: Mapping[str, Layer], record: QuantizationRecord, name: str) -> Layer:
    """Find a layer of the record and make sure that its ranges fit."""
    layer, ranges = layers.get(name), record.site(name, "weight").amax.size
    if layer is not None and layer.weight.shape[0] == ranges:
        return layer
    has = "no such layer" if layer is None else f"{layer.weight.shape[0]} output channels"
    raise CheckFailed(
        f'The quantization record has {ranges} ranges for layer "{name}", but the module has '
        f"{has}.",
        "Calibrate this module again; the record belongs to another one.",
    )


def _deployed_weight(layer: Layer, site: Site, dtype: DTypeLike, form: WeightForm | None) -> Tensor:
    """Return the real values that the layer's integers stand for, in its shape."""
    values = _values(layer.weight)
    if form is None:
        codes = quantize_int8(values, site, dtype=dtype)
        scale = site.symmetric_scale(dtype).astype(np.float32)
        return torch.from_numpy(codes * scale.reshape(-1, *[1] * (values.ndim - 1)))
    last = np.moveaxis(values, 1, -1)
    codes, scale = form(last.reshape(len(values), -1), site.amax)
    real = (codes * scale[:, None]).reshape(last.shape)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(real, -1, 1), dtype=np.float32))


def rounding(
    site: Site, *, asymmetric: bool = False, dtype: DTypeLike = np.float32
) -> Callable[[Tensor], Tensor]:
    """Return the round trip through the integers of a per-tensor site.

    Args:
        site: Its range.
        asymmetric: UINT8 with a zero point instead of symmetric INT8.
        dtype: Type the graph stores a symmetric scale in.
    """
    if asymmetric:
        affine, zero = site.affine_u8()
        step, low, high = float(affine), -zero, 255 - zero
    else:
        step, low, high = float(site.symmetric_scale(dtype)), -128, 127

    def rounded(x: Tensor) -> Tensor:
        # In float32 whatever the network computes in, as ONNX Runtime's QuantizeLinear does.
        return ((x.float() / step).round().clamp(low, high) * step).to(x.dtype)

    return rounded


def _before(
    rounded: Callable[[Tensor], Tensor],
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda _, args: (rounded(args[0]), *args[1:])


def _after(
    rounded: Callable[[Tensor], Tensor],
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    return lambda _, __, out: rounded(out)
