"""What the profiler of Once-for-all reports (``ofa/utils/flops_counter.py``).

It hooks every leaf module of the extracted network, counts the multiply-adds of convolutions and
linear layers (those of squeeze-and-excite included; norms, activations and pooling not) and the
parameters of every leaf, and adds both up in float32, layer by layer. The float32 sums are
repeated here, so large networks get the same rounded figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from elastic_export.families.ofa.costs import Leaf
from elastic_export.space import Space, Spec

__all__ = ["official_counts"]


class _Counted(Protocol):
    def space(self, config: Any) -> Space: ...

    def leaves(self, config: Any, space: Space, genes: np.ndarray) -> Iterable[Leaf]: ...


def official_counts(family: _Counted, config: Any, spec: Spec) -> dict[str, float]:
    """``{"flops": ..., "params": ...}`` of a spec, not in millions."""
    space = family.space(config)
    flops, params = np.float32(0), np.float32(0)
    for leaf in family.leaves(config, space, space.encode(spec)[None]):
        flops += np.float32(np.asarray(leaf.macs).item())
        params += np.float32(np.asarray(leaf.params).item())
    return {"flops": float(flops), "params": float(params)}
