"""What the stages of one run share: recipe, data, the supernet; each loaded when first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elastic_export.artifacts.store import Artifact
from elastic_export.checkpoints import load_descendant, load_supernet
from elastic_export.checkpoints.plain.timm_models import is_model_name
from elastic_export.config.base import Schema
from elastic_export.config.reading import read_settings
from elastic_export.config.recipe import Recipe
from elastic_export.config.transform import Transform
from elastic_export.data import Dataset, load_dataset
from elastic_export.elastic import Descendant, Family, Supernet
from elastic_export.elastic.supernet import resolve_spec
from elastic_export.errors import UserError
from elastic_export.progress import Progress

__all__ = ["DESCENDANT", "SUPERNET", "Workshop", "checkpoint_path", "model_settings"]

SUPERNET = "supernet.safetensors"
DESCENDANT = "descendant.safetensors"

# Enough for stable means (Once-for-all takes 2,000 images), little enough for a search.
_RECALIBRATION_IMAGES = 2048
_WORTH_SHARING_MACS = 1_000_000_000


class Workshop:
    """One run's recipe with what is loaded for it.

    Args:
        recipe: What to do.
        progress: Told of everything that takes time.
    """

    def __init__(self, recipe: Recipe, progress: Progress) -> None:
        self.recipe = recipe
        self.progress = progress
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._supernets: dict[str, Supernet] = {}
        self._views: dict[Transform, Dataset] = {}
        self._model: tuple[Family, Schema] | None = None

    @cached_property
    def data(self) -> Dataset:
        """The data set of the recipe."""
        return load_dataset(self.recipe.data, seed=self.recipe.seed)

    @cached_property
    def data_digests(self) -> dict[str, str]:
        """What identifies the three splits."""
        data = self.data
        return {s.name: s.digest for s in (data.train, data.search, data.test)}

    def supernet(self, artifact: Artifact) -> Supernet:
        """The supernet of a train or import stage, in eval mode."""
        if artifact.key not in self._supernets:
            self._supernets[artifact.key] = load_supernet(artifact.path / SUPERNET).eval()
            self.suit_threads(self._supernets[artifact.key])
        supernet = self._supernets[artifact.key]
        self._model = supernet.family, supernet.config
        return supernet

    def data_of(self, genes: Mapping[str, Any]) -> Dataset:
        """The data set as one descendant reads it: at its own resolution.

        Args:
            genes: The descendant's choices; the supernet has been loaded before.
        """
        assert self._model is not None
        family, config = self._model
        spec = resolve_spec(family, config, genes)
        transform = family.preprocess(config, spec, self.data.transform)
        if transform == self.data.transform:
            return self.data
        if transform not in self._views:
            asked = self.recipe.data.model_copy(update={"transform": transform})
            self._views[transform] = load_dataset(asked, seed=self.recipe.seed)
        return self._views[transform]

    def descendant(self, artifact: Artifact) -> Descendant:
        """The descendant a stage wrote."""
        return load_descendant(artifact.path / DESCENDANT)

    def teacher(self, artifact: Artifact) -> Callable[[Tensor], Tensor]:
        """The supernet's largest descendant as a function from images to logits."""
        supernet = self.supernet(artifact)
        largest = supernet.space.max()
        return lambda x: supernet.forward(largest, x)

    def recalibration_batches(self, genes: Mapping[str, Any]) -> Iterator[Tensor]:
        """Training images for a descendant's BatchNorm statistics: always the same, in order."""
        train = self.data_of(genes).train
        size = min(64, len(train))
        batches = train.batches(size, seed=self.recipe.seed, drop_last=True)
        for x, _ in islice(batches, max(1, _RECALIBRATION_IMAGES // size)):
            yield x

    def suit_threads(self, supernet: Supernet) -> None:
        """Let torch use one thread where a batch is too little work to share.

        Below about a GMAC the operators of a step take microseconds each. Two threads then gain
        little on an idle machine and lose up to twenty times on a busy one, because each operator
        ends with a barrier.
        """
        largest = int(supernet.costs([supernet.space.max()]).macs[0])
        batch = self.recipe.train.batch_size if self.recipe.train is not None else 64
        if largest * batch < _WORTH_SHARING_MACS:
            torch.set_num_threads(1)

    def check_fits(self, family: Family, config: Schema) -> None:
        """Refuse a supernet that cannot read this data set's images or name its classes.

        Raises:
            UserError: Channels, size or the number of classes differ.
        """
        largest = family.space(config).max()
        shape = family.input_shape(config, largest)
        transform = family.preprocess(config, largest, self.data.transform)
        wanted = (transform.channels, transform.input_size, transform.input_size)
        if shape != wanted:
            raise UserError(
                f"The network reads images of shape {shape}, but the data set gives {wanted}.",
                "Correct data.transform (channels, size) or model.config (in_chans, image_size).",
            )
        classes = family.num_classes(config)
        if classes != self.data.num_classes:
            raise UserError(
                f"The network tells {classes} classes apart, but the data set has "
                f"{self.data.num_classes}.",
                "Use the data set the network was trained on, or correct model.config.num_classes.",
            )


def checkpoint_path(recipe: Recipe) -> Path:
    """The recipe's checkpoint: a file, a folder of a system that writes several, or ``timm:NAME``.

    Raises:
        UserError: There is no such file.
    """
    path = Path(recipe.model.checkpoint or "").expanduser()
    if not is_model_name(path) and not path.exists():
        raise UserError(
            f"There is no checkpoint {path}.", "Correct model.checkpoint in the recipe."
        )
    return path


def model_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings of the recipe's model, those of its file included.

    Raises:
        UserError: The file cannot be read.
    """
    model = recipe.model
    if model.config_file is None:
        return model.config
    return {**read_settings(Path(model.config_file).expanduser()), **model.config}
