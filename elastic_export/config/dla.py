"""The DLA as the part of a target that runs a network: how it is written, and where there is none.

A DLA (deep-learning accelerator) is a core of some Jetson boards beside their GPU. It is asked for
behind the device's name: ``agx-orin-64gb+dla@jp6.2``, ``+dla1`` for its second core.

Sources, all below docs.nvidia.com/deeplearning/tensorrt where nothing else is said. Releases:
TensorRT 11.3.0, "Building and Launching the Loadable" ("10.7 was the last release that supported
DLA", none in 11.0 to 11.4.0); 11.4.1 has it again for strongly typed networks, on AGX Orin with
JetPack 7.2.2 or later. Precisions and sizes: "DLA Supported Layers and Restrictions" (FP16 and
INT8, static shapes, batches up to 4096, 16 loadables a core). INT8 from a calibration cache and not
from Q/DQ: github.com/NVIDIA/Model-Optimizer pull request 1661, github.com/NVIDIA/TensorRT issue
2222. 2:4 in INT8 alone: github.com/NVIDIA/Deep-Learning-Accelerator-SW op_support.
"""

from __future__ import annotations

import re

from elastic_export.config.peaks import figure
from elastic_export.config.recipe import Recipe
from elastic_export.config.target import Flavour, Precision, Software, Target
from elastic_export.errors import UserError

__all__ = [
    "LAST_RELEASE",
    "MOST_LOADABLES",
    "check_dla",
    "core_of",
    "dla_cores",
    "has_dla",
    "narrowed",
    "software_with_dla",
    "split_dla",
    "with_dla",
    "without_dla",
]

LAST_RELEASE = (10, 7)
"""The newest release of TensorRT (major, minor) that builds for a DLA from a weakly typed graph."""
MOST_LOADABLES = 16
_MOST_IMAGES = 4096
_WRITTEN = re.compile(r"(?P<name>.+)\+dla(?P<core>\d*)", re.IGNORECASE)
# The builder turns the FP32 graph into FP16 by itself; a DLA computes in no other precision that
# our graphs can ask for.
_FLAVOURS: dict[Precision, Flavour] = {"fp16": "plain"}


def split_dla(name: str) -> tuple[str, int | None]:
    """Take the accelerator off the device part of an identity.

    Returns:
        For ``agx-orin-64gb+dla1`` the name ``agx-orin-64gb`` and core 1; None without a DLA.
    """
    found = _WRITTEN.fullmatch(name)
    return (found["name"], int(found["core"] or 0)) if found else (name, None)


def with_dla(name: str, core: int | None) -> str:
    """Write a device and its accelerator: ``agx-orin-64gb+dla1``, without a number for core 0."""
    return name if core is None else f"{name}+dla{core or ''}"


def core_of(identity: str) -> int | None:
    """Tell which DLA core a target in full names; None for the GPU."""
    return split_dla(identity.partition("@")[0])[1]


def without_dla(identity: str) -> str:
    """Name the same target on its GPU."""
    name, at, rest = identity.partition("@")
    return f"{split_dla(name)[0]}{at}{rest}"


def has_dla(version: str) -> bool:
    """Tell whether a release of TensorRT builds for a DLA: up to 10.7.

    Args:
        version: ``10.3.0``; major and minor count, and a version that cannot be read has none.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) <= LAST_RELEASE


def dla_cores(target: Target) -> int:
    """Count the DLA cores of a device; 0 where its profile names none."""
    return int(figure(target, "dla_cores") or 0)


def software_with_dla(target: Target) -> list[str]:
    """Name the software of a device whose TensorRT can use its DLA; empty without a DLA."""
    return [entry.name for entry in target.software if dla_cores(target) and _can(entry)]


def narrowed(target: Target, software: Software, core: int) -> tuple[Target, Software]:
    """Leave of a profile what one of its DLA cores can do.

    Returns:
        The profile and its software with FP16 as the only precision, without 2:4, and with static
        shapes.

    Raises:
        UserError: The device has no DLA or no such core, or this software cannot use it.
    """
    cores = dla_cores(target)
    on_gpu = f"{target.name}@{software.name}"
    if not cores:
        raise UserError(
            f"The target {target.name} ({target.title}) has no DLA.",
            f"Use it as {on_gpu}, or a device that has one, such as agx-orin-64gb or orin-nx-16gb.",
        )
    if core >= cores:
        raise UserError(
            f"The target {target.name} has no DLA core {core}: it has {cores}, counted from 0.",
            f"Write {' or '.join(with_dla(target.name, each) for each in range(cores))}.",
        )
    if not _can(software):
        having = " or ".join(software_with_dla(target))
        raise UserError(
            f"The DLA of {target.name} cannot be used with {software.name}: {_why_not(software)}.",
            f"Use it with {having}, or the GPU as {on_gpu}."
            if having
            else f"Use the GPU as {on_gpu}.",
        )
    only = {"flavours": _FLAVOURS}
    return (
        target.model_copy(update={**only, "sparse_2_4": False, "static_shapes": True}),
        software.model_copy(update=only),
    )


def check_dla(recipe: Recipe, identity: str) -> None:
    """Refuse a recipe that a DLA cannot serve.

    Args:
        recipe: What is asked.
        identity: The target in full.

    Raises:
        UserError: Naming why, what to leave out, and the target on its GPU.
    """
    why, instead = [], []
    if recipe.quantize is not None:
        why.append("takes INT8 from a calibration cache and not from the Q/DQ that is written here")
        instead.append("quantize=null")
    if recipe.sparsify is not None:
        why.append(
            f"skips zeros in INT8 alone, so {recipe.sparsify.pattern} sparsity would cost accuracy "
            "and save no time in FP16"
        )
        instead.append("sparsify=null")
    if recipe.measure.batch_size > _MOST_IMAGES:
        why.append(
            f"takes {_MOST_IMAGES} images at most, and a batch of {recipe.measure.batch_size} was "
            "asked for"
        )
        instead.append(f"measure.batch_size={_MOST_IMAGES}")
    if why:
        options = " ".join(f"--set {each}" for each in instead)
        raise UserError(
            f"The DLA of {identity} {', and '.join(why)}.",
            f'Run FP16 there with "{options}", or use the GPU as {without_dla(identity)}.',
        )


def _can(software: Software) -> bool:
    return software.runtime == "tensorrt" and has_dla(software.runtime_version)


def _why_not(software: Software) -> str:
    if software.runtime != "tensorrt":
        return f"only TensorRT builds for it, not {software.runtime}"
    major = int(software.runtime_version.partition(".")[0])
    later = " (11.4.1 has it again, in a form that is not written here)" if major >= 11 else ""
    last = ".".join(map(str, LAST_RELEASE))
    return (
        f"TensorRT {last} was the last release with DLA{later}, and this is "
        f"{software.runtime_version}"
    )
