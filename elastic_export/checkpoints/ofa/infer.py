"""Settings of an Once-for-all supernet, read from the shapes in its file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from elastic_export.errors import UserError
from elastic_export.families.mobile import make_divisible
from elastic_export.families.ofa.config import LARGEST_FACTOR
from elastic_export.families.ofa.mbv3_config import BASE_WIDTHS, STAGES, OfaMbv3Config

__all__ = ["Shapes", "infer_mbv3", "shape_of", "simplest", "smaller_choices", "width_mult_of"]

Shapes = Mapping[str, tuple[int, ...]]
_SPECIALIZED = (
    "If this is a specialized network, give its folder, which holds net.config, run.config and "
    "init; otherwise use another copy of the supernet."
)


def infer_mbv3(shapes: Shapes, given: Mapping[str, Any], elastic: bool) -> dict[str, Any]:
    """Settings of a MobileNetV3 supernet.

    Args:
        shapes: Canonical official names to shapes.
        given: What the user says; it is checked, and fills what shapes cannot tell.
        elastic: False for a file of plain layers, which is one network.

    Raises:
        UserError: The shapes are not such a supernet's, or a setting contradicts them.
    """
    blocks = block_count(shapes) - 1
    depth, rest = divmod(blocks, len(STAGES))
    if rest or not depth:
        raise UserError(
            f"The file has {blocks + 1} blocks, where a supernet has one and five stages of equal "
            "depth.",
            _SPECIALIZED,
        )
    block = "blocks.{}.conv.{}.conv.weight"
    ends = [0, *(1 + stage * depth for stage in range(len(STAGES)))]
    widths = [shape_of(shapes, block.format(end, "point_linear"))[0] for end in ends]
    layers = ("first_conv", "final_expand_layer", "feature_mix_layer")
    first, last, mix = (shape_of(shapes, f"{layer}.conv.weight")[0] for layer in layers)
    found: dict[str, Any] = {
        "in_chans": shape_of(shapes, "first_conv.conv.weight")[1],
        "num_classes": shape_of(shapes, "classifier.linear.weight")[0],
        "width_mult": given.get("width_mult") or width_mult_of((first, *widths, last, mix)),
    }
    kernels = {shape_of(shapes, block.format(i, "depth_conv"))[-1]: i for i in range(1, blocks + 1)}
    if len(kernels) > 1:
        raise UserError(
            f"The blocks have kernels of {sorted(kernels)}, where a supernet stores one size.",
            _SPECIALIZED,
        )
    steps = {(int(m[1]), int(m[2])) for n in shapes if (m := re.search(r"(\d+)to(\d+)_mat", n))}
    stored = tuple(sorted({*kernels, *(small for _, small in steps)}))
    if steps and "ks_list" in given:
        _same("ks_list", sorted(given["ks_list"]), list(stored), "the kernels' matrices")
    found["ks_list"] = stored
    if "ks_list" in given and not steps:
        found["kernel_transform"] = len(given["ks_list"]) == 1
    found["expand_ratio_list"] = _expansions(shapes, given, elastic)
    found["depth_list"] = smaller_choices(
        "depth_list", given, depth, OfaMbv3Config.model_fields["depth_list"].default, elastic
    )
    return {**found, **given}


def _expansions(shapes: Shapes, given: Mapping[str, Any], elastic: bool) -> Sequence[float]:
    pairs = [
        shape_of(shapes, name)[:2]
        for name in shapes
        if name.endswith(".inverted_bottleneck.conv.weight")
    ]

    def fits(ratio: float) -> bool:
        return all(make_divisible(round(into * ratio)) == mid for mid, into in pairs)

    published = OfaMbv3Config.model_fields["expand_ratio_list"].default
    if not pairs:
        return smaller_choices("expand_ratio_list", given, 1, published, elastic)
    mid, into = max(pairs, key=lambda pair: pair[1])
    near = mid / into
    wanted = given.get("expand_ratio_list", ())
    largest = simplest(fits, (*reversed(wanted), *reversed(published)), near)
    if largest is None:
        raise UserError("The inner widths of the blocks follow no one expansion.", _SPECIALIZED)
    return smaller_choices("expand_ratio_list", given, largest, published, elastic)


def block_count(shapes: Shapes) -> int:
    """How many blocks there are, numbered without gaps.

    Raises:
        UserError: A number is left out.
    """
    numbers = {int(m[1]) for name in shapes if (m := re.match(r"blocks\.(\d+)\.", name))}
    if numbers != set(range(len(numbers))):
        missing = next(i for i in range(len(numbers)) if i not in numbers)
        raise UserError(
            f"The file has no tensor of blocks.{missing}, but later ones.",
            "The file is incomplete; use another copy.",
        )
    return len(numbers)


def shape_of(shapes: Shapes, name: str) -> tuple[int, ...]:
    """The shape of a tensor that must be there.

    Raises:
        UserError: It is not.
    """
    if name not in shapes:
        raise UserError(
            f"The file has no tensor {name} (or an older spelling of it).",
            "The file is incomplete or of another system; inspect tells what it holds.",
        )
    shape = shapes[name]
    if len(shape) < 2:
        raise UserError(f"{name} has the shape {shape}, which is no layer's.", "Use another copy.")
    return shape


def smaller_choices(
    name: str, given: Mapping[str, Any], largest: float, published: Sequence[float], elastic: bool
) -> tuple[float, ...]:
    """The choices of an axis whose largest one the shapes tell.

    Args:
        name: The setting.
        given: What the user says; its largest value must be ``largest``.
        largest: What the shapes say.
        published: The choices of the published supernets; smaller ones of them are assumed.
        elastic: False where there is no choice.

    Raises:
        UserError: The user's largest value is another.
    """
    if name in given:
        _same(f"the largest of {name}", max(given[name]), largest, "the shapes")
        return tuple(given[name])
    return (*(c for c in published if c < largest and elastic), largest)


def _same(what: str, given: Any, found: Any, source: str) -> None:
    if given != found:
        raise UserError(
            f"The settings say {given} for {what}, but {source} in the file say {found}.",
            f"Correct {what.split()[-1]}, or leave it out to have it read from the file.",
        )


def width_mult_of(widths: Sequence[int]) -> float:
    """The multiplier that gives these widths (:data:`BASE_WIDTHS`), as round as possible.

    Raises:
        UserError: None does.
    """

    def fits(factor: float) -> bool:
        pairs = zip(BASE_WIDTHS, widths, strict=True)
        return all(make_divisible(base * factor) == width for base, width in pairs)

    found = simplest(fits, (1.0, 1.2), widths[-1] / BASE_WIDTHS[-1])
    if found is None:
        raise UserError(
            f"The widths {list(widths)} are no multiple of the published {list(BASE_WIDTHS)}.",
            "Only MobileNetV3 supernets with a width_mult of the official code are read.",
        )
    return float(found)


def simplest(
    fits: Callable[[float], bool], preferred: Sequence[float], near: float
) -> float | None:
    """The first preferred number that fits, else the one with the fewest decimals around ``near``.

    Rounded widths leave room for many numbers, all of which mean the same network.
    """
    for number in preferred:
        if fits(number):
            return number
    for digits in range(5) if 0 < near <= LARGEST_FACTOR else ():
        scale = 10**digits
        middle, reach = round(near * scale), int(near * scale * 0.2) + 1
        for step in sorted(range(-reach, reach + 1), key=abs):
            number = (middle + step) / scale if digits else middle + step
            if number > 0 and fits(number):
                return number
    return None
