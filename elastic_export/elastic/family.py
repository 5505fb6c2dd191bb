"""What a family must offer: a space, plain modules, and a table from which all slicing follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from elastic_export.config.base import Schema
from elastic_export.config.transform import Transform
from elastic_export.elastic.rules import GroupPrefix, Masked, Prefix, Rule
from elastic_export.space import Costs, Space, Spec

__all__ = ["Dim", "Family", "Layout", "rules_from_layout"]


@dataclass(frozen=True)
class Dim:
    """One dimension of a parameter: the coupling group it moves with.

    All dimensions with the same ``group`` are sliced (and pruned, and permuted) together. With
    ``blocks`` > 1 the dimension is that many equal parts, each sliced by itself.
    """

    group: str
    blocks: int = 1


Layout = Mapping[str, tuple[Dim | None, ...]]


def rules_from_layout(
    layout: Layout, plain: nn.Module, patterns: Mapping[str, str]
) -> dict[str, Rule]:
    """Derive the slice rules of one descendant from the layout and the plain module's shapes.

    Args:
        layout: Tensor name to one entry a dimension; None where the whole dimension is taken.
        plain: The descendant's module, on any device; only names and shapes are read.
        patterns: Parameter name to an N:M pattern; others are dense.

    Returns:
        One rule for every parameter and buffer of ``plain``.
    """
    rules: dict[str, Rule] = {}
    tensors = dict(plain.named_parameters()) | dict(plain.named_buffers())
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        blocks = tuple(1 if dim is None else dim.blocks for dim in layout[name])
        split = any(count > 1 for count in blocks)
        rule: Rule = GroupPrefix(name, shape, blocks) if split else Prefix(name, shape)
        if patterns.get(name, "dense") != "dense":
            rule = Masked(rule, patterns[name])
        rules[name] = rule
    return rules


class Family(Protocol):
    """One file per family implements this; everything else is generic.

    ``config`` is an instance of :attr:`Config`, the sizes and choices of one supernet.
    """

    name: str
    Config: type[Schema]
    bn_variance: Literal["unbiased", "biased"]
    """Which variance of a batch the system averages into BatchNorm statistics."""
    marks: tuple[str, ...]
    """Names that every plain checkpoint of this family holds, and other families' do not."""

    def space(self, config: Any) -> Space:
        """The search space of this supernet."""

    def skeleton(self, config: Any, spec: Spec) -> nn.Module:
        """The plain module of a spec on the meta device, in eval mode, without initialisers."""

    def stored(self, config: Any) -> nn.Module:
        """A module on meta that names the supernet's tensors and gives their shapes.

        Most often the largest plain module. A family whose supernet stores something else
        (bias tables, kernel matrices, packed rows, tensors of each level) says so here.
        """

    def layout(self, config: Any) -> Layout:
        """Coupling groups of every stored parameter and buffer."""

    def rules(self, config: Any, spec: Spec, plain: nn.Module) -> dict[str, Rule]:
        """One slice rule for every parameter and buffer of a spec's plain module."""

    def patterns(self, config: Any, spec: Spec) -> dict[str, str]:
        """Parameter name to N:M pattern for the spec's sparse layers; dense ones are left out."""

    def costs(self, config: Any, space: Space, genes: np.ndarray) -> Costs:
        """Closed-form costs of a population of gene rows (n, axes)."""

    def initialise(self, config: Any, module: nn.Module, generator: torch.Generator) -> None:
        """Fill the module that :meth:`stored` describes with starting values, in place."""

    def input_shape(self, config: Any, spec: Spec | None = None) -> tuple[int, int, int]:
        """Channels, height and width of one input of a spec; the largest without one."""

    def preprocess(self, config: Any, spec: Spec, transform: Transform) -> Transform:
        """How images become this descendant's inputs, given how they become the largest one's."""

    def num_classes(self, config: Any) -> int:
        """The length of the logits."""

    def named_specs(self, config: Any) -> dict[str, Mapping[str, Any]]:
        """Specs known by name beside ``min`` and ``max``."""

    def fold_pairs(self, module: nn.Module) -> list[tuple[str, str]]:
        """Convolution and BatchNorm names that fold into one, for one of this family's modules."""

    def recognise(self, shapes: Mapping[str, tuple[int, ...]], hints: Mapping[str, Any]) -> Schema:
        """Read the config of a plain checkpoint from its keys and shapes, helped by ``hints``.

        Raises:
            UserError: The keys are not this family's, or something is missing and cannot be known.
        """
