"""An independent ElasticViT: one pass over the stored tensors, sliced as the system slices them.

No slice rules and no modules are used. Every weight is cut by hand from what the supernet stores,
under the stored names, from an arch in the system's own notation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elastic_export.families.elasticvit import ElasticVitConfig

Weights = Mapping[str, Tensor]


def _bn(x: Tensor, w: Weights, name: str, width: int) -> Tensor:
    mean, var, scale, shift = (
        w[f"{name}.{leaf}"][:width] for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, var, scale, shift, False, 0.0, 1e-5)


def _mobile(x: Tensor, w: Weights, n: str, out: int, ratio: int, k: int, s: int) -> Tensor:
    into = x.shape[1]
    mid, y = into * ratio, x
    if f"{n}.pw_conv.weight" in w:
        y = F.conv2d(y, w[f"{n}.pw_conv.weight"][:mid, :into])
        y = F.hardswish(_bn(y, w, f"{n}.pw_bn", mid))
    kernel = w[f"{n}.dw_conv.weight"][:mid]
    cut = (kernel.shape[-1] - k) // 2
    kernel = kernel[:, :, cut : cut + k, cut : cut + k]
    y = F.conv2d(y, kernel, stride=s, padding=k // 2, groups=mid)
    y = F.hardswish(_bn(y, w, f"{n}.dw_bn", mid))
    if f"{n}.se_conv1.weight" in w:
        few, (a, b) = mid // 4, (f"{n}.se_conv1", f"{n}.se_conv2")
        gate = F.adaptive_avg_pool2d(y, 1)
        gate = F.relu(F.conv2d(gate, w[f"{a}.weight"][:few, :mid], w[f"{a}.bias"][:few]))
        gate = F.conv2d(gate, w[f"{b}.weight"][:mid, :few], w[f"{b}.bias"][:mid])
        y = y * F.hardsigmoid(gate)
    y = _bn(F.conv2d(y, w[f"{n}.pwl_conv.weight"][:out, :mid]), w, f"{n}.pwl_bn", out)
    if s == 2:
        x = F.avg_pool2d(x, 2, padding=x.shape[-1] % 2)
    if into != out:
        x = F.conv2d(x, w[f"{n}.shortcut_conv.weight"][:out, :into])
    return x + y


def _norm(x: Tensor, w: Weights, n: str) -> Tensor:
    shape, width = x.shape[1:], x.shape[-1]
    scale, shift = (w[f"{n}.{leaf}"][:width].expand(shape) for leaf in ("weight", "bias"))
    return F.layer_norm(x, shape, scale, shift)


def _attention(x: Tensor, w: Weights, n: str, head_dim: int, qk: float, v: float) -> Tensor:
    batch, tokens, width = x.shape
    side, packed = round(tokens**0.5), w[f"{n}.qkv.weight"]
    widest, heads = packed.shape[1], width // head_dim
    query, value = int(width // heads * qk), int(v * width // heads)
    rows = torch.cat(
        [
            packed[: heads * query, :width],
            packed[widest : widest + heads * query, :width],
            packed[2 * widest : 2 * widest + heads * value, :width],
        ]
    )
    each = F.linear(_norm(x, w, f"{n}.norm"), rows).view(batch, tokens, heads, -1)
    q, k, values = each.split([query, query, value], dim=3)
    values = values.reshape(batch, tokens, -1).transpose(1, 2).reshape(batch, -1, side, side)
    values = F.conv2d(
        values, w[f"{n}.v_conv.weight"][: heads * value], padding=1, groups=heads * value
    )
    values = values.reshape(batch, heads, value, tokens).transpose(2, 3)
    table = w[f"{n}.bias_table"]
    room = (round(table.shape[0] ** 0.5) + 1) // 2
    places = torch.stack(torch.meshgrid(*[torch.arange(room)] * 2, indexing="ij")).flatten(1)
    offsets = places[:, :, None] - places[:, None, :] + room - 1
    bias = table[offsets[0] * (2 * room - 1) + offsets[1]]
    bias = bias.view(room, room, room, room, -1)[:side, :side, :side, :side]
    bias = bias.reshape(tokens, tokens, -1).permute(2, 0, 1)[:heads]
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * query**-0.5 + bias
    mixed = (scores.softmax(-1) @ values).transpose(1, 2).reshape(batch, tokens, -1)
    proj = w[f"{n}.proj.weight"][:width, : heads * value]
    return F.linear(F.hardswish(mixed), proj, w[f"{n}.proj.bias"][:width])


def _ffn(x: Tensor, w: Weights, n: str, ratio: float) -> Tensor:
    width = x.shape[-1]
    hidden = int(ratio * width)
    y = F.linear(
        _norm(x, w, f"{n}.norm"), w[f"{n}.fc1.weight"][:hidden, :width], w[f"{n}.fc1.bias"][:hidden]
    )
    weight = w[f"{n}.fc2.weight"][:width, :hidden]
    return F.linear(F.hardswish(y), weight, w[f"{n}.fc2.bias"][:width])


def logits(
    config: ElasticVitConfig, w: Weights, arch: Sequence[Any], x: Tensor, taps: list[Tensor]
) -> Tensor:
    """Logits of images at the arch's resolution; outputs of stem and stages go to ``taps``."""
    _, channels, depths, ratios, kernels, mlp, _, _, queries, values = arch
    stem = channels[0]
    x = F.conv2d(x, w["first_conv.weight"][:stem], stride=2, padding=1)
    x = F.hardswish(_bn(x, w, "first_conv_bn", stem))
    for b in range(depths[0]):
        x = _mobile(x, w, f"stem.{b}", stem, 1, kernels[b], 1)
    taps.append(x)
    conv, token = depths[0], 0
    for s, stage in enumerate(config.stages):
        out = channels[s + 1]
        for b in range(depths[s + 1]):
            n, stride = f"stages.{s}.{b}", 2 if stage.downsample and not b else 1
            if stage.kind == "C":
                x = _mobile(x, w, n, out, ratios[conv], kernels[conv], stride)
                conv += 1
                continue
            if not b:
                if x.dim() == 3:
                    side = round(x.shape[1] ** 0.5)
                    x = x.transpose(1, 2).reshape(x.shape[0], -1, side, side)
                x = _mobile(x, w, f"{n}.reduction", out, 6, 3, stride).flatten(2).transpose(1, 2)
            x = x + _attention(x, w, f"{n}.attn", config.head_dim, queries[token], values[token])
            x = x + _ffn(x, w, f"{n}.ffn", mlp[token])
            token += 1
        taps.append(x)
    width = channels[-1] * config.head_expand
    weight, bias = w["pre_head_0.weight"][:width, : channels[-1]], w["pre_head_0.bias"][:width]
    y = F.linear(x, weight, bias)
    y = _bn(y.transpose(1, 2), w, "pre_head_norm_0", width).transpose(1, 2)
    y = F.hardswish(y).mean(dim=1)
    y = F.hardswish(F.linear(y, w["pre_head_1.weight"][:, :width], w["pre_head_1.bias"]))
    return F.linear(y, w["classifier.weight"], w["classifier.bias"])
