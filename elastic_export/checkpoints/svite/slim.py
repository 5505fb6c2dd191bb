"""Exact slimming of S²ViTE's networks: dead heads and neurons go last, so that a prefix is left.

What a dead head still adds goes into the projection's bias when it is cut off
(:class:`~elastic_export.elastic.rules_bias.DeadHeads`). A neuron whose column of ``fc2`` is zero
adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elastic_export.errors import UserError

__all__ = ["Live", "live_by_masks", "live_by_values", "slimmed"]


@dataclass(frozen=True)
class Live:
    """What of a block is not dead.

    Attributes:
        heads: Bool (heads,).
        neurons: Bool (hidden,).
    """

    heads: Tensor
    neurons: Tensor

    @property
    def counts(self) -> tuple[int, int]:
        """Heads and neurons that a slim block needs; one of each stays, even where all are dead."""
        return max(1, int(self.heads.sum())), max(1, int(self.neurons.sum()))


def live_by_masks(
    block: str, masks: Mapping[str, Tensor], state: Mapping[str, Tensor], heads: int
) -> Live:
    """Read live heads and neurons from a block's masks, which remove whole ones only.

    Args:
        block: Such as ``blocks.3``.
        masks: Parameter name to bool mask; a parameter without one is live.
        state: Parameter name to tensor.
        heads: Heads of the block.

    Raises:
        UserError: A mask removes a part of a head or neuron.
    """

    def mask(name: str) -> Tensor:
        key = f"{block}.{name}.weight"
        return masks.get(key, torch.ones(state[key].shape, dtype=torch.bool))

    qkv = mask("attn.qkv")
    grouped = qkv.reshape(3, heads, -1).transpose(0, 1).reshape(heads, -1)
    if not torch.equal(grouped.any(1), grouped.all(1)):
        raise UserError(
            f"The mask of {block}.attn.qkv removes parts of its {heads} heads.",
            "Give the number of heads the network was trained with.",
        )
    into, out = mask("mlp.fc1"), mask("mlp.fc2").t()
    whole = torch.equal(into.any(1), into.all(1)) and torch.equal(out.any(1), out.all(1))
    if not whole or not torch.equal(into.any(1), out.any(1)):
        raise UserError(
            f"The masks of {block}.mlp remove parts of neurons.",
            "The file is damaged, or was not pruned by structure_new.",
        )
    return Live(grouped.any(1), out.any(1))


def live_by_values(block: str, state: Mapping[str, Tensor], heads: int) -> Live:
    """Read live heads and neurons of a file without masks from its values."""
    qkv = state[f"{block}.attn.qkv.weight"] != 0
    grouped = qkv.reshape(3, heads, -1).transpose(0, 1).reshape(heads, -1)
    into = (state[f"{block}.mlp.fc1.weight"] != 0).any(1)
    return Live(grouped.any(1), into | (state[f"{block}.mlp.fc2.weight"] != 0).any(0))


def slimmed(block: str, state: Mapping[str, Tensor], live: Live) -> dict[str, Tensor]:
    """The block's tensors with live heads and neurons first; its function is the same."""
    changed: dict[str, Tensor] = {}
    attn, mlp = f"{block}.attn", f"{block}.mlp"
    qkv, proj = state[f"{attn}.qkv.weight"], state[f"{attn}.proj.weight"]
    size = proj.shape[1] // len(live.heads)
    rows = _rows(_first(live.heads), size)
    packed = torch.cat([rows + i * proj.shape[1] for i in range(3)])
    changed[f"{attn}.qkv.weight"] = qkv[packed]
    changed[f"{attn}.proj.weight"] = proj[:, rows]
    if f"{attn}.qkv.bias" in state:
        changed[f"{attn}.qkv.bias"] = state[f"{attn}.qkv.bias"][packed]
    neurons = torch.tensor(_first(live.neurons))
    for leaf, dim in (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)):
        changed[f"{mlp}.{leaf}"] = state[f"{mlp}.{leaf}"].index_select(dim, neurons)
    return changed


def _first(live: Tensor) -> list[int]:
    """All indices, the live ones first, each group in its order."""
    return [*live.nonzero().flatten().tolist(), *(~live).nonzero().flatten().tolist()]


def _rows(heads: Sequence[int], size: int) -> Tensor:
    """The rows of heads, as an index (heads x size,)."""
    starts = torch.tensor(heads, dtype=torch.long) * size
    return (starts[:, None] + torch.arange(size)).reshape(-1)
