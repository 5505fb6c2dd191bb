"""How an image becomes a network input: one description for torch, ONNX Runtime and the board."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from elastic_export.config.base import Schema

__all__ = ["Transform"]


class Transform(Schema):
    """Resize, crop and normalise an image.

    ``size`` is the height and width in pixels the network sees; ``resize`` the length of the
    shorter side before the centre crop (none: the image already has that size). Pixels are first
    scaled to [0, 1], then ``(pixel - mean) / std`` per channel. Last, where ``final_size`` is
    given, the normalised image is resized once more, bicubic without antialiasing: what ElasticViT
    and AttentiveNAS do inside their networks.
    """

    size: int = 224
    resize: int | None = 256
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic"
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    final_size: int | None = None

    @property
    def input_size(self) -> int:
        """Height and width of what the network reads."""
        return self.final_size or self.size

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> Transform:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need {self.channels} values, one per channel")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize {self.resize} is smaller than size {self.size}")
        return self
