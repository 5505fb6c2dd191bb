"""Sizes and choices of the family ``elasticvit``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from elastic_export.config.base import Schema
from elastic_export.families.base import Count, ImageConfig, Ratios, Sizes, ascending

__all__ = ["REDUCTION_RATIO", "ConvStage", "ElasticVitConfig", "TokenStage"]

REDUCTION_RATIO = 6
"""Expansion of the mobile block that begins a stage of transformer blocks."""


class ConvStage(Schema):
    """Choices of one stage of mobile blocks, from small to large.

    ``ratio`` and ``kernel`` are chosen for each block; with ``ratio`` 1 alone the blocks have no
    expansion. ``downsample`` halves the side in the first block; ``se`` adds squeeze and excitation
    to every block.
    """

    kind: Literal["C"] = "C"
    depth: Sizes
    channels: Sizes
    ratio: Sizes = (3, 4, 5, 6)
    kernel: Sizes = (3, 5)
    se: bool = False
    downsample: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> ConvStage:
        ascending(self, "depth", "channels", "ratio", "kernel")
        check_kernels(self.kernel)
        return self

    @property
    def expands(self) -> bool:
        """Whether the blocks begin with a 1x1 expansion."""
        return max(self.ratio) > 1


class TokenStage(Schema):
    """Choices of one stage of transformer blocks, from small to large.

    ``mlp_ratio``, ``v_scale`` (width of the values by that of the queries) and ``qk_scale`` are
    chosen for each block. The stage begins with a mobile block, strided if ``downsample``.
    """

    kind: Literal["T"] = "T"
    depth: Sizes
    channels: Sizes
    mlp_ratio: Ratios = (2.0, 3.0, 4.0, 5.0)
    v_scale: Ratios = (2.0, 3.0, 4.0)
    qk_scale: Ratios = (1.0,)
    downsample: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> TokenStage:
        ascending(self, "depth", "channels", "mlp_ratio", "v_scale", "qk_scale")
        if max(self.qk_scale) > 1:
            raise ValueError("qk_scale must not exceed 1")
        return self


Stage = Annotated[ConvStage | TokenStage, Field(discriminator="kind")]


def check_kernels(kernels: tuple[int, ...]) -> None:
    """Refuse kernels that have no centre."""
    if any(size % 2 == 0 for size in kernels):
        raise ValueError(f"kernel must list odd sizes, not {list(kernels)}")


def _c(depth: range, channels: range, se: bool) -> ConvStage:
    return ConvStage(depth=tuple(depth), channels=tuple(channels), se=se)


def _t(depth: range, channels: range, downsample: bool = True) -> TokenStage:
    return TokenStage(depth=tuple(depth), channels=tuple(channels), downsample=downsample)


PUBLISHED: tuple[Stage, ...] = (
    _c(range(2, 6), range(16, 33, 8), se=False),
    _c(range(2, 7), range(16, 49, 8), se=True),
    _t(range(1, 6), range(48, 97, 16)),
    _t(range(1, 7), range(80, 161, 16), downsample=False),
    _t(range(1, 7), range(144, 289, 16)),
    _t(range(1, 7), range(160, 321, 16)),
)
"""The stages of ``final_3min_space`` (microsoft/Moonlit, ElasticViT/configs)."""


class ElasticVitConfig(ImageConfig):
    """Sizes and choices of one ElasticViT supernet; the defaults are the published one's.

    ``resolution`` lists the image sizes, of which ``image_size`` is the largest. ``head_dim`` is
    the width of a query of one head, so ``channels`` sets the number of heads. The head widens to
    ``head_expand`` times the channels of the last stage, averages over tokens, and has
    ``head_hidden`` features before the classifier, with ``dropout`` between in training.
    """

    image_size: Count = 256
    resolution: Sizes = (128, 160, 176, 192, 224, 256)
    stem_depth: Sizes = (1, 2)
    stem_channels: Sizes = (16, 24)
    stem_kernel: Sizes = (3, 5)
    stages: Annotated[tuple[Stage, ...], Field(min_length=2)] = PUBLISHED
    head_dim: Count = 16
    head_expand: Count = 6
    head_hidden: Count = 1984
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2

    @model_validator(mode="before")
    @classmethod
    def _largest(cls, raw: Any) -> Any:
        """Let the largest resolution be the image size where only that is given."""
        if isinstance(raw, Mapping) and "image_size" not in raw:
            listed = raw.get("resolution")
            whole = isinstance(listed, list | tuple) and all(isinstance(n, int) for n in listed)
            if whole and listed:
                return {**raw, "image_size": max(listed)}
        return raw

    @model_validator(mode="after")
    def _possible(self) -> ElasticVitConfig:
        ascending(self, "resolution", "stem_depth", "stem_channels", "stem_kernel")
        check_kernels(self.stem_kernel)
        if self.image_size != max(self.resolution):
            raise ValueError(
                f"image_size {self.image_size} is not the largest resolution {max(self.resolution)}"
            )
        kinds = "".join(stage.kind for stage in self.stages)
        if (
            kinds != "C" * len(self.conv_stages) + "T" * len(self.token_stages)
            or len(set(kinds)) != 2
        ):
            raise ValueError(f"stages must be some of kind C and then some of kind T, not {kinds}")
        widest = [max(self.stem_channels), *(max(stage.channels) for stage in self.stages)]
        if widest != sorted(widest):
            raise ValueError(
                f"the largest channels must not decrease from the stem on, as {widest} do: the "
                "first block of a stage is stored for as many input channels as its stage has"
            )
        narrow = [c for stage in self.token_stages for c in stage.channels if c < self.head_dim]
        if narrow:
            raise ValueError(f"channels {narrow[0]} are fewer than head_dim {self.head_dim}")
        self._check_sides()
        return self

    def _check_sides(self) -> None:
        for size in self.resolution:
            for s, (side, room) in enumerate(zip(self.sides(size), self.table_sides, strict=True)):
                if self.stages[s].kind == "T" and side > room:
                    raise ValueError(
                        f"resolution {size} gives stages.{s} a map of {side} x {side}, but its "
                        f"table of relative positions holds {room} x {room}"
                    )

    @property
    def conv_stages(self) -> tuple[ConvStage, ...]:
        """The stages of mobile blocks, which come first."""
        return tuple(stage for stage in self.stages if isinstance(stage, ConvStage))

    @property
    def token_stages(self) -> tuple[TokenStage, ...]:
        """The stages of transformer blocks."""
        return tuple(stage for stage in self.stages if isinstance(stage, TokenStage))

    def sides(self, resolution: int) -> tuple[int, ...]:
        """Side of the map behind each stage; strided convolutions round up.

        ``ElasticVitConfig().sides(176)`` is ``(44, 22, 11, 11, 6, 3)``.
        """
        side, found = half(resolution), []
        for stage in self.stages:
            side = half(side) if stage.downsample else side
            found.append(side)
        return tuple(found)

    @property
    def table_sides(self) -> tuple[int, ...]:
        """Side behind each stage that the system reckons with at the largest resolution.

        It rounds down at the stem and at mobile stages, and up at transformer stages; the stored
        tables of relative positions have this size.
        """
        return floored_sides(self, max(self.resolution))

    def heads(self, channels: int) -> int:
        """Number of heads at a width."""
        return channels // self.head_dim

    def attention(self, channels: int, qk_scale: float, v_scale: float) -> tuple[int, int, int]:
        """Heads, and the widths of a query and of a value of one head."""
        heads = self.heads(channels)
        return heads, int(channels // heads * qk_scale), int(v_scale * channels // heads)


def half(side: int) -> int:
    """What a convolution with stride 2 leaves of a side."""
    return (side + 1) // 2


def floored_sides(config: ElasticVitConfig, resolution: int) -> tuple[int, ...]:
    """The system's own reckoning of sides; see :attr:`ElasticVitConfig.table_sides`."""
    side, found = resolution // 2, []
    for stage in config.stages:
        if stage.downsample:
            side = side // 2 if stage.kind == "C" else half(side)
        found.append(side)
    return tuple(found)
