"""The folder of a specialized Once-for-all network: ``net.config`` is a tree of modules in JSON.

Every field is checked: what this tool would not compute alike is refused, never passed over.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from elastic_export.config.base import Schema
from elastic_export.errors import UserError
from elastic_export.families.ofa.config import Factor

__all__ = [
    "Block",
    "Bottleneck",
    "Conv",
    "Mbv3Net",
    "ResNet50D",
    "expect",
    "read_image_size",
    "read_net",
]

_LIMIT = 16 << 20
Positive = Annotated[int, Field(gt=0, le=1 << 20)]


class BatchNorm(Schema):
    """Settings of every BatchNorm; ``ws_eps`` would mean weight standardization."""

    momentum: float = 0.1
    eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    ws_eps: None = None


class Conv(Schema):
    """Convolution, BatchNorm, activation."""

    name: Literal["ConvLayer"]
    in_channels: Positive
    out_channels: Positive
    kernel_size: Positive = 3
    stride: Positive = 1
    dilation: Literal[1] = 1
    groups: Literal[1] = 1
    bias: Literal[False] = False
    has_shuffle: Literal[False] = False
    use_se: Literal[False] = False
    use_bn: bool = True
    act_func: str | None = "relu"
    dropout_rate: float = 0
    ops_order: Literal["weight_bn_act"] = "weight_bn_act"


class Identity(Schema):
    """A shortcut."""

    name: Literal["IdentityLayer"]
    in_channels: Any = None
    out_channels: Any = None
    use_bn: Literal[False] = False
    act_func: None = None
    dropout_rate: float = 0
    ops_order: Literal["weight_bn_act"] = "weight_bn_act"


class Linear(Schema):
    """The classifier."""

    name: Literal["LinearLayer"]
    in_features: Positive
    out_features: Positive
    bias: Literal[True] = True
    use_bn: Literal[False] = False
    act_func: None = None
    dropout_rate: float = 0
    ops_order: Literal["weight_bn_act"] = "weight_bn_act"


class MobileConv(Schema):
    """An inverted residual without its shortcut."""

    name: Literal["MBConvLayer", "MBInvertedConvLayer"]
    in_channels: Positive
    out_channels: Positive
    kernel_size: Positive = 3
    stride: Positive = 1
    expand_ratio: Factor = 6
    mid_channels: Positive | None = None
    act_func: str = "relu6"
    use_se: bool = False
    groups: None = None

    @property
    def mid(self) -> int:
        """Channels of the depthwise convolution."""
        return self.mid_channels or round(self.in_channels * self.expand_ratio)


class Block(Schema):
    """An inverted residual and its shortcut."""

    name: Literal["ResidualBlock", "MobileInvertedResidualBlock"]
    conv: MobileConv = Field(validation_alias=pydantic.AliasChoices("conv", "mobile_inverted_conv"))
    shortcut: Identity | None = None


class StemBlock(Schema):
    """The residual convolution of a stem."""

    name: Literal["ResidualBlock"]
    conv: Conv
    shortcut: Identity


class Bottleneck(Schema):
    """A bottleneck block of a ResNet."""

    name: Literal["ResNetBottleneckBlock"]
    in_channels: Positive
    out_channels: Positive
    kernel_size: Literal[3] = 3
    stride: Positive = 1
    expand_ratio: Factor = 0.25
    mid_channels: Positive | None = None
    act_func: Literal["relu"] = "relu"
    groups: Literal[1] = 1
    downsample_mode: Literal["avgpool_conv"] = "avgpool_conv"


class Mbv3Net(Schema):
    """A MobileNetV3."""

    name: Literal["MobileNetV3"]
    bn: BatchNorm = BatchNorm()
    first_conv: Conv
    blocks: Annotated[tuple[Block, ...], Field(min_length=2)]
    final_expand_layer: Conv
    feature_mix_layer: Conv
    classifier: Linear


class ResNet50D(Schema):
    """A ResNet with a deep stem and average-pooled shortcuts."""

    name: Literal["ResNets"]
    bn: BatchNorm = BatchNorm()
    input_stem: Annotated[tuple[Conv | StemBlock, ...], Field(min_length=1)]
    blocks: Annotated[tuple[Bottleneck, ...], Field(min_length=1)]
    classifier: Linear


_NETS: dict[str, type[Mbv3Net] | type[ResNet50D]] = {"MobileNetV3": Mbv3Net, "ResNets": ResNet50D}


def read_net(path: Path) -> Mbv3Net | ResNet50D:
    """Read and check ``net.config``.

    Raises:
        UserError: It is no JSON, of another network, or holds something not supported.
    """
    raw = _json(path)
    name = raw.get("name")
    schema = _NETS.get(name) if isinstance(name, str) else None
    if schema is None:
        raise UserError(
            f"{path} describes a network named {name!r}, which this tool does not build.",
            f"Known are {' and '.join(_NETS)}.",
        )
    try:
        return schema.model_validate(raw)
    except pydantic.ValidationError as error:
        item = error.errors()[0]
        where = ".".join(str(part) for part in item["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        text = "unknown field" if item["type"] == "extra_forbidden" else item["msg"]
        raise UserError(
            f"{path} holds something this tool does not build at {where}: {text}{more}.",
            "Only networks that the official Once-for-all supernets contain are read.",
        ) from error


def read_image_size(folder: Path) -> int | None:
    """The input size from ``run.config``; None without that file.

    Raises:
        UserError: The file holds no size.
    """
    path = folder / "run.config"
    if not path.is_file():
        return None
    size = _json(path).get("image_size")
    if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
        raise UserError(
            f"{path} has no image_size that is a positive number.",
            'Write it as {"image_size": 224}.',
        )
    return size


def expect(where: str, found: object, wanted: object) -> None:
    """Refuse a value that differs from the one this family has at that place.

    Raises:
        UserError: They differ.
    """
    if found != wanted:
        raise UserError(
            f"net.config has {found!r} for {where}, where a network of this family has {wanted!r}.",
            "Only networks that the official Once-for-all supernets contain are read.",
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LIMIT:
            raise ValueError("it is larger than 16 MiB")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not readable as JSON: {error}.", "Copy or download the folder again."
        ) from error
    if not isinstance(raw, dict):
        raise UserError(
            f"{path} holds a {type(raw).__name__} and no settings.", "Copy the folder again."
        )
    return raw
