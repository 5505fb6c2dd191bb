"""A single descendant outside the flow of a recipe: how it is opened, the images it reads."""

from __future__ import annotations

from pathlib import Path

from elastic_export.checkpoints import load_descendant
from elastic_export.config.base import Schema
from elastic_export.config.recipe import DataConfig
from elastic_export.config.transform import Transform
from elastic_export.data import Dataset, load_dataset
from elastic_export.elastic import Descendant, Family
from elastic_export.elastic.fold import fold_batchnorm
from elastic_export.elastic.supernet import resolve_spec
from elastic_export.errors import UserError
from elastic_export.families.registry import family_config, get_family
from elastic_export.space import Spec

__all__ = ["assumed_transform", "dataset_for", "open_descendant"]

# ImageNet's evaluation resizes the shorter side to 256 before it crops 224.
_RESIZE_SHARE = 256 / 224


def open_descendant(path: Path) -> tuple[Descendant, Family, Schema, Spec]:
    """Read a descendant as it is deployed, BatchNorm folded, with what describes it.

    Raises:
        UserError: The file is missing, damaged, or something else.
        CheckFailed: A weight does not hold the pattern the file claims.
    """
    one = load_descendant(path)
    family = get_family(one.family)
    if not one.folded:
        fold_batchnorm(one.module, family.fold_pairs(one.module))
        one.folded = True
    config = family_config(family, one.config)
    return one, family, config, resolve_spec(family, config, one.genes)


def dataset_for(family: Family, config: Schema, spec: Spec, data: DataConfig) -> Dataset:
    """Load a data set as one descendant reads it.

    A folder of images without a transform of its own is cropped to the network's size; where the
    family resizes by itself, its preprocessing says so.

    Raises:
        UserError: The images have other channels or another size than the network reads.
    """
    dataset = load_dataset(data)
    shape = family.input_shape(config, spec)
    transform = family.preprocess(config, spec, dataset.transform)
    free = data.transform is None and data.dataset == "imagefolder"
    if free and transform.input_size != shape[1]:
        transform = _cropped(dataset.transform, shape[1])
    if (transform.channels, transform.input_size, transform.input_size) != shape:
        raise UserError(
            f"The network reads images of shape {shape}, but the data set gives "
            f"{(transform.channels, transform.input_size, transform.input_size)}.",
            "Use the data set the network was trained on.",
        )
    if transform == dataset.transform:
        return dataset
    return load_dataset(data.model_copy(update={"transform": transform}))


def assumed_transform(family: Family, config: Schema, spec: Spec) -> Transform:
    """ImageNet's evaluation at the descendant's size: what is assumed where there is no data."""
    channels, size, _ = family.input_shape(config, spec)
    if channels != 3:
        return Transform(size=size, resize=None, channels=1, mean=(0.5,), std=(0.5,))
    transform = family.preprocess(config, spec, Transform())
    return transform if transform.input_size == size else _cropped(Transform(), size)


def _cropped(transform: Transform, size: int) -> Transform:
    return transform.model_copy(update={"size": size, "resize": round(size * _RESIZE_SHARE)})
