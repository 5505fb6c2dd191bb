"""What an engine says of its layers, and what its builder said of 2:4.

Formats: ``IEngineInspector`` in JSON (10.x: ``"Format/Datatype": "Channel major FP16 format ..."``;
11.x: ``Format`` and ``DataType`` apart) and the builder's verbose log. ``HasSparseWeights`` says
that weights hold 2:4, not that a sparse kernel runs (github.com/NVIDIA/TensorRT issue 4694): that
is told by the kernel's name. The words are those of the script on the board, which cannot import
this module (``measure.board.layers``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["EngineLayer", "Sparsity", "parse_layers", "parse_sparsity", "summarize"]

_ELIGIBLE = re.compile(r"\(Sparsity\).*?Layers eligible for sparse math:(.*)")
_PICKED = re.compile(r"\(Sparsity\).*?picked sparse implementation for layers:(.*)")
_SPARSE_KERNEL = re.compile(r"sparse|spgemm", re.IGNORECASE)
# The first that an input has: an INT8 layer may add a tensor in FP16.
_PRECISIONS = (
    ("int8", ("int8",)),
    ("fp8", ("fp8",)),
    ("fp16", ("fp16", "half")),
    ("bf16", ("bf16", "bfloat16")),
    ("fp32", ("fp32", "float")),
)


@dataclass(frozen=True)
class EngineLayer:
    """One layer of a built engine.

    Attributes:
        name: The nodes it was fused from, as the builder names them.
        type: The builder's word for it; None where the engine holds names alone.
        tactic: Its kernel; None where it is not named.
        precision: Of what it reads: ``int8``, ``fp16``, ...; None where it is not told.
        sparse: Its kernel skips zeros; None where the kernel is not named.
        sparse_weights: Its weights hold 2:4; None where it is not told.
    """

    name: str
    type: str | None = None
    tactic: str | None = None
    precision: str | None = None
    sparse: bool | None = None
    sparse_weights: bool | None = None


@dataclass(frozen=True)
class Sparsity:
    """Names of layers that could run a 2:4 kernel, and of those that do."""

    eligible_sparse: tuple[str, ...]
    picked_sparse: tuple[str, ...]


def parse_layers(text: str) -> list[EngineLayer]:
    """Read an inspector's JSON on a whole engine.

    Raises:
        ValueError: The text is no such JSON.
    """
    found = json.loads(text)
    if not isinstance(found, dict) or not isinstance(found.get("Layers"), list):
        raise ValueError("the inspector's JSON has no list of layers")
    return [_layer(entry) for entry in found["Layers"]]


def parse_sparsity(lines: Iterable[str]) -> Sparsity:
    """Read a builder's verbose log."""
    text = "\n".join(lines)
    return Sparsity(*(tuple(_names(pattern.findall(text))) for pattern in (_ELIGIBLE, _PICKED)))


def summarize(layers: Sequence[EngineLayer]) -> dict[str, int | None]:
    """Count layers by the words that results from boards use.

    Returns:
        ``layers``, ``fused_attention`` (kernels whose name says ``mha``), ``int8_layers`` and
        ``sparse_layers``; the last two are None where the engine holds names alone.
    """
    detailed = [layer for layer in layers if layer.type is not None]
    return {
        "layers": len(layers),
        "fused_attention": sum("mha" in f"{x.name} {x.tactic}".lower() for x in layers),
        "int8_layers": sum(x.precision == "int8" for x in detailed) if detailed else None,
        "sparse_layers": sum(bool(x.sparse) for x in detailed) if detailed else None,
    }


def _layer(entry: Any) -> EngineLayer:
    if not isinstance(entry, dict):
        return EngineLayer(str(entry))
    tactic, weights = entry.get("TacticName") or None, entry.get("HasSparseWeights")
    return EngineLayer(
        name=str(entry.get("Name", "")),
        type=str(entry.get("LayerType", "")),
        tactic=tactic,
        precision=_precision(entry.get("Inputs") or entry.get("Outputs") or []),
        sparse=None if tactic is None else bool(_SPARSE_KERNEL.search(tactic)),
        sparse_weights=None if weights is None else bool(weights),
    )


def _precision(tensors: Sequence[dict[str, Any]]) -> str | None:
    keys = ("Format/Datatype", "DataType", "Datatype", "Format")
    words = " ".join(str(tensor.get(key, "")) for tensor in tensors for key in keys).lower()
    return next((name for name, told in _PRECISIONS if any(word in words for word in told)), None)


def _names(lists: Iterable[str]) -> list[str]:
    return [name.strip() for line in lists for name in line.split(",") if name.strip()]
