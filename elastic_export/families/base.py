"""What every family of image classifiers has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import Field
from torch import nn

from elastic_export.config.base import Schema
from elastic_export.config.transform import Transform
from elastic_export.elastic.family import Family, rules_from_layout
from elastic_export.elastic.rules import Rule
from elastic_export.errors import UserError
from elastic_export.space import Spec

__all__ = ["Count", "ImageConfig", "ImageFamily", "Ratios", "Sizes", "ascending"]

Count = Annotated[int, Field(gt=0)]
Sizes = Annotated[tuple[Count, ...], Field(min_length=1)]
Ratios = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]


class ImageConfig(Schema):
    """Settings of every family: square images in, logits out, and specs by name."""

    image_size: Count = 224
    in_chans: Count = 3
    num_classes: Count = 1000
    specs: dict[str, dict[str, Any]] = Field(default_factory=dict)


class ImageFamily:
    """The parts of a family that follow from :class:`ImageConfig`."""

    name: str
    bn_variance: Literal["unbiased", "biased"] = "unbiased"
    read_by: str = ""
    """The format whose reader makes supernets of this family, where timm's names do not."""

    def stored(self, config: Any) -> nn.Module:
        """The largest plain module."""
        family: Family = cast("Family", self)
        return family.skeleton(config, family.space(config).max())

    def rules(self, config: Any, spec: Spec, plain: nn.Module) -> dict[str, Rule]:
        """What follows from the layout and the patterns."""
        family: Family = cast("Family", self)
        return rules_from_layout(family.layout(config), plain, family.patterns(config, spec))

    def input_shape(self, config: ImageConfig, spec: Spec | None = None) -> tuple[int, int, int]:
        """Channels, height, width; a spec with a gene ``resolution`` has its own."""
        size = config.image_size
        if spec is not None and "resolution" in spec:
            size = int(spec["resolution"])
        return config.in_chans, size, size

    def preprocess(self, config: ImageConfig, spec: Spec, transform: Transform) -> Transform:
        """Crop to the spec's resolution; what is resized before grows or shrinks with it.

        A network for 224 pixels with ``resize`` 256 becomes one for 192 with ``resize`` 219.
        """
        size = self.input_shape(config, spec)[1]
        if "resolution" not in spec or size == transform.size:
            return transform
        resize = transform.resize or transform.size
        return transform.model_copy(
            update={"size": size, "resize": round(resize * size / transform.size)}
        )

    def num_classes(self, config: ImageConfig) -> int:
        """The length of the logits."""
        return config.num_classes

    def named_specs(self, config: ImageConfig) -> dict[str, Mapping[str, Any]]:
        """The specs the config names."""
        return dict(config.specs)

    def patterns(self, config: Any, spec: Spec) -> dict[str, str]:
        """What the genes ``LAYER.nm`` say, without dense ones; nothing where there are none."""
        return {
            f"{name.removesuffix('.nm')}.weight": str(value)
            for name, value in spec.items()
            if name.endswith(".nm") and value != "dense"
        }

    def fold_pairs(self, module: nn.Module) -> list[tuple[str, str]]:
        """Every convolution that is followed by a BatchNorm in the order of the modules."""
        pairs, conv = [], ""
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Conv2d):
                conv = name
            elif isinstance(layer, nn.BatchNorm2d):
                pairs.append((conv, name))
        return pairs

    def recognise(self, shapes: Mapping[str, tuple[int, ...]], hints: Mapping[str, Any]) -> Any:
        """Refuse: a family without timm's names has a reader of its own."""
        raise UserError(
            f"A network of family {self.name} is not read from timm's names.",
            f"Leave the format out or set it to {self.read_by}, and give a file of that system.",
        )


def ascending(config: Schema, *names: str) -> None:
    """Refuse choices that are not different and listed from small to large."""
    for name in names:
        choices = getattr(config, name)
        if list(choices) != sorted(set(choices)):
            raise ValueError(f"{name} must list different values from small to large")
