"""Settings of Once-for-all MobileNetV3 supernets.

Base widths, strides, activations and squeeze-and-excite as in mit-han-lab/once-for-all
(``OFAMobileNetV3``); the published supernets have ``width_mult`` 1.0 and 1.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from elastic_export.config.base import Schema
from elastic_export.families.base import Count, Sizes, ascending
from elastic_export.families.mobile import Activation, make_divisible
from elastic_export.families.ofa.config import (
    Factor,
    Numbers,
    OfaConfig,
    given_lists,
    given_resolution,
)
from elastic_export.space import Space, Spec

__all__ = ["BASE_WIDTHS", "STAGES", "Mbv3Arch", "OfaMbv3Config", "arch_choices"]

BASE_WIDTHS = (16, 16, 24, 40, 80, 112, 160, 960, 1280)
"""First convolution, first block, stages 1 to 5, last expansion, feature mix."""
STAGES: tuple[tuple[int, Activation, bool], ...] = (
    (2, "relu", False),
    (2, "relu", True),
    (2, "h_swish", False),
    (1, "h_swish", True),
    (2, "h_swish", True),
)
"""Stride, activation and squeeze-and-excite of the elastic stages."""
LARGEST_KERNEL = 31
DEEPEST = 100


class Mbv3Arch(Schema):
    """One network: kernel and expansion of each place, depth of each stage."""

    ks: Sizes
    e: Numbers
    d: Annotated[tuple[Count, ...], Field(min_length=len(STAGES), max_length=len(STAGES))]


class OfaMbv3Config(OfaConfig):
    """Sizes and choices of one supernet, named as the official constructor names them.

    ``kernel_transform`` is off where small kernels are bare crops of the large one. ``arch``, in
    the official encoding, leaves one network of the choices: the one a specialized checkpoint
    holds.
    """

    width_mult: Factor = 1.0
    ks_list: Sizes = (3, 5, 7)
    expand_ratio_list: Numbers = (3, 4, 6)
    depth_list: Sizes = (2, 3, 4)
    kernel_transform: bool = True
    arch: Mbv3Arch | None = None

    @model_validator(mode="after")
    def _possible(self) -> OfaMbv3Config:
        ascending(self, "ks_list", "expand_ratio_list", "depth_list")
        if any(kernel % 2 == 0 or kernel > LARGEST_KERNEL for kernel in self.ks_list):
            raise ValueError(f"ks_list must hold odd kernel sizes of at most {LARGEST_KERNEL}")
        if max(self.depth_list) > DEEPEST:
            raise ValueError(f"depth_list ends with more than {DEEPEST}")
        if not self.expands and len(self.expand_ratio_list) > 1:
            raise ValueError("expand_ratio_list ends with 1, so it cannot list others")
        if self.arch is not None:
            for name in ("ks", "e"):
                if len(getattr(self.arch, name)) != self.places:
                    raise ValueError(
                        f"arch.{name} needs {self.places} values: {len(STAGES)} stages of up to "
                        f"{max(self.depth_list)} blocks"
                    )
            if max(self.arch.d) > max(self.depth_list):
                raise ValueError("arch.d is deeper than depth_list")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at the places of :data:`BASE_WIDTHS`."""
        return tuple(make_divisible(base * self.width_mult) for base in BASE_WIDTHS)

    @property
    def places(self) -> int:
        """Elastic blocks of the deepest network."""
        return len(STAGES) * max(self.depth_list)

    @property
    def expands(self) -> bool:
        """Whether blocks begin with an expansion; not where its ratio is 1 at most."""
        return max(self.expand_ratio_list) != 1

    def depths(self, stage: int) -> tuple[int, ...]:
        """Choices of a stage, which are counted from 1."""
        return self.depth_list if self.arch is None else (self.arch.d[stage - 1],)

    def kernels(self, stage: int, block: int) -> tuple[int, ...]:
        """Kernel sizes of a block."""
        return self.ks_list if self.arch is None else (self.arch.ks[self._place(stage, block)],)

    def expansions(self, stage: int, block: int) -> tuple[int | float, ...]:
        """Expansion ratios of a block."""
        if self.arch is None:
            return self.expand_ratio_list
        return (self.arch.e[self._place(stage, block)],)

    def mid(self, into: int, expand: float) -> int:
        """Inner channels of a block: ``mid(24, 3)`` is 72."""
        return make_divisible(round(into * expand))

    def _place(self, stage: int, block: int) -> int:
        return (stage - 1) * max(self.depth_list) + block


def arch_choices(config: OfaMbv3Config, space: Space, arch: Mapping[str, Any]) -> Spec:
    """The spec of an arch in the official encoding, ``{"ks": [20], "e": [20], "d": [5]}``.

    The lists have an entry for every place; those beyond the depth of their stage are inert. A
    single value stands for all places. The input size may come as ``resolution``, ``image_size``
    or ``r``; ``wid``, which old archs have, must be None.

    Raises:
        UserError: A list has the wrong length, or a value is not among the choices.
    """
    places = {"ks": config.places, "e": config.places, "d": len(STAGES), "wid": 1}
    lists = given_lists(arch, places)
    depths = lists.get("d", [max(config.depths(s)) for s in range(1, len(STAGES) + 1)])
    deepest = max(config.depth_list)
    choices: dict[str, Any] = given_resolution(arch)
    for name in ("ks", "e"):
        for place, value in enumerate(lists.get(name, [])):
            stage, block = place // deepest, place % deepest
            if isinstance(depths[stage], int) and block < depths[stage]:
                choices[f"blocks.{stage + 1}.{block}.{name}"] = value
    choices |= {f"blocks.{stage}.d": depth for stage, depth in enumerate(depths, 1)}
    return space.canonical(choices)
