"""What an engine says of its layers, and what its builder said of 2:4.

Formats: ``samples/common/sampleReporting.cpp`` in github.com/NVIDIA/TensorRT, releases 8.2 to 11;
the engine inspector's JSON is what ``--exportLayerInfo`` writes. The words are those of
``elastic_export.engine.layers``.
"""

import json
import re
from typing import Any, Dict, List, Optional

__all__ = ["parse_layers", "parse_sparsity"]

PROFILE_ROWS = 30


def parse_sparsity(log: str) -> Dict[str, List[str]]:
    """Read what the builder said of 2:4: which layers could use it, which do."""
    found: Dict[str, List[str]] = {"eligible_sparse": [], "picked_sparse": []}
    for key, sentence in (
        ("eligible_sparse", r"Layers eligible for sparse math:(.*)"),
        ("picked_sparse", r"picked sparse implementation for layers:(.*)"),
    ):
        for line in re.findall(r"\(Sparsity\).*?" + sentence, log):
            found[key] += [name.strip() for name in line.split(",") if name.strip()]
    return found


def parse_layers(profile: List[Dict[str, Any]], info: Dict[str, Any]) -> Dict[str, Any]:
    """Read ``--exportProfile`` and ``--exportLayerInfo``, or the inspector's JSON.

    Returns:
        ``profile`` (the slowest layers, milliseconds each), ``fused_attention`` (kernels whose
        name says ``mha``), ``int8_layers`` (layers that read INT8; None where the information is
        not detailed).
    """
    rows = [row for row in profile if "name" in row]
    slowest = sorted(rows, key=lambda row: -float(row.get("averageMs", 0.0)))[:PROFILE_ROWS]
    layers = info.get("Layers") or []
    detailed = [layer for layer in layers if isinstance(layer, dict)]
    words = [json.dumps(layer).lower() for layer in detailed] or [str(x).lower() for x in layers]
    int8: Optional[int] = None
    if detailed:
        int8 = sum("int8" in json.dumps(layer.get("Inputs", [])).lower() for layer in detailed)
    return {
        "profile": [
            {"name": str(row["name"]), "ms": float(row.get("averageMs", 0.0))} for row in slowest
        ],
        "fused_attention": sum("mha" in text for text in words),
        "int8_layers": int8,
        "layers": len(layers),
    }
