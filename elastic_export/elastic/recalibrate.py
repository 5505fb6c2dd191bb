"""BatchNorm statistics of a descendant, estimated anew: the shared ones fit no single network.

Source: Yu et al., BigNAS (arXiv 2003.11142), and the Once-for-all code; cumulative averaging as in
ElasticViT.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn

from elastic_export.errors import UserError

__all__ = ["has_batchnorm", "recalibrate", "written_buffers"]

_BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def has_batchnorm(module: nn.Module) -> bool:
    """Tell whether the module keeps running statistics."""
    return any(isinstance(m, _BatchNorm) for m in module.modules())


def written_buffers(module: nn.Module) -> list[str]:
    """Names of the buffers that a forward pass in train mode writes."""
    return [
        f"{name}.{buffer}" if name else buffer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm)
        for buffer, _ in layer.named_buffers(recurse=False)
    ]


def recalibrate(
    module: nn.Module,
    batches: Iterable[Tensor],
    *,
    variance: Literal["unbiased", "biased"] = "unbiased",
) -> float:
    """Reset the running statistics and average them over ``batches``, in place.

    Everything but BatchNorm runs in eval mode, without gradients. Each batch weighs the same
    (momentum None); with biased variances it weighs as many images as it has.

    Args:
        module: A plain module; left in eval mode.
        batches: Images (B, C, H, W) float, at least one batch of two or more.
        variance: What is averaged: torch's unbiased variance of each batch (ElasticViT, AlphaNet),
            or the biased one (Once-for-all).

    Returns:
        The largest change of a running mean, in units of the new standard deviation of its
        channel; 0.0 for a module without BatchNorm.

    Raises:
        UserError: There was no batch.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    module.eval()
    if not norms:
        return 0.0
    before = [m.running_mean.clone() for m in norms if m.running_mean is not None]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    seen = 0
    biased = _BiasedStatistics(norms) if variance == "biased" else nullcontext()
    try:
        with torch.no_grad(), biased:
            for x in batches:
                module(x)
                seen += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        module.eval()
    if not seen:
        raise UserError(
            "There are no images to estimate the BatchNorm statistics from.",
            "Give the data set a non-empty training split.",
        )
    changes = [
        ((norm.running_mean - old).abs() / (norm.running_var + norm.eps).sqrt()).max().item()
        for norm, old in zip(norms, before, strict=True)
        if norm.running_mean is not None and norm.running_var is not None
    ]
    return max(changes, default=0.0)


class _BiasedStatistics:
    """While active, watch what BatchNorms read; at the end, set the means over all images.

    As ``set_running_statistics`` of Once-for-all: each batch counts by its number of images.
    """

    def __init__(self, norms: Sequence[nn.Module]) -> None:
        self._sums: dict[nn.Module, tuple[Tensor, Tensor, int]] = {}
        self._hooks = [norm.register_forward_pre_hook(self._watch) for norm in norms]

    def _watch(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x, images = inputs[0].transpose(0, 1).flatten(1), len(inputs[0])
        nothing = torch.zeros_like(x[:, 0])
        means, variances, seen = self._sums.get(norm, (nothing, nothing, 0))
        variance, mean = torch.var_mean(x, dim=1, correction=0)
        self._sums[norm] = means + images * mean, variances + images * variance, seen + images

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        for norm, (means, variances, seen) in self._sums.items():
            assert isinstance(norm.running_mean, Tensor)
            assert isinstance(norm.running_var, Tensor)
            norm.running_mean.copy_(means / seen)
            norm.running_var.copy_(variances / seen)
