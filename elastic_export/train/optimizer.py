"""AdamW with its parameter groups, gradient clipping, loss scaling and frozen masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Updater"]

_NO_DECAY = ("pos_embed", "cls_token", "dist_token", "reg_token", "relative_position_bias_table")


class Updater:
    """Adds up the gradients of any number of losses, then makes one AdamW step.

    Weight decay spares parameters of one dimension or none (norms, biases), position embeddings
    and tokens. A parameter that none of a step's losses touched keeps no gradient and is left
    alone entirely: no decay, no momentum. In a parameter touched in part (a slice) the rest has a
    zero gradient and decays like the whole; the largest descendant takes part in every sandwich
    step, so for supernets this only concerns parameters that even the largest one does not use.

    Args:
        parameters: Names and parameters; those without ``requires_grad`` are left out.
        weight_decay: Decoupled weight decay (Loshchilov & Hutter 2019).
        clip_grad_norm: Bound of the norm over all gradients; None for no bound.
        device: Where the parameters are; on CUDA forward passes run in float16 with loss scaling.
        masks: Parameter name to bool tensor, False where the weight stays zero.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        weight_decay: float,
        clip_grad_norm: float | None,
        device: torch.device,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        named = {name: p for name, p in parameters if p.requires_grad}
        self.parameters = list(named.values())
        self._clip = clip_grad_norm
        self._device = device
        self._mixed = device.type == "cuda"
        self._dropped = [(named[name], ~mask.to(device)) for name, mask in (masks or {}).items()]
        spared = [p for name, p in named.items() if _is_spared(name, p)]
        decayed = [p for name, p in named.items() if not _is_spared(name, p)]
        self._adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": weight_decay},
                {"params": spared, "weight_decay": 0.0},
            ],
            lr=0.0,
            fused=True,
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._mixed)
        self._zero_masked()

    def autocast(self) -> AbstractContextManager[Any]:
        """Run forward passes in here: float16 on CUDA, float32 elsewhere."""
        return torch.autocast(self._device.type, dtype=torch.float16, enabled=self._mixed)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one loss (a scalar)."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> None:
        """Update the parameters with the gradients added up so far, and drop these."""
        self._scaler.unscale_(self._adamw)
        for parameter, dropped in self._dropped:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(dropped, 0.0)
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self._clip)
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._scaler.step(self._adamw)
        self._scaler.update()
        self._adamw.zero_grad(set_to_none=True)
        self._zero_masked()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later."""
        return {"adamw": self._adamw.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._adamw.load_state_dict(state["adamw"])
        self._scaler.load_state_dict(state["scaler"])

    @torch.no_grad()
    def _zero_masked(self) -> None:
        for parameter, dropped in self._dropped:
            parameter.masked_fill_(dropped, 0.0)


def _is_spared(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim <= 1 or name.rsplit(".", 1)[-1] in _NO_DECAY
