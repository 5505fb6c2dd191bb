"""Settings of an Once-for-all ResNet50D supernet, read from the shapes in its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elastic_export.checkpoints.ofa.infer import (
    Shapes,
    block_count,
    shape_of,
    simplest,
    smaller_choices,
)
from elastic_export.errors import UserError
from elastic_export.families.mobile import make_divisible
from elastic_export.families.ofa.resnet50d_config import (
    BASE_DEPTHS,
    BASE_STEM,
    BASE_WIDTHS,
    OfaResNet50DConfig,
)

__all__ = ["infer_resnet"]

_SPECIALIZED = (
    "If this is a specialized network, give its folder, which holds net.config, run.config and "
    "init; otherwise use another copy of the supernet."
)


def infer_resnet(shapes: Shapes, given: Mapping[str, Any], elastic: bool) -> dict[str, Any]:
    """Settings of a ResNet50D supernet.

    Args:
        shapes: Canonical official names to shapes.
        given: What the user says; it is checked, and fills what shapes cannot tell.
        elastic: False for a file of plain layers, which is one network.

    Raises:
        UserError: The shapes are not such a supernet's, or a setting contradicts them.
    """
    blocks = block_count(shapes)
    depth, rest = divmod(blocks - sum(BASE_DEPTHS), len(BASE_DEPTHS))
    if rest or depth < 0:
        raise UserError(
            f"The file has {blocks} blocks, where a supernet has {sum(BASE_DEPTHS)} and a multiple "
            f"of {len(BASE_DEPTHS)} more.",
            _SPECIALIZED,
        )
    if "input_stem.1.conv.conv.weight" not in shapes:
        raise UserError("The file has no residual convolution in its stem.", _SPECIALIZED)
    lasts = [sum(BASE_DEPTHS[: s + 1]) + (s + 1) * depth - 1 for s in range(len(BASE_DEPTHS))]
    widths = [shape_of(shapes, f"blocks.{last}.conv3.conv.weight")[0] for last in lasts]
    inner, stem = (shape_of(shapes, f"input_stem.{i}.conv.weight")[0] for i in (0, 2))

    def wide(factor: float) -> bool:
        outer = make_divisible(BASE_STEM * factor)
        found = [make_divisible(base * factor) for base in BASE_WIDTHS]
        return [make_divisible(outer // 2), outer, *found] == [inner, stem, *widths]

    pairs = [
        (
            shape_of(shapes, f"blocks.{i}.conv3.conv.weight")[0],
            shape_of(shapes, f"blocks.{i}.conv1.conv.weight")[0],
        )
        for i in range(blocks)
    ]

    def expanded(ratio: float) -> bool:
        return all(make_divisible(round(out * ratio)) == mid for out, mid in pairs)

    out, mid = max(pairs)
    return {
        "in_chans": shape_of(shapes, "input_stem.0.conv.weight")[1],
        "num_classes": shape_of(shapes, "classifier.linear.weight")[0],
        "width_mult_list": _choices(
            "width_mult_list", wide, given, widths[-1] / BASE_WIDTHS[-1], elastic
        ),
        "expand_ratio_list": _choices("expand_ratio_list", expanded, given, mid / out, elastic),
        "depth_list": smaller_choices(
            "depth_list", given, depth, _published("depth_list"), elastic
        ),
        **{name: value for name, value in given.items() if not name.endswith("_list")},
    }


def _choices(
    name: str, fits: Any, given: Mapping[str, Any], near: float, elastic: bool
) -> tuple[float, ...]:
    published = _published(name)
    largest = simplest(fits, (*reversed(given.get(name, ())), *reversed(published)), near)
    if largest is None:
        raise UserError(f"No one value of {name} gives the widths in the file.", _SPECIALIZED)
    if name == "width_mult_list" and largest != max(published) and name not in given:
        return (largest,)
    return smaller_choices(name, given, largest, published, elastic)


def _published(name: str) -> Any:
    return OfaResNet50DConfig.model_fields[name].default
