"""VGG as a base of nested levels: a width for each convolution, and a form for each level.

Levels may differ in form, because Elastoformer (sudaksh14/Elastoformer on GitHub) prunes the core
out of torchvision's VGG and rebuilds the others without convolution biases.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from elastic_export.config.base import Schema
from elastic_export.elastic.family import Dim, Layout
from elastic_export.families.base import Count, ImageConfig
from elastic_export.families.nested.network import Level, Network
from elastic_export.families.vgg import PlainVgg, VggConfig

__all__ = ["PlainNestedVgg", "VggForm", "VggNetwork"]


class VggForm(Schema):
    """How one level is put together.

    ``plan`` has a ``C`` for each convolution and an ``M`` for each pooling, in order.
    """

    plan: Annotated[str, Field(pattern=r"^C[CM]*$")]
    norm: bool = True
    conv_bias: bool = False

    def places(self) -> list[int]:
        """Index in ``features`` of each convolution."""
        found, place = [], 0
        for item in self.plan:
            if item == "C":
                found.append(place)
            place += 2 + self.norm if item == "C" else 1
        return found


class VggNetwork(Network):
    """What all levels of a VGG share; ``forms`` has one entry for all levels or one for each.

    Groups: ``conv0``, ``conv1``, ... for the outputs of the convolutions.
    """

    arch: Literal["vgg"] = "vgg"
    forms: Annotated[tuple[VggForm, ...], Field(min_length=1)]
    fc: tuple[Count, ...] = (4096, 4096)
    pool: Count = 7

    def form(self, number: int) -> VggForm:
        """The form of a level, counted from 0."""
        return self.forms[number if len(self.forms) > 1 else 0]

    def layout(self, number: int) -> Layout:
        """Names as torchvision has them."""
        form = self.form(number)
        layout: dict[str, tuple[Dim | None, ...]] = {}
        into: Dim | None = None
        for i, place in enumerate(form.places()):
            out, conv, norm = Dim(f"conv{i}"), f"features.{place}", f"features.{place + 1}"
            layout[f"{conv}.weight"] = (out, into, None, None)
            layout |= {f"{conv}.bias": (out,)} if form.conv_bias else {}
            if form.norm:
                leaves = ("weight", "bias", "running_mean", "running_var")
                layout |= {f"{norm}.{leaf}": (out,) for leaf in leaves}
                layout[f"{norm}.num_batches_tracked"] = ()
            into = out
        for i in range(len(self.fc) + 1):
            layout[f"classifier.{3 * i}.weight"] = (None, None if i else into)
            layout[f"classifier.{3 * i}.bias"] = (None,)
        return layout

    def repeats(self, name: str) -> int:
        """The first linear layer reads all positions of a channel one after another."""
        return self.pool**2 if name == "classifier.0.weight" else 1

    def plain(self, image: ImageConfig, level: Level, number: int) -> nn.Module:
        """Family ``vgg``'s module, with torchvision's pooling for images of any size."""
        config, widths = self._config(image, level, number), self._widths(level, number)
        return PlainNestedVgg(config, widths, [*self.fc])

    def cost(self, image: ImageConfig, level: Level, number: int) -> tuple[int, int]:
        """Sum over layers."""
        form, side, into = self.form(number), image.image_size, image.in_chans
        widths = iter(self._widths(level, number))
        macs = params = 0
        for item in form.plan:
            if item == "M":
                side //= 2
                continue
            out = next(widths)
            macs += 9 * into * out * side**2
            params += 9 * into * out + out * (form.conv_bias + 2 * form.norm)
            into = out
        into *= self.pool**2
        for out in (*self.fc, image.num_classes):
            macs, params, into = macs + into * out, params + (into + 1) * out, out
        return macs, params

    def check(self, image: ImageConfig, level: Level, number: int) -> None:
        """All forms must have the same convolutions, and poolings that fit the image."""
        if any(form.plan.count("C") != self.forms[0].plan.count("C") for form in self.forms):
            raise ValueError("all forms of a VGG must have the same number of convolutions")
        if image.image_size >> self.form(number).plan.count("M") == 0:
            raise ValueError(f"image_size {image.image_size} is too small for the poolings")

    def _widths(self, level: Level, number: int) -> list[int]:
        return [level.size(f"conv{i}") for i in range(self.form(number).plan.count("C"))]

    def _config(self, image: ImageConfig, level: Level, number: int) -> VggConfig:
        form, widths = self.form(number), iter(self._widths(level, number))
        return VggConfig(
            # Only sizes that pool evenly are known there; PlainNestedVgg pools by itself.
            image_size=self.pool << form.plan.count("M"),
            in_chans=image.in_chans,
            num_classes=image.num_classes,
            cfg=tuple("M" if item == "M" else (next(widths),) for item in form.plan),
            norm=form.norm,
            conv_bias=form.conv_bias,
            pool=self.pool,
            fc=tuple((width,) for width in self.fc),
        )


class PlainNestedVgg(PlainVgg):
    """A VGG that averages its features to any number of positions, as torchvision does."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        x = _averaged(_averaged(self.features(x), self.pool, 2), self.pool, 3)
        return self.classifier(x.flatten(1))


def _averaged(x: Tensor, count: int, dim: int) -> Tensor:
    """Means over ``count`` ranges of a dimension, which may overlap; static where torch's is not.

    Torch's adaptive pooling becomes some hundred ONNX nodes where the ranges differ in length.
    """
    size = x.shape[dim]
    if size == count:
        return x
    ranges = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
    return torch.cat([x.narrow(dim, a, b - a).mean(dim, keepdim=True) for a, b in ranges], dim)
