"""Fold BatchNorm into the convolution before it, so that later weights are the deployed weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from elastic_export.errors import UserError

__all__ = ["fold_batchnorm"]


def fold_batchnorm(module: nn.Module, pairs: Sequence[tuple[str, str]]) -> nn.Module:
    """Replace each convolution by the fused one and its BatchNorm by an identity, in place.

    Works on meta too, which gives the skeleton of a folded module.

    Args:
        module: A plain module in eval mode.
        pairs: Names of a convolution and of the BatchNorm that reads it alone.

    Returns:
        The same module; it computes the same function up to rounding.

    Raises:
        UserError: A name is not a convolution or not a BatchNorm.
    """
    module.eval()
    for conv_name, norm_name in pairs:
        conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            raise UserError(
                f"{conv_name} and {norm_name} are not a convolution and its BatchNorm.",
                "Correct the family's fold pairs.",
            )
        module.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        module.set_submodule(norm_name, nn.Identity())
    return module
