"""SparsifyViT's pruned DeiTs, and its ways to prune a dense one.

A pruned checkpoint (shadowpa0327/SparsifyViT, commit bb74c8d) holds ``weight_orig`` and
``weight_mask`` of each pruned layer, as ``torch.nn.utils.prune`` writes them; the weight is their
product. Pruned are all linear layers but the one named ``head``.

Beside a file one may give

* ``sparsity``: the layer-wise YAML. It is checked against the masks in the file, or prunes a dense
  file; with ``choices`` (the supernet stage) it becomes the patterns to choose from.
* ``nm_convention``: what a pair ``[a, b]`` means where neither the pairs nor masks in the file
  tell, ``keep-of`` or ``prune-of``.
* ``allocation``: ``{method, sparsity}``, which prunes a dense file by magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from elastic_export.checkpoints.reader import Imported, Keys, Reader, Source
from elastic_export.checkpoints.readers import register_reader
from elastic_export.checkpoints.safe import state_dict_of
from elastic_export.checkpoints.sparsifyvit.levels import (
    CONVENTIONS,
    Levels,
    candidates,
    holds_exactly,
    levels_of,
    pattern_of_mask,
)
from elastic_export.checkpoints.timm_vit import (
    arguments,
    blocks_of,
    check_binary,
    vit_config,
)
from elastic_export.elastic import Supernet
from elastic_export.errors import UserError, did_you_mean
from elastic_export.families.registry import family_config, get_family
from elastic_export.families.vit.config import LINEARS
from elastic_export.space import Spec
from elastic_export.space.cost import reduction_block
from elastic_export.sparsity import pattern_mask
from elastic_export.sparsity.allocation import allocate, magnitude_mask, masks_of

__all__ = ["SparsifyVitReader"]

_SUPERNET_ORDER = ("attn.proj", "attn.qkv", "mlp.fc1", "mlp.fc2")
_OPTIONS = ("nm_convention", "allocation")
_REASONS = {
    "args": "the command line of the training; its model name may tell the number of heads",
}


@register_reader
class SparsifyVitReader(Reader):
    """DeiTs pruned by shadowpa0327/SparsifyViT."""

    name = "sparsifyvit"
    system = "SparsifyViT, one-shot pruned DeiT (shadowpa0327/SparsifyViT)"
    reasons = MappingProxyType(_REASONS)

    def claims(self, source: Source) -> bool:
        """``weight_orig`` beside ``weight_mask``, or settings that only this system has."""
        if source.path.is_dir() or not source.keys():
            return False
        model = source.content.get("model")
        names = {str(key) for key in (model if isinstance(model, Mapping) else source.content)}
        names = {name.removeprefix("module.") for name in names}
        if "blocks.0.attn.qkv.weight_orig" in names and "blocks.0.attn.qkv.weight_mask" in names:
            return True
        asked = "allocation" in source.config or isinstance(source.config.get("sparsity"), Mapping)
        return asked and "blocks.0.attn.qkv.weight" in names

    def read(self, source: Source) -> Imported:
        """Multiply the masks in, and find or make the pattern of each layer."""
        theirs, options, ours = source.split_config(("sparsity",), _OPTIONS)
        found = state_dict_of(source.loaded, prefer=("model",))
        keys = Keys(found.tensors, source.path)
        masks, state = _merged(keys)
        ignored = keys.finish()
        layers = _prunable(state, LINEARS)
        patterns, notes = self._patterns(state, masks, layers, theirs.get("sparsity"), options)
        in_blocks = {k: v for k, v in patterns.items() if k.endswith(LINEARS)}
        given = dict(ours.pop("nm_of", None) or {})
        config = vit_config(state, ours, arguments(source.content))
        settings = config.model_dump(mode="json") | {"nm_of": given | in_blocks}
        family = get_family("vit")
        supernet = Supernet.of_state(family, family_config(family, settings), state)
        return Imported(
            supernet,
            self.name,
            stored=found.collections,
            used=found.name,
            ignored=ignored,
            notes=(*notes, *_outside(patterns)),
            official=lambda spec: {"density": _density(supernet, spec)},
        )

    def _patterns(
        self,
        state: dict[str, Tensor],
        masks: Mapping[str, Tensor],
        layers: list[str],
        section: Any,
        options: Mapping[str, Any],
    ) -> tuple[dict[str, tuple[str, ...]], list[str]]:
        """Patterns of the layers that are not dense; ``state`` is pruned where that was asked."""
        convention, allocation = options.get("nm_convention"), options.get("allocation")
        if allocation is not None:
            if masks or section is not None:
                other = "the file is pruned already" if masks else "sparsity is given as well"
                raise UserError(
                    f"allocation cannot be applied: {other}.",
                    "Leave allocation out, or give a dense checkpoint and no other sparsity.",
                )
            return {}, _allocated(state, layers, allocation)
        if section is None:
            return _from_masks(masks)
        levels = levels_of(section, layers, _prunable(state, _SUPERNET_ORDER))
        if levels.mode == "choices":
            if masks:
                raise UserError(
                    "sparsity lists choices, but the file holds the masks of one network.",
                    "Leave sparsity out, or give the supernet's checkpoint.",
                )
            return {k: v for k, v in levels.choices.items() if v != ("dense",)}, [
                "candidates are read as N kept of M, in the order proj, qkv, fc1, fc2"
            ]
        if levels.mode == "unstructured":
            return {}, _unstructured(state, masks, levels)
        return _semi_structured(state, masks, levels, convention)


def _merged(keys: Keys) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Masks by layer, and the state dict with each pair of a weight and its mask multiplied."""
    masks: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name in keys:
        layer, _, leaf = name.rpartition(".")
        if leaf in ("weight_orig", "weight_mask"):
            if layer in masks:
                continue
            if f"{layer}.weight" in keys:
                raise UserError(
                    f"{layer} has a weight and a pruned weight.",
                    "Use the checkpoint as it was saved; this one was put together of two.",
                )
            weight = keys.take(f"{layer}.weight_orig")
            mask = keys.take(f"{layer}.weight_mask")
            masks[layer] = check_binary(mask, layer, tuple(weight.shape))
            state[f"{layer}.weight"] = weight * masks[layer]
        else:
            state[name] = keys.take(name)
    return masks, state


def _prunable(state: Mapping[str, Tensor], order: tuple[str, ...]) -> list[str]:
    """The layers that SparsifyViT prunes: all linear ones but ``head``, also ``head_dist``."""
    layers = [f"{block}.{name}" for block in blocks_of(state) for name in order]
    layers += ["head_dist"] if "head_dist.weight" in state else []
    for layer in layers:
        if f"{layer}.weight" not in state or state[f"{layer}.weight"].dim() != 2:
            raise UserError(
                f"The checkpoint has no weight of {layer} with two dimensions.",
                "The file is incomplete or of another network; inspect tells what it holds.",
            )
    return layers


def _from_masks(masks: Mapping[str, Tensor]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Patterns that the masks have in every group."""
    patterns: dict[str, tuple[str, ...]] = {}
    removed = []
    for layer, kept in masks.items():
        pattern = pattern_of_mask(kept)
        if pattern != "dense":
            patterns[layer] = (pattern,)
        elif not bool(kept.all()):
            removed.append(1.0 - float(kept.double().mean()))
    notes = []
    if patterns:
        found = ", ".join(sorted({p for (p,) in patterns.values()}))
        notes.append(f"{len(patterns)} layers are {found} by their masks")
    if removed:
        ends = f"{min(removed):.4f} to {max(removed):.4f}"
        notes.append(f"{len(removed)} layers are unstructured: {ends} of each is removed")
    return patterns, notes


def _semi_structured(
    state: dict[str, Tensor], masks: Mapping[str, Tensor], levels: Levels, convention: Any
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Patterns of the YAML's pairs, proven by the masks or applied to the dense weights."""
    readings = candidates(levels.pairs, convention)
    notes = []
    if masks:
        fitting = {
            name: reading
            for name, reading in readings.items()
            if not any(_differs(masks.get(layer), p) for layer, p in reading.items())
        }
        if not fitting:
            reading = next(iter(readings.values()))
            layer = next(layer for layer, p in reading.items() if _differs(masks.get(layer), p))
            raise UserError(
                f"sparsity.level says {list(levels.pairs[layer])} for {layer}, but the mask in the "
                "file is another one.",
                "Give the YAML the file was pruned with, or leave sparsity out.",
            )
        notes.append("sparsity.level agrees with the masks in the file")
        if len(readings) > len(fitting) and convention is None:
            name = next(iter(fitting))
            notes.append(f"the masks settle what a pair [a, b] means: {CONVENTIONS[name]}")
        readings = fitting
    elif len(readings) == 1 and convention is None:
        notes.append(f"a pair [a, b] can only mean: {next(iter(readings))}")
    distinct = {tuple(reading.items()) for reading in readings.values()}
    if len(distinct) > 1:
        layer, pair = next((k, p) for k, p in levels.pairs.items() if 2 * p[0] != p[1])
        raise UserError(
            f"The pair {list(pair)} of {layer} can mean that {pair[0]} of {pair[1]} values are "
            "kept, or that they are removed.",
            "Set nm_convention to keep-of or to prune-of.",
        )
    patterns = {k: p for k, p in next(iter(readings.values())).items() if p != "dense"}
    for layer, pattern in patterns.items():
        weight = state[f"{layer}.weight"]
        if weight.shape[1] % reduction_block(pattern):
            raise UserError(
                f"{layer} has {weight.shape[1]} inputs, so it cannot be {pattern}.",
                "Give the YAML of this network.",
            )
        if not masks:
            state[f"{layer}.weight"] = weight * pattern_mask(weight, pattern)
    return {layer: (pattern,) for layer, pattern in patterns.items()}, notes


def _differs(kept: Tensor | None, pattern: str) -> bool:
    return pattern != "dense" if kept is None else not holds_exactly(kept, pattern)


def _unstructured(
    state: dict[str, Tensor], masks: Mapping[str, Tensor], levels: Levels
) -> list[str]:
    for layer, share in levels.shares.items():
        weight = state[f"{layer}.weight"]
        wanted = round(share * weight.numel())
        if not masks:
            state[f"{layer}.weight"] = weight * magnitude_mask(weight, share)
            continue
        kept = masks.get(layer)
        removed = 0 if kept is None else int((~kept).sum())
        if removed != wanted:
            raise UserError(
                f"sparsity.level removes {wanted} values of {layer}, but its mask {removed}.",
                "Give the YAML the file was pruned with, or leave sparsity out.",
            )
    return ["sparsity.level agrees with the masks in the file"] if masks else []


def _allocated(state: dict[str, Tensor], layers: list[str], allocation: Any) -> list[str]:
    if not isinstance(allocation, Mapping) or set(allocation) != {"method", "sparsity"}:
        unknown = [str(k) for k in allocation] if isinstance(allocation, Mapping) else []
        odd = next((k for k in unknown if k not in ("method", "sparsity")), None)
        raise UserError(
            f"allocation is {allocation!r}, where a method and a sparsity are needed.",
            did_you_mean(odd, ["method", "sparsity"])
            if odd
            else "Write allocation: {method: lamp, sparsity: 0.65}.",
        )
    weights = {layer: state[f"{layer}.weight"] for layer in layers}
    shares = allocate(allocation["method"], weights, allocation["sparsity"])
    for layer, kept in masks_of(weights, shares).items():
        state[f"{layer}.weight"] = weights[layer] * kept
    ends = f"{min(shares.values()):.4f} to {max(shares.values()):.4f}"
    return [f"{allocation['method']} removed {ends} of each layer, by magnitude"]


def _outside(patterns: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [
        f"{layer} is {choices[0]} in its values alone; only layers of blocks carry a pattern"
        for layer, choices in patterns.items()
        if not layer.endswith(LINEARS)
    ]


def _density(supernet: Supernet, spec: Spec) -> float:
    """Values other than zero over all values of the linear layers, ``head`` included."""
    active = supernet.activate(spec)
    kept = total = 0
    with torch.no_grad():
        for name, layer in active.skeleton.named_modules():
            if isinstance(layer, nn.Linear):
                weight = active.rules[f"{name}.weight"].read(supernet.store.tensors)
                kept += int(weight.count_nonzero())
                total += weight.numel()
    return kept / total
