"""A folder of images: ``train/CLASS/...`` and ``val/CLASS/...``, as ImageNet is laid out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from elastic_export.artifacts.digest import sha256_file
from elastic_export.config.recipe import DataConfig
from elastic_export.config.transform import Transform
from elastic_export.data.order import balanced_order, batch_indices, hold_out
from elastic_export.data.splits import Dataset, check_head
from elastic_export.data.transform import apply_transform
from elastic_export.errors import UserError

__all__ = ["FolderSplit", "load_imagefolder"]

Batch = tuple[Tensor, Tensor]

_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
)
_READERS = min(8, os.cpu_count() or 1)


class FolderSplit:
    """A split whose images are decoded batch by batch, by a few threads, one batch ahead.

    Args:
        name: What the split is for.
        root: The folder that ``files`` are relative to.
        files: Image files with ``/`` as separator.
        labels: Class of each file, int64 (N,).
        num_classes: Classes of the whole data set.
        transform: Applied to each image.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        files: tuple[str, ...],
        labels: np.ndarray,
        num_classes: int,
        transform: Transform,
    ) -> None:
        self.name = name
        self.num_classes = num_classes
        self.root = root
        self.files = files
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def digest(self) -> str:
        """Identify the transform and the content, path and label of every file, in order.

        Every byte is read once: about as long as one pass over the images without decoding.
        """
        state = hashlib.sha256(self.transform.model_dump_json().encode())
        with ThreadPoolExecutor(_READERS) as pool:
            for file, label, content in zip(
                self.files, self.labels, pool.map(self._file_digest, self.files), strict=True
            ):
                state.update(f"\n{file} {label} {content}".encode())
        return state.hexdigest()

    def batches(
        self, batch_size: int, *, seed: int | None = None, drop_last: bool = False, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) and labels (B,); see :meth:`Split.batches`.

        Raises:
            UserError: An image cannot be read; the message names the file.
        """
        groups = batch_indices(len(self), batch_size, seed=seed, drop_last=drop_last, start=start)
        with ThreadPoolExecutor(_READERS) as pool:
            ahead = None
            for group in groups:
                reading = [pool.submit(self._read, int(i)) for i in group]
                if ahead is not None:
                    yield self._collect(*ahead)
                ahead = (group, reading)
            if ahead is not None:
                yield self._collect(*ahead)

    def head(self, n: int, *, name: str | None = None) -> FolderSplit:
        """Take the first ``n`` images of the class-balanced order; see :meth:`Split.head`."""
        check_head(self.name, len(self), n)
        return self.take(balanced_order(self.labels)[:n], name or self.name)

    def take(self, index: np.ndarray, name: str) -> FolderSplit:
        """Make a split of the images at ``index``, in that order."""
        files = tuple(self.files[i] for i in index)
        return FolderSplit(
            name, self.root, files, self.labels[index], self.num_classes, self.transform
        )

    def _read(self, i: int) -> np.ndarray:
        path = self.root / self.files[i]
        try:
            with Image.open(path) as image:
                image.load()
                return apply_transform(image, self.transform)
        except UserError as error:
            raise UserError(f"{error.what.removesuffix('.')}: {path}.", error.fix) from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            # Pillow reports a damaged file by any of these, depending on the format.
            raise UserError(
                f"The image {path} cannot be read: {error}.",
                "Replace the file or remove it, then run the command again.",
            ) from error

    def _collect(self, group: np.ndarray, reading: list[Future[np.ndarray]]) -> Batch:
        x = np.stack([image.result() for image in reading])
        return torch.from_numpy(x), torch.from_numpy(self.labels[group])

    def _file_digest(self, file: str) -> str:
        path = self.root / file
        try:
            return sha256_file(path)
        except OSError as error:
            raise UserError(
                f"The image {path} cannot be read: {error.strerror}.",
                "Replace the file or remove it, then run the command again.",
            ) from error


def load_imagefolder(config: DataConfig, *, seed: int = 0) -> Dataset:
    """Find the images below ``config.root``; ``val`` is the test split.

    Args:
        config: ``root``, ``transform`` (none: the common ImageNet one) and ``search_split``.
        seed: Decides which training images are held out for the search.

    Raises:
        UserError: A folder is missing or empty, or the two parts have different classes.
    """
    root = Path(config.root or "").expanduser()
    classes = _class_names(root / "train")
    _same_classes(classes, _class_names(root / "val"), root)
    transform = config.transform or Transform()
    train = _find(root / "train", classes, transform)
    wanted = np.full(len(classes), config.search_split.per_class)
    kept, held = hold_out(train.labels, wanted, np.random.default_rng(seed))
    test = _find(root / "val", classes, transform)
    return Dataset(
        name="imagefolder",
        num_classes=len(classes),
        transform=transform,
        train=train.take(kept, "train"),
        search=train.take(held, "search"),
        test=test.take(np.arange(len(test)), "test"),
    )


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(
            f"The folder {folder} does not exist.",
            "Set data.root to the folder that holds train/ and val/, each with one folder of "
            "images for each class.",
        )
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not names:
        raise UserError(
            f"The folder {folder} holds no class folders.",
            "Put the images of each class into a folder of its own in there.",
        )
    return names


def _same_classes(train: list[str], val: list[str], root: Path) -> None:
    differing = sorted(set(train) ^ set(val))
    if differing:
        where = "train" if differing[0] in train else "val"
        raise UserError(
            f"{root} has {len(train)} classes in train and {len(val)} in val, and "
            f"{len(differing)} of them in one place only, such as {differing[0]!r} in {where}.",
            "Give both folders the same class folders.",
        )


def _find(folder: Path, classes: list[str], transform: Transform) -> FolderSplit:
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            path.relative_to(folder).as_posix()
            for path in (folder / name).rglob("*")
            if path.suffix.lower() in _SUFFIXES and path.is_file()
        )
        if not found:
            raise UserError(
                f"The class folder {folder / name} holds no images.",
                f"Add images ({', '.join(sorted(_SUFFIXES))}) or remove the folder.",
            )
        files += found
        labels += [label] * len(found)
    return FolderSplit(
        folder.name,
        folder,
        tuple(files),
        np.asarray(labels, dtype=np.int64),
        len(classes),
        transform,
    )
