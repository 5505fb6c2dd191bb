"""Data sets as splits of network inputs, and the accuracy of a network on a split.

A split yields float32 images that are already transformed by the one
:class:`~elastic_export.config.transform.Transform` that torch, ONNX Runtime and the board share.
"""

from elastic_export.data.augment import augment
from elastic_export.data.evaluate import logits, top1
from elastic_export.data.load import load_dataset
from elastic_export.data.splits import ArraySplit, Dataset, Split
from elastic_export.data.transform import apply_transform

__all__ = [
    "ArraySplit",
    "Dataset",
    "Split",
    "apply_transform",
    "augment",
    "load_dataset",
    "logits",
    "top1",
]
