"""Settings of Once-for-all ResNet50D supernets.

Base depths and widths as in mit-han-lab/once-for-all (``OFAResNets``), and the choices of its
published supernet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from elastic_export.config.base import Schema
from elastic_export.families.base import Sizes, ascending
from elastic_export.families.mobile import make_divisible
from elastic_export.families.ofa.config import Numbers, OfaConfig, given_lists, given_resolution
from elastic_export.space import Space, Spec

__all__ = ["BASE_DEPTHS", "BASE_STEM", "BASE_WIDTHS", "OfaResNet50DConfig", "ResNetArch"]

BASE_DEPTHS = (2, 2, 4, 2)
BASE_STEM = 64
BASE_WIDTHS = (256, 512, 1024, 2048)

_Index = Annotated[int, Field(ge=0, le=100)]
_Depths = Annotated[tuple[_Index, ...], Field(min_length=1)]
_PLACES_OF_WIDTH = 2 + len(BASE_WIDTHS)


class ResNetArch(Schema):
    """One network: what is added to the base depths, expansion of each place, width indices."""

    d: Annotated[tuple[_Index, ...], Field(min_length=5, max_length=5)]
    e: Numbers
    w: Annotated[tuple[_Index, ...], Field(min_length=6, max_length=6)]


class OfaResNet50DConfig(OfaConfig):
    """Sizes and choices of one supernet, named as the official constructor names them.

    ``depth_list`` is added to the base depths 2, 2, 4, 2. ``arch``, in the official encoding,
    leaves one network of the choices: the one a specialized checkpoint holds.
    """

    resolution: Sizes = (128, 144, 160, 176, 192, 224)
    width_mult_list: Numbers = (0.65, 0.8, 1.0)
    expand_ratio_list: Numbers = (0.2, 0.25, 0.35)
    depth_list: _Depths = (0, 1, 2)
    arch: ResNetArch | None = None

    @model_validator(mode="after")
    def _possible(self) -> OfaResNet50DConfig:
        ascending(self, "width_mult_list", "expand_ratio_list", "depth_list")
        if self.arch is not None:
            if len(self.arch.e) != self.places:
                raise ValueError(f"arch.e needs {self.places} values")
            if max(self.arch.d) > max(self.depth_list):
                raise ValueError("arch.d is deeper than depth_list")
            if max(self.arch.w) >= len(self.width_mult_list):
                raise ValueError("arch.w is an index beyond width_mult_list")
        return self

    @property
    def places(self) -> int:
        """Blocks of the deepest network."""
        return sum(BASE_DEPTHS) + len(BASE_DEPTHS) * max(self.depth_list)

    @property
    def stem_depths(self) -> tuple[int, ...]:
        """Choices of the stem: it has its residual block at the largest number alone."""
        if self.arch is not None:
            return (self.arch.d[0],)
        return tuple(sorted({min(self.depth_list), max(self.depth_list)}))

    def keeps_stem(self, depth: int) -> bool:
        """Whether the stem has its residual block."""
        return depth == max(self.depth_list)

    def depths(self, stage: int) -> tuple[int, ...]:
        """What may be added to a stage's base depth; stages count from 1."""
        return self.depth_list if self.arch is None else (self.arch.d[stage],)

    def blocks(self, stage: int) -> int:
        """Blocks of a stage at its deepest."""
        return BASE_DEPTHS[stage - 1] + max(self.depths(stage))

    def width_indices(self, place: int) -> tuple[int, ...]:
        """Choices of width: places 0 and 1 are the stem's inner and outer, 2 to 5 the stages."""
        if self.arch is not None:
            return (self.arch.w[place],)
        return tuple(range(len(self.width_mult_list)))

    def width(self, place: int, index: int) -> int:
        """Channels at a place for an index into ``width_mult_list``."""
        factor = self.width_mult_list[index]
        if place < 2:
            stem = make_divisible(BASE_STEM * factor)
            return stem if place else make_divisible(stem // 2)
        return make_divisible(BASE_WIDTHS[place - 2] * factor)

    def expansions(self, stage: int, block: int) -> tuple[int | float, ...]:
        """Expansion ratios of a block."""
        if self.arch is None:
            return self.expand_ratio_list
        return (self.arch.e[self.place(stage, block)],)

    def mid(self, out: int, expand: float) -> int:
        """Inner channels of a block: ``mid(256, 0.35)`` is 88."""
        return make_divisible(round(out * expand))

    def place(self, stage: int, block: int) -> int:
        """Index of a block among those of the deepest network."""
        deepest = max(self.depth_list)
        return sum(BASE_DEPTHS[: stage - 1]) + (stage - 1) * deepest + block


def arch_choices(config: OfaResNet50DConfig, space: Space, arch: Mapping[str, Any]) -> Spec:
    """The spec of an arch in the official encoding, ``{"d": [5], "e": [18], "w": [6]}``.

    ``e`` has an entry for every place; those beyond the depth of their stage are inert. ``d[0]``
    is the stem: any number but the largest leaves its residual block out. A single value stands
    for all places. The input size may come as ``resolution``, ``image_size`` or ``r``.

    Raises:
        UserError: A list has the wrong length, or a value is not among the choices.
    """
    lengths = {"d": 1 + len(BASE_DEPTHS), "e": config.places, "w": _PLACES_OF_WIDTH}
    lists = given_lists(arch, lengths)
    deepest = max(config.depth_list)
    depths = lists.get("d", [deepest] * lengths["d"])
    if depths[0] in config.depth_list and not config.keeps_stem(depths[0]):
        without = [depth for depth in config.stem_depths if not config.keeps_stem(depth)]
        depths = [*(without or depths[:1]), *depths[1:]]
    choices: dict[str, Any] = {**given_resolution(arch), "d": depths}
    if "w" in lists:
        choices["w"] = lists["w"]
    for stage, base in enumerate(BASE_DEPTHS, 1):
        live = base + depths[stage] if isinstance(depths[stage], int) else base
        for block in range(min(live, base + deepest) if "e" in lists else 0):
            value = lists["e"][config.place(stage, block)]
            choices[f"layer{stage}.{block}.e"] = value
    return space.canonical(choices)
