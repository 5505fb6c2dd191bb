"""The small calibration recipe and network that the tests ask for."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer

from elastic_export.config.calibration import CalibrationRecipe

__all__ = ["METHODS", "recipe", "tiny_vit"]

METHODS = ["max", "percentile", "entropy", "mse"]


def recipe(method: str = "max", **more: object) -> CalibrationRecipe:
    percentile = 99.0 if method == "percentile" else None
    known = {"name": "t", "method": method, "percentile": percentile, "images": 24}
    return CalibrationRecipe(**known | {"batch_size": 10} | more)


def tiny_vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=32, depth=2, num_heads=2
    ).eval()
