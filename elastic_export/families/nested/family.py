"""Nested levels: networks inside one another, of which one is chosen at run time.

The store holds the largest level with its channels in the order in which the levels take them up,
so that every level is a prefix slice (of each head, for attention) and a level that grows appends.
What a level does not share is stored beside, as an override. Levels in this sense are the
descendants of Elastoformer (sudaksh14/Elastoformer on GitHub; it has no paper).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from elastic_export.elastic.family import Dim, Layout
from elastic_export.elastic.rules import GroupPrefix, Index, Prefix, Rule
from elastic_export.elastic.skeleton import on_meta
from elastic_export.families.base import ImageConfig, ImageFamily
from elastic_export.families.nested.config import NestedConfig
from elastic_export.families.registry import register
from elastic_export.space import Axis, Costs, Space, Spec

__all__ = ["Nested", "NestedConfig", "override_name", "tensors_of", "unfold"]


def override_name(level: int, name: str) -> str:
    """The stored name of a level's own tensor; levels count from 1."""
    return f"levels.{level}.{name}"


@register
class Nested(ImageFamily):
    """The family ``nested``."""

    name = "nested"
    read_by = "elastoformer"
    Config = NestedConfig
    # No plain file is recognized: the order of channels and the head counts are not in the names.
    marks = (override_name(1, "*"),)

    def space(self, config: NestedConfig) -> Space:
        """One axis, ``level``."""
        return Space([Axis("level", tuple(range(1, len(config.levels) + 1)))])

    def skeleton(self, config: NestedConfig, spec: Spec) -> nn.Module:
        """The plain module of a level on meta."""
        return self._plain(config, int(spec["level"]))

    def stored(self, config: NestedConfig) -> nn.Module:
        """The largest level, and under ``levels.N`` what level N has of its own."""
        module = self._plain(config, len(config.levels))
        for number, level in enumerate(config.levels, 1):
            if level.overrides:
                tensors = tensors_of(self._plain(config, number))
                for name in level.overrides:
                    _put(module, override_name(number, name), tensors[name])
        return module

    def layout(self, config: NestedConfig) -> Layout:
        """The groups of the base network; an override moves with nothing."""
        layout = self._layout(config, len(config.levels))
        for number, level in enumerate(config.levels, 1):
            own = config.network.layout(number - 1)
            layout |= {
                override_name(number, name): (None,) * len(own[name]) for name in level.overrides
            }
        return layout

    def rules(self, config: NestedConfig, spec: Spec, plain: nn.Module) -> dict[str, Rule]:
        """A prefix (of each part), given rows, or the level's own tensor."""
        number = int(spec["level"])
        level, layout = config.levels[number - 1], self._layout(config, number)
        rules: dict[str, Rule] = {}
        for name, tensor in tensors_of(plain).items():
            shape, dims = tuple(tensor.shape), layout[name]
            blocks = tuple(1 if dim is None else dim.blocks for dim in dims)
            if name in level.overrides:
                rules[name] = Prefix(override_name(number, name), shape)
            elif any(dim is not None and dim.group in level.rows for dim in dims):
                entries = [
                    self._entries(
                        config, number, dim, config.network.repeats(name) if axis == 1 else 1
                    )
                    for axis, dim in enumerate(dims)
                ]
                rules[name] = Index(name, tuple(entries))
            elif any(count > 1 for count in blocks):
                rules[name] = GroupPrefix(name, shape, blocks)
            else:
                rules[name] = Prefix(name, shape)
        return rules

    def costs(self, config: NestedConfig, space: Space, genes: np.ndarray) -> Costs:
        """Those of each level, looked up for every individual."""
        table = np.array(
            [config.network.cost(config, level, n) for n, level in enumerate(config.levels)],
            dtype=np.int64,
        )
        rows = table[space.values(genes, "level").astype(np.int64) - 1]
        return Costs(rows[:, 0], rows[:, 0], rows[:, 0], rows[:, 1])

    def initialise(
        self, config: NestedConfig, module: nn.Module, generator: torch.Generator
    ) -> None:
        """He normal (fan out) for convolutions, N(0, 0.02) for the rest; norms start as identity.

        A level's own tensors start as their slices of the largest level's.
        """
        tensors = tensors_of(module)
        with torch.no_grad():
            for name, tensor in tensors.items():
                if tensor.dim() == 4:
                    fan_out = tensor.shape[0] * tensor.shape[2] * tensor.shape[3]
                    tensor.normal_(0.0, (2.0 / fan_out) ** 0.5, generator=generator)
                elif tensor.dim() > 1:
                    tensor.normal_(0.0, 0.02, generator=generator)
                else:
                    tensor.fill_(1 if name.endswith((".weight", "running_var")) else 0)
            bare = [level.model_copy(update={"overrides": ()}) for level in config.levels]
            shared = config.model_copy(update={"levels": tuple(bare)})
            largest = self._layout(config, len(bare))
            for number, level in enumerate(config.levels, 1):
                spec = self.space(config).canonical({"level": number})
                rules = self.rules(shared, spec, self._plain(config, number))
                layout = self._layout(config, number)
                for name in level.overrides:
                    if layout[name] == largest.get(name):
                        value = rules[name].read(tensors)
                        tensors[override_name(number, name)].copy_(value)

    def named_specs(self, config: ImageConfig) -> dict[str, Mapping[str, Any]]:
        """``level1`` and so on, and the specs the config names."""
        assert isinstance(config, NestedConfig)
        levels = {f"level{n}": {"level": n} for n in range(1, len(config.levels) + 1)}
        return levels | dict(config.specs)

    def fold_pairs(self, module: nn.Module) -> list[tuple[str, str]]:
        """Every convolution with the BatchNorm behind it."""
        modules = dict(module.named_modules())
        return [
            (name, norm)
            for name, layer in modules.items()
            if isinstance(layer, nn.Conv2d)
            and isinstance(modules.get(norm := _norm_of(name)), nn.BatchNorm2d)
        ]

    def _plain(self, config: NestedConfig, number: int) -> nn.Module:
        with on_meta():
            level = config.levels[number - 1]
            return config.network.plain(config, level, number - 1).eval()

    def _layout(self, config: NestedConfig, number: int) -> dict[str, tuple[Dim | None, ...]]:
        """The base network's layout with the parts of the stored order."""
        return {
            name: tuple(
                dim and Dim(dim.group, dim.blocks * config.parts_of(dim.group)) for dim in dims
            )
            for name, dims in config.network.layout(number - 1).items()
        }

    def _entries(
        self, config: NestedConfig, number: int, dim: Dim | None, repeats: int
    ) -> tuple[int, ...] | int | None:
        """The entries of one stored dimension that a level takes."""
        if dim is None:
            return None
        taken = config.levels[number - 1].rows.get(dim.group)
        if taken is None and dim.blocks == 1:
            return config.levels[number - 1].size(dim.group) * repeats
        if taken is None:
            taken = config.prefix(dim.group, number)
        packed = dim.blocks // config.parts_of(dim.group)
        return unfold(taken, config.levels[-1].size(dim.group), packed, repeats)


def unfold(entries: Sequence[int], whole: int, blocks: int, repeats: int) -> tuple[int, ...]:
    """Entries of a group as entries of one dimension of a tensor.

    Args:
        entries: Which of the group's channels, in order.
        whole: How many channels the group has in that tensor.
        blocks: How often the dimension holds the whole group, one after another (3 for ``qkv``).
        repeats: How many neighbors belong to one channel.
    """
    return tuple(
        (block * whole + entry) * repeats + i
        for block in range(blocks)
        for entry in entries
        for i in range(repeats)
    )


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Register a tensor under a dotted name, with containers on the way."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor)


def _norm_of(conv: str) -> str:
    """Where torchvision puts the BatchNorm of a convolution."""
    head, dot, leaf = conv.rpartition(".")
    follows = str(int(leaf) + 1) if leaf.isdigit() else leaf.replace("conv", "bn")
    return f"{head}{dot}{follows}"
