"""What the weights of an ELSA file tell of patterns, and affine parts that become weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from elastic_export.checkpoints.elsa.config import Choices
from elastic_export.checkpoints.reader import Keys
from elastic_export.errors import UserError
from elastic_export.families.counters.elsa import removed_of_group
from elastic_export.space import density
from elastic_export.space.cost import reduction_block
from elastic_export.sparsity import measured_density, pattern_holds

__all__ = ["fold_affine", "narrowed", "rounding_notes"]

_COMMON = ("1:4", "2:4")
"""Looked for in the zeros of a file although no configuration names them."""
_AFFINE = r"(.+)\.per_candidate_affine_modules\.n(\d+)_m(\d+)\.(alpha|beta)"


def narrowed(choices: Choices, weights: Mapping[str, Tensor]) -> tuple[Choices, tuple[str, ...]]:
    """Leave out choices denser than what a file's zeros leave: they would change nothing.

    Args:
        choices: What the configuration offers.
        weights: Layer to its weight (out, in).

    Returns:
        The choices, and a note if some were left out.
    """
    of = {layer: _held(weights[layer], patterns) for layer, patterns in choices.of.items()}
    held = sum(of[layer] != choices.of[layer] for layer in of)
    if not held:
        return choices, ()
    named = {}
    for name, patterns in choices.named.items():
        possible = [p in own for own, p in zip(of.values(), patterns, strict=True)]
        if all(possible) or not (name == "dense" or name.startswith("uniform_")):
            pairs = zip(of.values(), patterns, strict=True)
            named[name] = tuple(p if p in own else own[-1] for own, p in pairs)
    note = (
        f"The weights of {held} of {len(of)} layers already hold a pattern; denser choices, which "
        "would change nothing, are left out there."
    )
    return Choices(of, named, choices.only), (note,)


def _held(weight: Tensor, patterns: tuple[str, ...]) -> tuple[str, ...]:
    if measured_density(weight) > 0.9:
        return patterns
    holding = [
        p
        for p in dict.fromkeys((*patterns, *_COMMON))
        if p != "dense" and weight.shape[1] % reduction_block(p) == 0 and pattern_holds(weight, p)
    ]
    if not holding:
        return patterns
    top = min(holding, key=density)
    return (*(p for p in patterns if density(p) < density(top)), top)


def rounding_notes(choices: Choices) -> tuple[str, ...]:
    """Tell of patterns for which ELSA's own masks are not N:M, by a rounding error."""
    patterns = sorted({p for own in choices.of.values() for p in own} - {"dense"})
    odd = []
    for pattern in patterns:
        removed, of = removed_of_group(pattern)
        if of - removed != round(density(pattern) * of):
            odd.append(pattern)
    if not odd:
        return ()
    return (f"ELSA's own masks for {', '.join(odd)} keep one value more than N; these keep N.",)


def fold_affine(keys: Keys, choices: Choices) -> tuple[dict[str, Tensor], Choices, tuple[str, ...]]:
    """Fold the affine part that each candidate of a layer has into weights and biases.

    A candidate c computes alpha_c * (masked weight x + bias) + beta_c, so each needs weights of its
    own: only one subnet can be had. A row's factor does not change which of its values are largest.

    Args:
        keys: The file; what is folded is taken out of it.
        choices: Which subnet is wanted is its ``only``.

    Returns:
        The folded tensors, the choices left, and notes.

    Raises:
        UserError: No subnet is named, or its affine parts are incomplete.
    """
    parts = {name: m for name in keys if (m := re.fullmatch(_AFFINE, name))}
    if not parts:
        return {}, choices, ()
    if choices.only is None:
        raise UserError(
            "This checkpoint has an affine part for each candidate of a layer, so that each subnet "
            "has weights of its own.",
            "Name the one that is wanted: subnet, a list of [N, M] for each layer in the order "
            "proj, qkv, fc1, fc2 of block after block.",
        )
    folded: dict[str, Tensor] = {}
    touched = {m[1] for m in parts.values()}
    for layer, pattern in zip(choices.of, choices.only, strict=True):
        if layer in touched:
            folded |= _folded(keys, layer, pattern, list(parts))
    keys.ignore(_AFFINE, "an affine part of a candidate that the subnet does not have")
    named = {name: found for name, found in choices.named.items() if found == choices.only}
    of = {layer: (p,) for layer, p in zip(choices.of, choices.only, strict=True)}
    note = "The affine parts of the subnet's candidates are folded into its weights."
    return folded, Choices(of, named, choices.only), (note,)


def _folded(keys: Keys, layer: str, pattern: str, names: list[str]) -> dict[str, Tensor]:
    prefix = f"{layer}.per_candidate_affine_modules."
    own = [
        name.rpartition(".")[0]
        for name in names
        if name.startswith(prefix) and (m := re.fullmatch(_AFFINE, name)) and _is(m, pattern)
    ]
    if not own or f"{layer}.bias" not in keys:
        raise UserError(
            f"{layer} has affine parts of candidates, but "
            + ("no bias to take beta." if own else f"none for {pattern}."),
            "Name another subnet, or save the subnet's weights where the file was written.",
        )
    weight, bias = keys.take(f"{layer}.weight"), keys.take(f"{layer}.bias")
    alpha, beta = (keys.take(f"{own[0]}.{leaf}").flatten() for leaf in ("alpha", "beta"))
    if alpha.numel() not in (1, len(bias)) or beta.numel() not in (1, len(bias)):
        raise UserError(
            f"The affine part of {layer} has {alpha.numel()} factors for {len(bias)} outputs.",
            "Check that the file is whole.",
        )
    with torch.no_grad():
        scaled = weight * alpha[:, None]
        return {f"{layer}.weight": scaled, f"{layer}.bias": alpha * bias + beta}


def _is(match: re.Match[str], pattern: str) -> bool:
    n, m = int(match[2]), int(match[3])
    return pattern == ("dense" if n == m else f"{n}:{m}")
