"""Scikit-learn's 1,797 handwritten digits: real data that needs no download.

Optical recognition of handwritten digits (UCI, E. Alpaydin and C. Kaynak, 1998): 8x8 pixels with
values 0 to 16, ten classes.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from elastic_export.config.recipe import DataConfig
from elastic_export.config.transform import Transform
from elastic_export.data.order import hold_out
from elastic_export.data.splits import ArraySplit, Dataset
from elastic_export.data.transform import apply_transform

__all__ = ["DIGITS_TRANSFORM", "load_digits"]

DIGITS_TRANSFORM = Transform(
    size=8, resize=None, interpolation="bilinear", channels=1, mean=(0.3055,), std=(0.3761,)
)
"""No resizing; mean and standard deviation are those of the images outside the test split."""

_CLASSES = 10
_TEST_SHARE = 0.2


def load_digits(config: DataConfig, *, seed: int = 0) -> Dataset:
    """Load the digits and part them.

    A fifth of each class is the test split, always the same one, so that results of different
    seeds compare; ``seed`` decides which of the others are held out for the search.

    Args:
        config: ``transform`` (none: :data:`DIGITS_TRANSFORM`) and ``search_split`` are read.
        seed: Decides the search split.
    """
    from sklearn.datasets import load_digits as read_digits

    transform = config.transform or DIGITS_TRANSFORM
    images, labels = read_digits(return_X_y=True)
    planes = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
    x = np.stack([apply_transform(Image.fromarray(plane), transform) for plane in planes])

    tested = np.round(_TEST_SHARE * np.bincount(labels)).astype(int)
    rest, test = hold_out(labels, tested, np.random.default_rng(0))
    wanted = np.full(_CLASSES, config.search_split.per_class)
    kept, held = hold_out(labels[rest], wanted, np.random.default_rng(seed))

    def split(name: str, index: np.ndarray) -> ArraySplit:
        return ArraySplit(name, x[index], labels[index], _CLASSES)

    return Dataset(
        name="digits",
        num_classes=_CLASSES,
        transform=transform,
        train=split("train", rest[kept]),
        search=split("search", rest[held]),
        test=split("test", test),
    )
