"""The axes of ``elasticvit``, and the system's own way to write a choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from elastic_export.errors import UserError
from elastic_export.families.elasticvit.config import ConvStage, ElasticVitConfig
from elastic_export.space import Axis, Space, Value

__all__ = ["FIELDS", "from_arch", "search_space"]

FIELDS = (
    "resolution",
    "channels",
    "depths",
    "conv_ratio",
    "kernel",
    "mlp_ratio",
    "num_heads",
    "window",
    "qk_scale",
    "v_scale",
)
"""What the ten entries of an arch are."""


def search_space(config: ElasticVitConfig) -> Space:
    """Resolution, then for stem and stages channels, depth and what each block chooses."""
    axes = [Axis("resolution", config.resolution)]
    axes += [Axis("stem.channels", config.stem_channels), Axis("stem.depth", config.stem_depth)]
    axes += [
        Axis(f"stem.{b}.kernel", config.stem_kernel, ("stem.depth", b))
        for b in range(max(config.stem_depth))
    ]
    for s, stage in enumerate(config.stages):
        name = f"stages.{s}"
        axes += [Axis(f"{name}.channels", stage.channels), Axis(f"{name}.depth", stage.depth)]
        for b in range(max(stage.depth)):
            when = (f"{name}.depth", b)
            if isinstance(stage, ConvStage):
                axes.append(Axis(f"{name}.{b}.ratio", stage.ratio, when))
                axes.append(Axis(f"{name}.{b}.kernel", stage.kernel, when))
            else:
                axes.append(Axis(f"{name}.{b}.mlp_ratio", stage.mlp_ratio, when))
                axes.append(Axis(f"{name}.{b}.v_scale", stage.v_scale, when))
                axes.append(Axis(f"{name}.{b}.qk_scale", stage.qk_scale, when))
    return Space(axes)


def from_arch(
    config: ElasticVitConfig, arch: Sequence[Any], *, name: str = "The arch"
) -> dict[str, Value]:
    """Turn the system's arch tuple into choices of the space.

    Args:
        config: The supernet.
        arch: Ten entries (:data:`FIELDS`): resolution; channels and depths of stem and stages;
            conv ratio and kernel of each block of the stem and of the stages of kind C; MLP ratio,
            heads, window, qk and v scale of each block of the stages of kind T. Heads follow from
            the channels and are not read, as in the system.
        name: What messages call it.

    Returns:
        Axis name to choice, for every active axis.

    Raises:
        UserError: An entry is missing, has the wrong length, or is no choice of this supernet.
    """
    parts = _parts(arch, name)
    places = 1 + len(config.stages)
    channels = _listed(parts, "channels", places, name)
    depths = [_whole(d, "depths", name) for d in _listed(parts, "depths", places, name)]
    convs = 1 + len(config.conv_stages)
    inner = {
        "conv_ratio": sum(depths[:convs]),
        "kernel": sum(depths[:convs]),
        **dict.fromkeys(("mlp_ratio", "window", "qk_scale", "v_scale"), sum(depths[convs:])),
    }
    lists = {field: _listed(parts, field, length, name) for field, length in inner.items()}
    _check_fixed(lists, depths[0], name)
    genes: dict[str, Any] = {"resolution": parts["resolution"]}
    names = ["stem", *(f"stages.{s}" for s in range(len(config.stages)))]
    at = {"C": 0, "T": 0}
    for place, where in enumerate(names):
        genes[f"{where}.channels"], genes[f"{where}.depth"] = channels[place], depths[place]
        kind = "C" if place < convs else "T"
        for b in range(depths[place]):
            row = at[kind] + b
            if kind == "C":
                genes[f"{where}.{b}.kernel"] = lists["kernel"][row]
                if place:
                    genes[f"{where}.{b}.ratio"] = lists["conv_ratio"][row]
            else:
                for field in ("mlp_ratio", "v_scale", "qk_scale"):
                    genes[f"{where}.{b}.{field}"] = lists[field][row]
        at[kind] += depths[place]
    try:
        return dict(search_space(config).canonical(genes))
    except UserError as error:
        raise UserError(f"{name} does not fit this supernet: {error.what}", error.fix) from error


def _parts(arch: Any, name: str) -> dict[str, Any]:
    if not isinstance(arch, list | tuple) or len(arch) != len(FIELDS):
        found = f"{len(arch)} entries" if isinstance(arch, list | tuple) else repr(arch)[:40]
        raise UserError(
            f"{name} is not an arch of ElasticViT: {found} where {len(FIELDS)} are needed.",
            f"Give {', '.join(FIELDS)}, in this order.",
        )
    return dict(zip(FIELDS, arch, strict=True))


def _listed(parts: dict[str, Any], field: str, length: int, name: str) -> list[Any]:
    values = parts[field]
    if not isinstance(values, list | tuple) or len(values) != length:
        found = f"{len(values)} values" if isinstance(values, list | tuple) else repr(values)[:40]
        raise UserError(
            f"{name} has {found} in {field}, where this supernet needs {length}.",
            "Give channels and depths of the stem and every stage, and the rest for every block.",
        )
    return list(values)


def _whole(value: Any, field: str, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(
            f"{name} has {value!r} in {field}, which is not a positive whole number.",
            "Correct the arch.",
        )
    return value


def _check_fixed(lists: dict[str, list[Any]], stem: int, name: str) -> None:
    if any(ratio != 1 for ratio in lists["conv_ratio"][:stem]):
        raise UserError(
            f"{name} has a conv_ratio other than 1 in the stem, which has no expansion.",
            f"Begin conv_ratio with {stem} times 1.",
        )
    if any(window != 1 for window in lists["window"]):
        raise UserError(
            f"{name} asks for attention in windows, which ElasticViT never released.",
            "Set every window to 1, which means global attention.",
        )
