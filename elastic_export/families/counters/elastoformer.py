"""Costs of nested levels as Torch-Pruning counts them, which is what Elastoformer prints.

Counted: convolutions with one addition of the bias a position; linear layers with the bias once,
however many tokens there are; two operations an element for LayerNorm and BatchNorm; ReLU's outputs
and poolings' inputs. Not counted: the two attention products, softmax, additions, and the GELU of
Hugging Face, which is a class of its own. Source: ``count_ops_and_params`` in
``torch_pruning/utils/op_counter.py`` of VainF/Torch-Pruning.
"""

from __future__ import annotations

from typing import Any

from elastic_export.families.nested.config import NestedConfig
from elastic_export.families.nested.network import Level
from elastic_export.families.nested.resnet import ResNetNetwork
from elastic_export.families.nested.vgg import VggNetwork
from elastic_export.families.nested.vit import VitNetwork
from elastic_export.space import Spec

__all__ = ["torch_pruning_counts"]


def torch_pruning_counts(config: Any, spec: Spec) -> dict[str, float]:
    """``macs`` and ``params`` of a level, for one image.

    Args:
        config: Of family ``nested``.
        spec: The level.
    """
    assert isinstance(config, NestedConfig)
    number = int(spec["level"]) - 1
    level, network = config.levels[number], config.network
    if isinstance(network, VitNetwork):
        macs = _vit(network, config, level)
    elif isinstance(network, ResNetNetwork):
        macs = _resnet(network, config, level)
    else:
        macs = _vgg(network, config, level, number)
    return {"macs": macs, "params": network.cost(config, level, number)[1]}


def _vit(network: VitNetwork, config: NestedConfig, level: Level) -> int:
    patches = (config.image_size // network.patch_size) ** 2
    tokens, width = patches + 1, level.size("embed")
    macs = patches * width * (config.in_chans * network.patch_size**2 + 1)
    macs += (2 * network.depth + 1) * 2 * tokens * width + (width + 1) * config.num_classes
    for i in range(network.depth):
        inner, hidden = level.size(f"blocks.{i}.inner"), level.size(f"blocks.{i}.hidden")
        biases = 3 * inner * network.qkv_bias + width + hidden + width
        macs += tokens * (4 * inner * width + 2 * hidden * width) + biases
    return macs


def _resnet(network: ResNetNetwork, config: NestedConfig, level: Level) -> int:
    side, stem = (config.image_size + 1) // 2, level.size("stem")
    # Convolution, norm (2), ReLU (1) and the pooling's input (1).
    macs = side**2 * stem * (49 * config.in_chans + 4)
    side = (side + 1) // 2
    for block in network.blocks():
        before, side = side, (side + 1) // 2 if block.stride == 2 else side
        sizes = [level.size(group) for group in block.groups]
        for i, kernel in enumerate(block.kernels):
            positions = (before if i < block.strided else side) ** 2
            macs += positions * sizes[i + 1] * (kernel**2 * sizes[i] + 3)
        if block.shortcut:
            macs += side**2 * sizes[-1] * (sizes[0] + 2)
    last = level.size(network.last)
    return macs + side**2 * last + (last + 1) * config.num_classes


def _vgg(network: VggNetwork, config: NestedConfig, level: Level, number: int) -> int:
    form, side, into = network.form(number), config.image_size, config.in_chans
    macs = conv = 0
    for item in form.plan:
        if item == "M":
            macs += side**2 * into
            side //= 2
            continue
        out = level.size(f"conv{conv}")
        macs += side**2 * out * (9 * into + form.conv_bias + 2 * form.norm + 1)
        into, conv = out, conv + 1
    macs += side**2 * into
    into *= network.pool**2
    for out in network.fc:
        macs, into = macs + (into + 1) * out + out, out
    return macs + (into + 1) * config.num_classes
