"""Families ``ofa_mbv3`` and ``ofa_resnet50d`` of Once-for-all."""

from elastic_export.families.ofa.mbv3 import OfaMbv3, OfaMbv3Config, PlainMbv3
from elastic_export.families.ofa.resnet50d import OfaResNet50D, OfaResNet50DConfig, PlainOfaResNet

__all__ = [
    "OfaMbv3",
    "OfaMbv3Config",
    "OfaResNet50D",
    "OfaResNet50DConfig",
    "PlainMbv3",
    "PlainOfaResNet",
]
