"""Fold BatchNorm into the layer before it, so that later weights are the deployed weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from elastic_export.errors import UserError

__all__ = ["fold_batchnorm"]


def fold_batchnorm(module: nn.Module, pairs: Sequence[tuple[str, str]]) -> nn.Module:
    """Replace each layer by the fused one and its BatchNorm by an identity, in place.

    Works on meta too, which gives the skeleton of a folded module.

    Args:
        module: A plain module in eval mode.
        pairs: Names of a ``Conv2d`` and of the ``BatchNorm2d``, or of a ``Linear`` and of the
            ``BatchNorm1d``, that reads it alone.

    Returns:
        The same module; it computes the same function up to rounding.

    Raises:
        UserError: A name is neither a layer that can take a BatchNorm nor its BatchNorm.
    """
    module.eval()
    for name, norm_name in pairs:
        layer, norm = module.get_submodule(name), module.get_submodule(norm_name)
        fused: nn.Module
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            fused = fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            raise UserError(
                f"{name} and {norm_name} are not a convolution or a linear layer and its "
                "BatchNorm.",
                "Correct the family's fold pairs.",
            )
        module.set_submodule(name, fused)
        module.set_submodule(norm_name, nn.Identity())
    return module
