"""Settings that the Once-for-all families share, and the official way to write an arch.

Source: Cai et al., arXiv 1908.09791; names and published values of mit-han-lab/once-for-all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from elastic_export.elastic.family import Dim
from elastic_export.errors import UserError, did_you_mean
from elastic_export.families.base import ImageConfig, Sizes, ascending

__all__ = [
    "LARGEST_FACTOR",
    "Factor",
    "Numbers",
    "OfaConfig",
    "bn_layout",
    "given_lists",
    "given_resolution",
]

LARGEST_FACTOR = 64
"""Bounds what a setting or a file may claim, before anything of that size is built."""
Factor = Annotated[int | float, Field(gt=0, le=LARGEST_FACTOR)]
Numbers = Annotated[tuple[Factor, ...], Field(min_length=1)]

_RESOLUTION_NAMES = ("resolution", "image_size", "r")


class OfaConfig(ImageConfig):
    """Settings of every Once-for-all supernet.

    ``resolution`` lists the input sizes to choose from; the largest is ``image_size``, and either
    follows from the other where only one is given. ``bn_eps`` is BatchNorm's.
    """

    resolution: Sizes = (160, 176, 192, 208, 224)
    bn_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5

    @model_validator(mode="before")
    @classmethod
    def _one_of_two(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        sizes, size = raw.get("resolution"), raw.get("image_size")
        if sizes is None and size is not None:
            return {**raw, "resolution": (size,)}
        if isinstance(sizes, int):
            sizes = (sizes,)
        if size is None and isinstance(sizes, list | tuple) and sizes:
            return {**raw, "resolution": sizes, "image_size": sizes[-1]}
        return raw

    @model_validator(mode="after")
    def _sizes_agree(self) -> OfaConfig:
        ascending(self, "resolution")
        if self.image_size != max(self.resolution):
            raise ValueError(
                f"image_size is {self.image_size}, but the largest resolution is "
                f"{max(self.resolution)}"
            )
        return self


def bn_layout(name: str, channels: Dim) -> dict[str, tuple[Dim | None, ...]]:
    """Layout entries of a BatchNorm's parameters and buffers."""
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": (channels,) for leaf in names} | {f"{name}.num_batches_tracked": ()}


def given_lists(arch: Mapping[str, Any], lengths: Mapping[str, int]) -> dict[str, list[Any]]:
    """The lists of an arch in the official encoding.

    Args:
        arch: Such as ``{"ks": [...], "e": [...], "d": [...]}``; a single value stands for all
            places, a missing list (or None) for the largest network.
        lengths: Name of each list to its length.

    Returns:
        The lists that were given.

    Raises:
        UserError: A name is unknown or a list has another length.
    """
    lists: dict[str, list[Any]] = {}
    for name, value in arch.items():
        if value is None or name in _RESOLUTION_NAMES:
            continue
        if name not in lengths:
            raise UserError(
                f'An arch of this family has no "{name}".',
                did_you_mean(str(name), [*lengths, *_RESOLUTION_NAMES]),
            )
        several = isinstance(value, Sequence) and not isinstance(value, str)
        lists[name] = list(value) if several else [value] * lengths[name]
        if len(lists[name]) != lengths[name]:
            raise UserError(
                f'"{name}" of the arch has {len(lists[name])} values, but this supernet has '
                f"{lengths[name]} places.",
                "Check that the arch was made for a supernet of this depth.",
            )
    return lists


def given_resolution(arch: Mapping[str, Any]) -> dict[str, Any]:
    """The input size of an arch, under any of its names; a list of one counts as its value.

    Raises:
        UserError: Two names give different sizes.
    """
    found = {name: arch[name] for name in _RESOLUTION_NAMES if arch.get(name) is not None}
    sizes = [v[0] if isinstance(v, list | tuple) and v else v for v in found.values()]
    if any(size != sizes[0] for size in sizes):
        raise UserError(f"The arch gives several input sizes: {found}.", "Give one, as resolution.")
    return {"resolution": sizes[0]} if sizes else {}
