"""Which device a board is, by its part number or by what its driver calls it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from elastic_export import resources
from elastic_export.config.target import Target
from elastic_export.config.target_files import find_target

__all__ = ["fits_device", "identify"]

_NOISE = {"nvidia", "geforce", "jetson", "tesla", "quadro", "module", "of", "gpu", "the"}
_PART = re.compile(r"p\d{4}(-\d{4})?")


def identify(board: Mapping[str, Any], known: Iterable[Target]) -> Target | None:
    """Name the device of a board among profiles; None where none or several fit.

    Args:
        board: The document of ``on_device.py probe``.
        known: The profiles.
    """
    profiles = list(known)
    return _by_part(board, profiles) or _by_name(board, profiles)


def fits_device(board: Mapping[str, Any], target: Target) -> bool | None:
    """Tell whether a board is the device of a profile; None where that cannot be told.

    The part number decides for a Jetson, compute capability and name for a card. A profile of one's
    own that names neither is taken at its word.
    """
    if target.kind == "host":
        return None
    capability = str(board.get("compute_capability") or "").replace(".", "")
    if capability.isdigit() and target.sm is not None and int(capability) != target.sm:
        return False
    if target.kind == "jetson" and not board.get("part") and not board.get("l4t"):
        return False  # every Jetson tells its release of L4T
    part = str(board.get("part") or "")
    parts = {alias for alias in target.aliases if _PART.fullmatch(alias)}
    if part and parts:
        return part in parts or part.partition("-")[0] in parts
    said = set(_words(str(board.get("model") or "")))
    chip = _chip(target)
    if target.kind != "gpu" or not said or not chip:
        return None
    if chip not in said:
        return False
    shipped = resources.names("targets")
    found = identify(board, map(find_target, shipped))
    return found is None or found.name == target.name or target.name not in shipped


def _by_part(board: Mapping[str, Any], known: Iterable[Target]) -> Target | None:
    """Find the module by its part number, ``p3767-0003``, or the number of its family alone."""
    part = str(board.get("part") or "")
    for wanted in (part, part.partition("-")[0]):
        found = [target for target in known if wanted and wanted in target.aliases]
        if len(found) == 1:
            return found[0]
    return None


def _by_name(board: Mapping[str, Any], known: Iterable[Target]) -> Target | None:
    """Find a card by what its driver calls it; the more words of a profile's title, the better."""
    said = set(_words(str(board.get("model") or "")))
    if board.get("part"):
        return None
    best = [(len(set(_title(target)) & said), target) for target in known if _chip(target) in said]
    top = max((score for score, _ in best), default=0)
    found = [target for score, target in best if score == top]
    return found[0] if len(found) == 1 else None


def _chip(target: Target) -> str:
    """The word that tells the chip: the first of a title that is no maker's."""
    words = _title(target)
    return words[0] if target.kind != "host" and words else ""


def _title(target: Target) -> list[str]:
    return _words(target.title.partition("(")[0])


def _words(text: str) -> list[str]:
    """``NVIDIA A100-SXM4-80GB`` and ``NVIDIA A100, SXM4, 80 GB`` give ``a100 sxm4 80gb``."""
    plain = re.sub(r"(\d+)\s*GB", r"\1gb", text)
    words = [word.lower() for word in re.findall(r"[A-Za-z0-9]+", plain)]
    # "RTX 3090" is one name: the number tells the chip.
    joined, index = [], 0
    while index < len(words):
        if words[index] == "rtx" and index + 1 < len(words):
            joined.append("rtx" + words[index + 1])
            index += 2
        else:
            joined.append(words[index])
            index += 1
    return [word for word in joined if word not in _NOISE]
