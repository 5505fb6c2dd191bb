"""VGG: width of each convolution and of each hidden linear layer, with or without BatchNorm.

Plain modules have torchvision's parameter names and compute what torchvision's ``VGG`` computes
(Simonyan & Zisserman, arXiv 1409.1556), without its dropout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from elastic_export.elastic.family import Dim, Layout
from elastic_export.elastic.skeleton import on_meta
from elastic_export.errors import UserError
from elastic_export.families.base import Count, ImageConfig, ImageFamily, Sizes
from elastic_export.families.registry import register
from elastic_export.space import Axis, Costs, Space, Spec

__all__ = ["PlainVgg", "Vgg", "VggConfig"]

_POOLINGS = 5


class VggConfig(ImageConfig):
    """Sizes and choices of one VGG supernet.

    ``cfg`` lists the layers in order, as torchvision's lists do: the widths a 3x3 convolution may
    have, from small to large, or ``M`` for a 2x2 max-pooling. The features are averaged to
    ``pool`` x ``pool`` positions. ``fc`` lists the widths of each hidden linear layer.
    """

    cfg: Annotated[tuple[Literal["M"] | Sizes, ...], Field(min_length=1)]
    norm: bool = False
    conv_bias: bool = True
    pool: Count = 7
    fc: tuple[Sizes, ...] = ((4096,), (4096,))

    @field_validator("cfg", "fc", mode="before")
    @classmethod
    def _single(cls, layers: Any) -> Any:
        """A width alone is the one choice of its layer."""
        if not isinstance(layers, list | tuple):
            return layers
        return tuple((item,) if isinstance(item, int) else item for item in layers)

    @model_validator(mode="after")
    def _possible(self) -> VggConfig:
        for choices in (*self.cfg, *self.fc):
            if choices != "M" and list(choices) != sorted(set(choices)):
                raise ValueError("the widths of a layer must be different, from small to large")
        if self.cfg[0] == "M":
            raise ValueError("cfg must begin with a convolution")
        side = self.side
        if side == 0:
            raise ValueError(f"image_size {self.image_size} is too small for cfg's poolings")
        if side % self.pool and self.pool % side:
            raise ValueError(
                f"image_size {self.image_size} gives {side} x {side} features, which cannot be "
                f"averaged evenly to pool {self.pool}"
            )
        return self

    @property
    def side(self) -> int:
        """Side of the feature map after the last layer of ``cfg``."""
        return self.image_size >> self.cfg.count("M")

    def convs(self) -> list[tuple[int, tuple[int, ...], int]]:
        """Index in ``features``, widths and poolings before, for each convolution."""
        found, index, halvings = [], 0, 0
        for item in self.cfg:
            if item == "M":
                index, halvings = index + 1, halvings + 1
            else:
                found.append((index, item, halvings))
                index += 2 + self.norm
        return found


class PlainVgg(nn.Module):
    """A VGG of given sizes.

    Args:
        config: What the whole supernet shares.
        widths: Output width of each convolution.
        fc: Width of each hidden linear layer.
    """

    def __init__(self, config: VggConfig, widths: list[int], fc: list[int]) -> None:
        super().__init__()
        self.pool = config.pool
        layers: list[nn.Module] = []
        into, rest = config.in_chans, iter(widths)
        for item in config.cfg:
            if item == "M":
                layers.append(nn.MaxPool2d(2, stride=2))
                continue
            out = next(rest)
            layers.append(nn.Conv2d(into, out, 3, padding=1, bias=config.conv_bias))
            layers += [nn.BatchNorm2d(out)] if config.norm else []
            layers.append(nn.ReLU())
            into = out
        self.features = nn.Sequential(*layers)
        sizes = [into * config.pool**2, *fc]
        hidden: list[nn.Module] = []
        for size, out in zip(sizes, fc, strict=False):
            # The identity stands where torchvision has its dropout, so that numbers are the same.
            hidden += [nn.Linear(size, out), nn.ReLU(), nn.Identity()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(sizes[-1], config.num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        return self.classifier(_to_positions(self.features(x), self.pool).flatten(1))


def _to_positions(x: Tensor, pool: int) -> Tensor:
    """Average or repeat to ``pool`` x ``pool``: adaptive pooling where one divides the other."""
    side = x.shape[-1]
    if side >= pool:
        return x if side == pool else F.avg_pool2d(x, side // pool)
    return F.interpolate(x, scale_factor=pool // side, mode="nearest")


@register
class Vgg(ImageFamily):
    """The family ``vgg``."""

    name = "vgg"
    Config = VggConfig
    marks = ("features.0.weight", "classifier.0.weight")

    def space(self, config: VggConfig) -> Space:
        """Axes ``features.N.width``, then ``classifier.N.hidden``."""
        axes = [Axis(f"features.{index}.width", widths) for index, widths, _ in config.convs()]
        axes += [Axis(f"classifier.{3 * i}.hidden", sizes) for i, sizes in enumerate(config.fc)]
        return Space(axes)

    def skeleton(self, config: VggConfig, spec: Spec) -> PlainVgg:
        """The plain VGG of a spec on meta."""
        widths = [int(spec[f"features.{index}.width"]) for index, _, _ in config.convs()]
        fc = [int(spec[f"classifier.{3 * i}.hidden"]) for i in range(len(config.fc))]
        with on_meta():
            return PlainVgg(config, widths, fc).eval()

    def layout(self, config: VggConfig) -> Layout:
        """One group for each convolution's output and for each hidden layer.

        The first linear layer reads each channel's positions one after another, so a prefix of
        channels is a prefix of its columns; they are a group of their own, ``features.flat``.
        """
        layout: dict[str, tuple[Dim | None, ...]] = {}
        into: Dim | None = None
        for index, _, _ in config.convs():
            out, conv, norm = Dim(f"features.{index}"), f"features.{index}", f"features.{index + 1}"
            layout |= {f"{conv}.weight": (out, into, None, None), f"{conv}.bias": (out,)}
            if config.norm:
                leaves = ("weight", "bias", "running_mean", "running_var")
                layout |= {f"{norm}.{leaf}": (out,) for leaf in leaves}
                layout[f"{norm}.num_batches_tracked"] = ()
            into = out
        into = Dim("features.flat")
        for i in range(len(config.fc)):
            name, hidden = f"classifier.{3 * i}", Dim(f"classifier.{3 * i}")
            layout |= {f"{name}.weight": (hidden, into), f"{name}.bias": (hidden,)}
            into = hidden
        last = f"classifier.{3 * len(config.fc)}"
        return layout | {f"{last}.weight": (None, into), f"{last}.bias": (None,)}

    def costs(self, config: VggConfig, space: Space, genes: np.ndarray) -> Costs:
        """Sum over layers; every individual of the population at once."""
        macs = params = np.zeros(len(genes), dtype=np.int64)
        into = np.full(len(genes), config.in_chans, dtype=np.int64)
        for index, _, halvings in config.convs():
            out = space.values(genes, f"features.{index}.width").astype(np.int64)
            weights = 9 * into * out
            macs = macs + weights * (config.image_size >> halvings) ** 2
            params = params + weights + out * (config.conv_bias + 2 * config.norm)
            into = out
        into = into * config.pool**2
        sizes = [
            space.values(genes, f"classifier.{3 * i}.hidden").astype(np.int64)
            for i in range(len(config.fc))
        ]
        for out in (*sizes, np.full(len(genes), config.num_classes, dtype=np.int64)):
            macs = macs + into * out
            params = params + (into + 1) * out
            into = out
        return Costs(macs, macs, macs, params)

    def initialise(self, config: VggConfig, module: nn.Module, generator: torch.Generator) -> None:
        """He normal (fan out) for convolutions, N(0, 0.01) for linear layers, as torchvision."""
        with torch.no_grad():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if tensor.dim() == 4:
                    std = (2.0 / (9 * tensor.shape[0])) ** 0.5
                    tensor.normal_(0.0, std, generator=generator)
                elif tensor.dim() == 2:
                    tensor.normal_(0.0, 0.01, generator=generator)
                else:
                    tensor.fill_(1 if name.endswith((".weight", "running_var")) else 0)

    def fold_pairs(self, module: nn.Module) -> list[tuple[str, str]]:
        """Every convolution with the BatchNorm behind it."""
        return list(_fold_pairs(dict(module.named_modules())))

    def recognise(
        self, shapes: Mapping[str, tuple[int, ...]], hints: Mapping[str, Any]
    ) -> VggConfig:
        """Read sizes from torchvision's names; ``image_size`` comes from hints.

        Poolings hold no tensors: they are the gaps in the numbers, and one is at the end. That is
        certain for the published networks, which have five; others need ``cfg`` among the hints.
        """
        for name in self.marks:
            if name not in shapes:
                raise UserError(
                    f"This is not a VGG checkpoint with torchvision's names: {name} is missing.",
                    "Check model.family; inspect the file to see what it holds.",
                )
        numbers = [int(m[1]) for k in shapes if (m := re.fullmatch(r"features\.(\d+)\.weight", k))]
        convs = sorted(n for n in numbers if len(shapes[f"features.{n}.weight"]) == 4)
        if any(shapes[f"features.{n}.weight"][2:] != (3, 3) for n in convs) or not convs:
            raise UserError(
                "This network has convolutions other than 3x3, so it is not a VGG.",
                "Name another family, or convert the checkpoint first.",
            )
        norm = "features.1.running_mean" in shapes
        cfg: list[Any] = []
        place = 0
        for n in convs:
            cfg += ["M"] * (n - place) + [(shapes[f"features.{n}.weight"][0],)]
            place = n + 2 + norm
        cfg.append("M")
        if cfg.count("M") != _POOLINGS and "cfg" not in hints:
            guess = str([item if item == "M" else item[0] for item in cfg]).replace("'", "")
            raise UserError(
                f"This VGG has {cfg.count('M')} poolings if each gap between the layers is one and "
                f"another ends the features; published ones have {_POOLINGS}, so this is a guess.",
                f"Give the layers as model.config.cfg or with --set cfg=..., such as {guess}.",
            )
        linears = sorted(
            int(m[1]) for k in shapes if (m := re.fullmatch(r"classifier\.(\d+)\.weight", k))
        )
        positions = shapes["classifier.0.weight"][-1] / shapes[f"features.{convs[-1]}.weight"][0]
        found = {
            "in_chans": shapes["features.0.weight"][1],
            "num_classes": shapes[f"classifier.{linears[-1]}.weight"][0],
            "cfg": tuple(cfg),
            "norm": norm,
            "conv_bias": "features.0.bias" in shapes,
            "pool": max(1, round(positions**0.5)),
            "fc": tuple((shapes[f"classifier.{n}.weight"][0],) for n in linears[:-1]),
        }
        return VggConfig.model_validate({**found, **hints})


def _fold_pairs(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str]]:
    for name, module in modules.items():
        if isinstance(module, nn.BatchNorm2d):
            yield f"features.{int(name.rsplit('.', 1)[-1]) - 1}", name
