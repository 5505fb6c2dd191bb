"""SViTE's sparse DeiTs: unstructured, and by heads and neurons (S²ViTE).

A checkpoint (VITA-Group/SViTE, commit 7dc89fd; arXiv 2106.04533) holds the zeroed weights under
``model`` and masks beside them: ``mask`` with the keys ``module.<parameter>_<ordinal>``, or
``atten_mask`` and ``other_mask`` with ``module.<parameter>_mask``. ``model_ema`` averages weights
of changing topologies and is dense.

A network with dead heads or neurons is stored with the live ones first, so that its spec ``slim``
is a prefix of ``max``; both compute the network's function.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from elastic_export.checkpoints.reader import Imported, Keys, Reader, Source
from elastic_export.checkpoints.readers import register_reader
from elastic_export.checkpoints.safe import state_dict_of
from elastic_export.checkpoints.svite.slim import Live, live_by_masks, live_by_values, slimmed
from elastic_export.checkpoints.timm_vit import (
    arguments,
    blocks_of,
    check_binary,
    vit_config,
)
from elastic_export.elastic import Supernet
from elastic_export.errors import UserError
from elastic_export.families.registry import family_config, get_family
from elastic_export.families.vit.config import VitConfig

__all__ = ["SviteReader"]

_MASKS = ("mask", "atten_mask", "other_mask")
_STRUCTURED = "structure_new"
_SELECTOR = r"(?:blocks\.\d+\.attn\.)?gumbel\.(?:weight|bias)"
_REASONS = {
    "args": "the command line of the training; tells the heads, the densities and the tokens",
    "model_ema": "an average over changing topologies, which is dense",
    "mask": "checked against the weights, which are zeroed already",
    "atten_mask": "checked against the weights, which are zeroed already",
    "other_mask": "checked against the weights, which are zeroed already",
    "mask_step": "state of the training, which the network does not need",
    "fired_mask": "every position that was ever active, which the network does not need",
}


@register_reader
class SviteReader(Reader):
    """DeiTs of VITA-Group/SViTE."""

    name = "svite"
    system = "SViTE and S²ViTE, sparse DeiT (arXiv 2106.04533)"
    reasons = MappingProxyType(_REASONS)

    def claims(self, source: Source) -> bool:
        """Masks of its kinds beside a model, or a token selector among the names."""
        if source.path.is_dir() or not source.keys():
            return False
        keys = set(source.keys())
        if "model" in keys and ({"atten_mask", "other_mask"} <= keys or "fired_mask" in keys):
            return True
        model = source.content.get("model", source.content)
        names = list(model) if isinstance(model, Mapping) else []
        return any(re.fullmatch(rf"(?:module\.)?{_SELECTOR}", str(name)) for name in names)

    def read(self, source: Source) -> Imported:
        """Check the masks against the weights; put what is live first where whole parts died."""
        _, options, ours = source.split_config((), ("weights",))
        _check_wanted(options.get("weights", "model"))
        content = source.content if isinstance(source.content, Mapping) else {}
        if "model_ema" in content and "model" not in content:
            _check_wanted("model_ema")
        found = state_dict_of(source.loaded, prefer=("model",))
        keys, args = Keys(found.tensors, source.path), arguments(content)
        notes: list[str] = []
        state = _selector(keys, ours, args, notes)
        state |= {name: keys.take(name) for name in keys}
        masks = _masks(content, state)
        notes += _densities(masks, state, args)
        config = vit_config(state, _with_heads(ours, args, state), args)
        family = get_family("vit")
        supernet = Supernet.of_state(family, config, state)
        live = _live(state, masks, content, config)
        if live:
            for block, part in live.items():
                state |= slimmed(block, state, part)
            settings = family_config(family, _slim_settings(config, live))
            supernet = Supernet.of_state(family, settings, state)
            notes.append(_slim_note(live))
        return Imported(
            supernet,
            self.name,
            stored=found.collections,
            used=found.name,
            ignored=keys.finish(),
            notes=tuple(notes),
        )


def _check_wanted(weights: Any) -> None:
    if weights == "model":
        return
    if weights == "model_ema":
        raise UserError(
            "The moving average model_ema is dense: no mask was ever applied to it, so it is not "
            "the sparse network.",
            "Leave the setting weights out, to read the sparse network under model.",
        )
    raise UserError(
        f"weights is {weights!r}, which a checkpoint of SViTE does not hold.",
        "Leave the setting weights out, to read the sparse network under model.",
    )


def _selector(
    keys: Keys, ours: dict[str, Any], args: Mapping[str, Any], notes: list[str]
) -> dict[str, Tensor]:
    """The token selector's tensors under our names, where tokens are selected."""
    if "token_keep" not in ours and args.get("token_selection") is True:
        ours["token_keep"] = args.get("token_number")
        notes.append(
            f"trained with token selection, of which {args.get('token_number')} tokens are kept "
            "(token_keep)"
        )
    if ours.get("token_keep") is None:
        reason = "the token selector, which is unused without token_keep"
        keys.ignore(_SELECTOR, reason)
        return {}
    if "gumbel.weight" not in keys:
        inner = keys.ignore(_SELECTOR, "a selector")
        raise UserError(
            "The file has a token selector in each block, which is not read."
            if inner
            else "token_keep is set, but the file has no token selector (gumbel.weight).",
            "Set token_keep to null, to keep all tokens.",
        )
    notes.append("tokens are selected by their scores, without the noise SViTE adds to them")
    return keys.rename((r"gumbel\.(weight|bias)", r"token_score.\1"))


def _with_heads(
    ours: dict[str, Any], args: Mapping[str, Any], state: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Add the heads that structured pruning was told, which it needs to be right."""
    heads = args.get("atten_head")
    if args.get("pruning_type") != _STRUCTURED or not isinstance(heads, int) or heads < 1:
        return ours
    given = ours.get("heads")
    if given is not None:
        largest = max(given, default=0) if isinstance(given, list | tuple) else given
        if largest != heads:
            raise UserError(
                f"heads is {largest}, but the checkpoint was pruned with {heads} heads.",
                "Leave heads out, to use the checkpoint's own number.",
            )
    return ours if given is not None or "head_dim" in ours else {**ours, "heads": (heads,)}


def _masks(content: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameter name to bool mask, each checked against its weight."""
    masks: dict[str, Tensor] = {}
    for group in _MASKS:
        entries = content.get(group)
        if entries is None:
            continue
        if not isinstance(entries, Mapping):
            raise UserError(f"{group} holds no masks by name.", "Copy or download the file again.")
        for key, mask in entries.items():
            name = re.sub(r"_(?:\d+|mask)$", "", str(key).removeprefix("module."))
            if name not in state:
                raise UserError(
                    f"{group} has a mask for {name}, but the model has no such parameter.",
                    "Use the checkpoint as it was saved; this one was put together of two.",
                )
            kept = check_binary(mask, name, tuple(state[name].shape))
            wrong = int((state[name][~kept] != 0).sum())
            if wrong:
                raise UserError(
                    f"{name} has {wrong} values other than zero where its mask is 0.",
                    "The masks are not those of these weights, as in early runs with token "
                    "selection; save the model alone to import it as it is.",
                )
            masks[name] = kept
    return masks


def _densities(
    masks: Mapping[str, Tensor], state: Mapping[str, Tensor], args: Mapping[str, Any]
) -> list[str]:
    if not masks:
        return []
    total = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    nonzero = sum(int(state[name].count_nonzero()) for name in masks)
    claim = ""
    if args.get("pruning_type") != _STRUCTURED and "density" in args:
        claim = f"; the training was told {args['density']}"
    return [
        f"{len(masks)} masks keep {kept / total:.4f} of their weights, of which "
        f"{nonzero / total:.4f} are other than zero{claim}"
    ]


def _live(
    state: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    content: Mapping[str, Any],
    config: VitConfig,
) -> dict[str, Live]:
    """Live heads and neurons of each block; none where the network was not pruned by them."""
    heads = max(config.heads)
    blocks = blocks_of(state)
    if content.get("atten_mask") or content.get("other_mask"):
        return {block: live_by_masks(block, masks, state, heads) for block in blocks}
    if masks:
        return {}
    found = {block: live_by_values(block, state, heads) for block in blocks}
    dead = any(not bool(p.heads.all() and p.neurons.all()) for p in found.values())
    return found if dead else {}


def _slim_settings(config: VitConfig, live: Mapping[str, Live]) -> dict[str, Any]:
    """Settings with the slim sizes as choices beside the full ones, and the spec ``slim``."""
    width = max(config.width)
    slim: dict[str, float] = {}
    heads_of: dict[str, list[int]] = {}
    ratio_of: dict[str, list[float]] = {}
    for block, part in live.items():
        heads, neurons = part.counts
        full = len(part.neurons)
        heads_of[block] = sorted({heads, len(part.heads)})
        ratio_of[block] = sorted({neurons / width, full / width})
        slim |= {f"{block}.heads": heads, f"{block}.mlp_ratio": neurons / width}
    return {
        **config.model_dump(mode="json"),
        "dead_heads": True,
        "heads_of": heads_of,
        "mlp_ratio_of": ratio_of,
        "specs": {"slim": slim, **config.specs},
    }


def _slim_note(live: Mapping[str, Live]) -> str:
    heads = sum(len(part.heads) for part in live.values())
    neurons = sum(len(part.neurons) for part in live.values())
    kept = torch.tensor([part.counts for part in live.values()]).sum(0).tolist()
    return (
        f"spec slim has {kept[0]} of {heads} heads and {kept[1]} of {neurons} neurons and computes "
        "what max computes; the others are stored last"
    )
