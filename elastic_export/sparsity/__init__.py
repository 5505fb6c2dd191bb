"""Sparsity patterns: N:M masks along the reduction axis, and the proof that a weight has one."""

from elastic_export.sparsity.masks import check_patterns, check_skip, make_masks
from elastic_export.sparsity.patterns import measured_density, pattern_holds, pattern_mask

__all__ = [
    "check_patterns",
    "check_skip",
    "make_masks",
    "measured_density",
    "pattern_holds",
    "pattern_mask",
]
