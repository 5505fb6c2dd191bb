"""A moving average of the weights while they are trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["Ema"]


class Ema:
    """An exponential moving average whose memory grows to ``decay`` over the first steps.

    After step ``t`` (from 0) the average is ``d * average + (1 - d) * weights`` with
    ``d = min(decay, (1 + t) / (10 + t))``, so that the starting values are soon forgotten.

    Args:
        parameters: Names and the live parameters.
        decay: In [0, 1); 0.99 averages over about 100 steps.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self._live = dict(parameters)
        self._average = {name: p.detach().clone() for name, p in self._live.items()}
        self._decay = decay

    def update(self, step: int) -> None:
        """Take in the weights as they are after ``step``."""
        decay = min(self._decay, (1 + step) / (10 + step))
        average = get_ema_multi_avg_fn(decay)
        live = [p.detach() for p in self._live.values()]
        average(list(self._average.values()), live, None)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Overwrite the live parameters with the average."""
        for name, parameter in self._live.items():
            parameter.copy_(self._average[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return self._average

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        for name, average in self._average.items():
            average.copy_(state[name])
