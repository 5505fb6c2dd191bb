"""ELSA's supernets and materialised subnets: DeiT and Swin with N:M chosen layer by layer.

ELSA (Huang et al., arXiv 2409.09708) shares dense weights among all subnets. A training checkpoint
(``ckpt_epoch_n.pth``) holds them under ``model`` with its configuration beside; masks are never
stored. The file that ``inherited_weights.py`` writes holds ``model`` alone, the removed values set
to zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from elastic_export.checkpoints.elsa.config import (
    KEYS,
    ORDER,
    Choices,
    choices_of,
    merged_config,
)
from elastic_export.checkpoints.elsa.sizes import sizes_of
from elastic_export.checkpoints.elsa.weights import fold_affine, narrowed, rounding_notes
from elastic_export.checkpoints.reader import Imported, Keys, Reader, Source
from elastic_export.checkpoints.readers import register_reader
from elastic_export.checkpoints.safe import state_dict_of
from elastic_export.config.base import Schema
from elastic_export.elastic import Supernet
from elastic_export.elastic.rules_windows import relative_position_index, shifted_window_mask
from elastic_export.errors import UserError
from elastic_export.families.counters.elsa import deit_flops, elsa_params, swin_flops
from elastic_export.families.registry import family_config, get_family
from elastic_export.families.swin.config import SwinConfig
from elastic_export.families.vit.config import VitConfig
from elastic_export.space import Spec

__all__ = ["ElsaReader"]

_PATTERNS: tuple[str, ...] = ("nm", "nm_of")
_BUFFERS = r"layers\.(\d+)\.blocks\.(\d+)\.(attn\.relative_position_index|attn_mask)"


@register_reader
class ElsaReader(Reader):
    """DeiT and Swin of ningchihuang/ELSA."""

    name = "elsa"
    system = "ELSA, N:M sparsity by layer (arXiv 2409.09708)"
    reasons = MappingProxyType(
        {
            "config": "the configuration; sizes, candidates and subnets were read",
            "candidate_pool": "subnets that training remembered, with their scores",
        }
    )

    def claims(self, source: Source) -> bool:
        """A configuration with the sections NAS and MODEL, or blocks that list proj before qkv."""
        if source.path.is_dir() or not source.keys():
            return False
        given, stored = source.config, source.content.get("config")
        if any(_is_elsa(config) for config in (given, stored)):
            return True
        inner = source.content.get("model")
        return _proj_first(list(inner if isinstance(inner, Mapping) else source.content))

    def read(self, source: Source) -> Imported:
        """Read sizes from the shapes and the configuration, candidates from the configuration."""
        theirs, options, ours = source.split_config(KEYS, ("subnet",))
        found = state_dict_of(source.loaded, prefer=("model",))
        keys = Keys(found.tensors, source.path)
        family = _family_of(keys, source)
        content = source.content if isinstance(source.content, Mapping) else {}
        stored = content.get("config")
        config = merged_config(stored if isinstance(stored, Mapping) else {}, theirs, family)
        shapes = {name: tuple(tensor.shape) for name, tensor in found.tensors.items()}
        layers = _layers(shapes)
        patterns = {name: ours.pop(name) for name in _PATTERNS if name in ours}
        specs = ours.pop("specs", {})
        choices = choices_of(config, options.get("subnet"), _extra(patterns, layers), layers)
        folded, choices, notes = fold_affine(keys, choices)
        weights = {layer: found.tensors[f"{layer}.weight"] for layer in layers}
        choices, held = narrowed(choices, weights)
        sizes, assumed = sizes_of(config, family, _parameters(shapes), ours)
        sizes["nm_of"] = dict(choices.of)
        sizes["specs"] = {**_specs(choices), **specs} if isinstance(specs, Mapping) else specs
        checked = family_config(get_family(family), sizes)
        _drop_buffers(keys, checked)
        state = {name: keys.take(name) for name in keys} | folded
        supernet = Supernet.of_state(get_family(family), checked, state)
        return Imported(
            supernet,
            self.name,
            stored=found.collections,
            used=found.name,
            ignored=keys.finish(),
            notes=(*notes, *held, *assumed, *rounding_notes(choices)),
            official=lambda spec: _official(supernet, spec),
        )


def _is_elsa(config: Any) -> bool:
    if not isinstance(config, Mapping):
        return False
    model, nas = config.get("MODEL"), config.get("NAS")
    kind = str(model.get("TYPE", "")) if isinstance(model, Mapping) else ""
    return isinstance(nas, Mapping) or kind.startswith(("sparse_deit", "sparse_swin"))


def _proj_first(names: Sequence[Any]) -> bool:
    """Whether blocks register proj before qkv, as ELSA's do and no other code we know of.

    An alphabetical file has proj first too, but each bias before its weight.
    """
    places = {str(name).removeprefix("module."): i for i, name in enumerate(names)}
    for block in ("blocks.0", "layers.0.blocks.0"):
        order = [f"{block}.attn.{leaf}" for leaf in ("proj.weight", "proj.bias", "qkv.weight")]
        if all(name in places for name in order):
            a, b, c = (places[name] for name in order)
            return a < b < c
    return False


def _family_of(keys: Keys, source: Source) -> str:
    for family, mark in (("vit", "blocks.0."), ("swin", "layers.0.blocks.0.")):
        if f"{mark}attn.qkv.weight" in keys and f"{mark}attn.proj.weight" in keys:
            return family
    raise UserError(
        f"{source.path} holds neither the blocks of a DeiT nor those of a Swin, which ELSA trains.",
        "Check the format; inspect tells what the file holds.",
    )


def _parameters(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if ".per_candidate_affine_" not in name}


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Every layer that may be sparse, in ELSA's order.

    Raises:
        UserError: A block is incomplete, or its weights are stacked.
    """
    found = {
        (tuple(int(n) for n in re.findall(r"\d+", m[1])), m[1])
        for name in shapes
        if (m := re.match(r"((?:layers\.\d+\.)?blocks\.\d+)\.", name))
    }
    places = {place for place, _ in found}
    for *before, last in places:
        if last and (*before, last - 1) not in places:
            raise UserError(
                f"The checkpoint has a block {last}, but none before it.",
                "The file is incomplete; copy or download it again.",
            )
    layers = [f"{block}.{name}" for _, block in sorted(found) for name in ORDER]
    for layer in layers:
        shape = shapes.get(f"{layer}.weight")
        if shape is None:
            raise UserError(
                f"The checkpoint has no tensor {layer}.weight.",
                "The file is incomplete; copy or download it again.",
            )
        if len(shape) != 2:
            raise UserError(
                f"{layer}.weight has {len(shape)} dimensions: separate weights for groups of "
                "candidates are not read.",
                "Save one weight for each layer, that of the candidates that are wanted.",
            )
    return layers


def _extra(wanted: Mapping[str, Any], layers: Sequence[str]) -> dict[str, list[str]]:
    """Patterns from our own settings, by layer."""
    everywhere, own = wanted.get("nm", ()), wanted.get("nm_of", {})
    everywhere = [everywhere] if isinstance(everywhere, str) else everywhere
    fits = isinstance(everywhere, list | tuple) and isinstance(own, Mapping)
    if not fits or not all(isinstance(value, list | tuple) for value in own.values()):
        raise UserError(
            "nm and nm_of are not lists of patterns.", 'Write nm: ["1:4", "2:4", dense].'
        )
    unknown = sorted(own.keys() - set(layers))
    if unknown:
        raise UserError(
            f"nm_of names {unknown[0]}, which is no layer that can be sparse.",
            f"Name layers such as {layers[0]}.",
        )
    return {layer: [str(p) for p in (*everywhere, *own.get(layer, ()))] for layer in layers}


def _specs(choices: Choices) -> dict[str, dict[str, str]]:
    """Subnets with a name as choices of the family's axes; a layer with one choice has none."""
    return {
        name: {
            f"{layer}.nm": pattern
            for (layer, own), pattern in zip(choices.of.items(), patterns, strict=True)
            if own != ("dense",)
        }
        for name, patterns in choices.named.items()
    }


def _drop_buffers(keys: Keys, config: Schema) -> None:
    """Leave out tables that the sizes decide, once they are what the sizes say.

    Raises:
        UserError: A table is another one.
    """
    if not isinstance(config, SwinConfig):
        return
    for name in keys:
        match = re.fullmatch(_BUFFERS, name)
        if match is None:
            continue
        s, b = int(match[1]), int(match[2])
        window, shift = config.window_of(s), config.shift_of(s, b)
        if name.endswith("index"):
            wanted = relative_position_index(window)
        elif shift:
            wanted = shifted_window_mask(config.side(s), window, shift)
        else:
            wanted = torch.empty(0)
        found = keys.take(name)
        if found.shape != wanted.shape or not torch.equal(found.to(wanted.dtype), wanted):
            raise UserError(
                f"{name} is not the table of windows of {window} in {config.side(s)} x "
                f"{config.side(s)} places.",
                "Check IMG_SIZE and WINDOW_SIZE of the configuration against the checkpoint.",
            )
        keys.ignored[name] = "follows from the sizes; found to be as it must"


def _official(supernet: Supernet, spec: Spec) -> dict[str, float]:
    config = supernet.config
    shapes = {name: tuple(tensor.shape) for name, tensor in supernet.named_parameters()}
    if isinstance(config, SwinConfig):
        flops = swin_flops(config, spec)
    else:
        assert isinstance(config, VitConfig)
        flops = deit_flops(config, spec)
    return {"flops_g": flops / 1e9, "params": elsa_params(shapes, spec)}
