"""Independent references of the Once-for-all families: the active supernet, written out.

Nothing here uses slice rules or plain modules: weights are cut where they are used, as the
official elastic layers do, and every width comes from the rounding rule written out once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


def rounded(value: float) -> int:
    """To a multiple of 8, at least 8, not below nine tenths."""
    low = int(value // 8) * 8
    near = low + 8 if value - low >= 4 else low
    near = max(near, 8)
    return near if near >= 0.9 * value else near + 8


def _norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    n = x.shape[1]
    mean, var, weight, bias = (
        state[f"{name}.{leaf}"][:n].reshape(1, n, 1, 1)
        for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + eps).sqrt() * weight + bias


def _conv(state: State, name: str, x: Tensor, out: int, stride: int = 1, side: int = 1) -> Tensor:
    weight = state[f"{name}.weight"][:out, : x.shape[1]]
    return F.conv2d(x, weight, stride=stride, padding=side // 2)


def _kernel(state: State, name: str, channels: int, size: int, sizes: list[int]) -> Tensor:
    kernel = state[f"{name}.weight"][:channels]
    for large, small in zip(sizes[::-1], sizes[::-1][1:], strict=False):
        if large <= size:
            break
        start, end = large // 2 - small // 2, large // 2 + small // 2 + 1
        kernel = kernel[:, :, start:end, start:end]
        matrix = state.get(f"{name}.{large}to{small}_matrix")
        if matrix is not None:
            kernel = torch.einsum("ok,ck->co", matrix, kernel.flatten(1)).reshape(kernel.shape)
    return kernel


def _relu6(x: Tensor) -> Tensor:
    return x.clamp(0, 6)


def _act(kind: str, x: Tensor) -> Tensor:
    return x.clamp(min=0) if kind == "relu" else x * _relu6(x + 3) / 6


def _squeeze(state: State, name: str, x: Tensor) -> Tensor:
    c = x.shape[1]
    mid = rounded(c // 4)
    y = x.mean((2, 3), keepdim=True)
    reduce, expand = f"{name}.conv_reduce", f"{name}.conv_expand"
    y = F.conv2d(y, state[f"{reduce}.weight"][:mid, :c], state[f"{reduce}.bias"][:mid]).clamp(min=0)
    y = F.conv2d(y, state[f"{expand}.weight"][:c, :mid], state[f"{expand}.bias"][:c])
    return x * _relu6(y + 3) / 6


def mbv3(config: Any, state: State, arch: Mapping[str, Any], x: Tensor) -> Tensor:
    """Logits of an arch in the official encoding, full lists."""
    base = [16, 16, 24, 40, 80, 112, 160, 960, 1280]
    widths, eps = [rounded(b * config.width_mult) for b in base], config.bn_eps
    strides, acts = [2, 2, 2, 1, 2], ["relu", "relu", "swish", "swish", "swish"]
    squeezes, sizes = [False, True, False, True, True], sorted(config.ks_list)
    x = _act("swish", _norm(state, "bn1", _conv(state, "conv_stem", x, widths[0], 2, 3), eps))
    first = "blocks.0.0"
    y = F.conv2d(x, state[f"{first}.conv_dw.weight"], padding=1, groups=x.shape[1])
    y = _norm(state, f"{first}.bn1", y, eps).clamp(min=0)
    y = _norm(state, f"{first}.bn2", _conv(state, f"{first}.conv_pw", y, widths[1]), eps)
    x = x + y if widths[0] == widths[1] else y
    deepest = max(config.depth_list)
    for s in range(5):
        for b in range(arch["d"][s]):
            place, name = s * deepest + b, f"blocks.{s + 1}.{b}"
            mid = rounded(round(x.shape[1] * arch["e"][place]))
            y = _norm(state, f"{name}.bn1", _conv(state, f"{name}.conv_pw", x, mid), eps)
            y = _act(acts[s], y)
            size, stride = arch["ks"][place], 1 if b else strides[s]
            kernel = _kernel(state, f"{name}.conv_dw", mid, size, sizes)
            y = F.conv2d(y, kernel, stride=stride, padding=size // 2, groups=mid)
            y = _act(acts[s], _norm(state, f"{name}.bn2", y, eps))
            y = _squeeze(state, f"{name}.se", y) if squeezes[s] else y
            y = _norm(state, f"{name}.bn3", _conv(state, f"{name}.conv_pwl", y, widths[s + 2]), eps)
            x = x + y if x.shape == y.shape else y
    x = _norm(state, "blocks.6.0.bn1", _conv(state, "blocks.6.0.conv", x, widths[7]), eps)
    x = _act("swish", x).mean((2, 3), keepdim=True)
    x = _act("swish", _conv(state, "conv_head", x, widths[8])).flatten(1)
    return x @ state["classifier.weight"].T + state["classifier.bias"]


def resnet(config: Any, state: State, arch: Mapping[str, Any], x: Tensor) -> Tensor:
    """Logits of an arch in the official encoding, full lists."""
    eps, w = config.bn_eps, [config.width_mult_list[i] for i in arch["w"]]
    inner, stem = rounded(rounded(64 * w[0]) // 2), rounded(64 * w[1])

    def unit(name: str, x: Tensor, out: int, stride: int = 1) -> Tensor:
        y = _conv(state, f"{name}.conv", x, out, stride, 3)
        return _norm(state, f"{name}.bn", y, eps).clamp(min=0)

    x = unit("stem.0", x, inner, 2)
    if arch["d"][0] == max(config.depth_list):
        x = x + unit("stem.1", x, inner)
    x = F.max_pool2d(unit("stem.2", x, stem), 3, 2, 1)
    start = 0
    for s, (base, width) in enumerate(zip((2, 2, 4, 2), (256, 512, 1024, 2048), strict=True)):
        out = rounded(width * w[s + 2])
        for b in range(base + arch["d"][s + 1]):
            name, stride = f"layer{s + 1}.{b}", 2 if s and not b else 1
            mid, skip = rounded(round(out * arch["e"][start + b])), x
            if not b:
                odd = (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)
                if stride == 2:  # the mean of what lies inside, where the border cuts a window
                    ones = F.pad(torch.ones_like(x), odd)
                    skip = F.avg_pool2d(F.pad(x, odd), 2) / F.avg_pool2d(ones, 2)
                skip = _conv(state, f"{name}.downsample.1", skip, out)
                skip = _norm(state, f"{name}.downsample.2", skip, eps)
            y = _norm(state, f"{name}.bn1", _conv(state, f"{name}.conv1", x, mid), eps)
            y = _conv(state, f"{name}.conv2", y.clamp(min=0), mid, stride, 3)
            y = _norm(state, f"{name}.bn2", y, eps).clamp(min=0)
            y = _norm(state, f"{name}.bn3", _conv(state, f"{name}.conv3", y, out), eps)
            x = (y + skip).clamp(min=0)
        start += base + max(config.depth_list)
    x = x.mean((2, 3))
    return x @ state["fc.weight"][:, : x.shape[1]].T + state["fc.bias"]
