"""SparsifyViT's layer-wise sparsity: what its YAML says, layer by layer.

A pair ``[a, b]`` has three meanings in the versions of its code: groups of a of which b are removed
(commit bb74c8d, where a > b), a removed of each b (from commit 60a481f on), and a kept of each b
(its supernet stage, and ELSA). Only ``a > b`` tells by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from elastic_export.errors import UserError, did_you_mean
from elastic_export.space import density

__all__ = ["CONVENTIONS", "Levels", "candidates", "holds_exactly", "levels_of", "pattern_of_mask"]

CONVENTIONS = {"keep-of": "keep a of each b", "prune-of": "remove a of each b"}
"""What the setting ``nm_convention`` says of a pair [a, b]."""
_SEED = "groups of a, remove b"
_MODES = ("nxm", "unstructured")
# Where a mask fits several group lengths, the one that tensor cores know comes first.
_GROUPS = (4, 8, 16, 32, *(m for m in range(2, 65) if m not in (4, 8, 16, 32)))

Pair = tuple[int, int]
Readings = dict[str, dict[str, str]]
"""Meaning of the pairs to layer to pattern."""


class Levels:
    """A checked ``sparsity`` section.

    Attributes:
        mode: ``nxm``, ``unstructured``, or ``choices`` of the supernet stage.
        pairs: Layer to pair, for ``nxm``.
        shares: Layer to removed share, for ``unstructured``.
        choices: Layer to patterns from sparse to dense, for ``choices``.
    """

    def __init__(self, mode: Literal["nxm", "unstructured", "choices"]) -> None:
        self.mode = mode
        self.pairs: dict[str, Pair] = {}
        self.shares: dict[str, float] = {}
        self.choices: dict[str, tuple[str, ...]] = {}


def levels_of(section: Any, layers: Sequence[str], supernet_layers: Sequence[str]) -> Levels:
    """Check a ``sparsity`` section and give each of its entries to its layer.

    Args:
        section: ``{mode, level}``, or ``{choices}`` of the supernet stage.
        layers: The layers in the order of ``level``: qkv, proj, fc1, fc2 of each block.
        supernet_layers: The layers in the order of ``choices``: proj, qkv, fc1, fc2.

    Raises:
        UserError: The section is of another form, or lists another number of layers.
    """
    if not isinstance(section, Mapping):
        raise _wrong("sparsity is no section with mode and level")
    if "choices" in section:
        return _supernet(section, supernet_layers)
    mode, entries = section.get("mode"), section.get("level")
    if mode not in _MODES:
        raise UserError(
            f"sparsity.mode is {mode!r}, which SparsifyViT does not have.",
            did_you_mean(str(mode), list(_MODES)),
        )
    found = _by_layer(entries, layers, "sparsity.level")
    if mode == "nxm":
        levels = Levels("nxm")
        levels.pairs = {layer: _pair(entry, layer) for layer, entry in found.items()}
        return levels
    levels = Levels("unstructured")
    for layer, entry in found.items():
        if isinstance(entry, bool) or not isinstance(entry, int | float) or not 0 <= entry < 1:
            raise _wrong(f"sparsity.level removes {entry!r} of {layer}, which is no share below 1")
        levels.shares[layer] = float(entry)
    return levels


def candidates(pairs: Mapping[str, Pair], convention: Any) -> Readings:
    """The meanings the pairs can have, each with the patterns that follow.

    Args:
        pairs: Layer to pair, as written.
        convention: The setting ``nm_convention``; None where it is not given.

    Raises:
        UserError: The pairs contradict each other or the convention, or a layer would be empty.
    """
    if convention is not None and convention not in CONVENTIONS:
        raise UserError(
            f'There is no nm_convention "{convention}".',
            did_you_mean(str(convention), list(CONVENTIONS)),
        )
    falling = [layer for layer, (a, b) in pairs.items() if a > b]
    rising = [layer for layer, (a, b) in pairs.items() if a < b]
    if falling and (rising or convention is not None):
        other = f"nm_convention {convention}" if convention is not None else str(rising[0])
        raise UserError(
            f"{list(pairs[falling[0]])} of {falling[0]} means groups of {pairs[falling[0]][0]}, "
            f"which {other} contradicts.",
            "Write all pairs in one form, and leave nm_convention out where the first number of a "
            "pair is the larger one.",
        )
    names = [_SEED] if falling else ([convention] if convention else [*CONVENTIONS])
    readings: Readings = {}
    for name in names:
        kept = {layer: _kept(pair, name) for layer, pair in pairs.items()}
        empty = [layer for layer, (n, _) in kept.items() if n < 1]
        if not empty:
            readings[name] = {
                layer: "dense" if n == m else f"{n}:{m}" for layer, (n, m) in kept.items()
            }
        elif len(names) == 1:
            raise _wrong(f"sparsity.level {list(pairs[empty[0]])} removes all of {empty[0]}")
    if not readings:
        raise _wrong("sparsity.level removes all of a layer, whatever its pairs mean")
    return readings


def holds_exactly(kept: Tensor, pattern: str) -> bool:
    """Whether every group of a mask (out, in) keeps exactly the pattern's N."""
    if pattern == "dense":
        return bool(kept.all())
    n, m = (int(part) for part in pattern.split(":"))
    if kept.shape[1] % m:
        return False
    return bool((kept.reshape(kept.shape[0], -1, m).sum(-1) == n).all())


def pattern_of_mask(kept: Tensor) -> str:
    """The N:M pattern a mask (out, in) has in every group; ``dense`` if there is none."""
    share = float(kept.float().mean())
    for m in _GROUPS:
        n = round(share * m)
        if 0 < n < m and kept.shape[1] % m == 0 and holds_exactly(kept, f"{n}:{m}"):
            return f"{n}:{m}"
    return "dense"


def _kept(pair: Pair, convention: str) -> Pair:
    a, b = pair
    if convention == _SEED:
        return a - b, a
    return (a, b) if convention == "keep-of" else (b - a, b)


def _supernet(section: Mapping[str, Any], layers: Sequence[str]) -> Levels:
    for key in ("seperate", "per_cand_affine"):
        if section.get(key):
            raise UserError(
                f"sparsity.{key} keeps weights for each candidate, which is not read.",
                "Only supernets whose candidates share one weight can be imported.",
            )
    levels = Levels("choices")
    for layer, entry in _by_layer(section["choices"], layers, "sparsity.choices").items():
        if not isinstance(entry, list | tuple) or not entry:
            raise _wrong(f"sparsity.choices lists no candidates for {layer}")
        kept = [_pair(item, layer) for item in entry]
        if any(not 0 < n <= m for n, m in kept):
            raise _wrong(f"sparsity.choices of {layer} has a pair that is not N of M")
        patterns = {"dense" if n == m else f"{n}:{m}" for n, m in kept}
        levels.choices[layer] = tuple(sorted(patterns, key=density))
    return levels


def _by_layer(entries: Any, layers: Sequence[str], name: str) -> dict[str, Any]:
    if not isinstance(entries, list | tuple):
        raise _wrong(f"{name} is no list")
    if len(entries) != len(layers):
        raise UserError(
            f"{name} has {len(entries)} entries, but the network has {len(layers)} layers that are "
            "pruned.",
            f"List one entry for each, in this order: {', '.join(layers[:4])}, ...",
        )
    return dict(zip(layers, entries, strict=True))


def _pair(entry: Any, layer: str) -> Pair:
    whole = isinstance(entry, list | tuple) and len(entry) == 2
    if not whole or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in entry):
        raise _wrong(f"The sparsity of {layer} is {entry!r}, which is no pair of whole numbers")
    a, b = entry
    if max(a, b) < 1:
        raise _wrong(f"The sparsity of {layer} is {entry!r}, a group of nothing")
    return a, b


def _wrong(what: str) -> UserError:
    return UserError(
        f"{what}.",
        "Give the YAML that the network was pruned with: sparsity with mode and level.",
    )
