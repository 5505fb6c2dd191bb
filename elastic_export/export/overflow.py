"""Values that a file's number format cannot hold: NaN and infinity, and what FP16 is too small for.

FP16 ends at 65504. A file in FP16 shows an overflow only on the images that cause it, and then all
layers behind it are NaN, so the values are looked at in the FP32 file it is made from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from elastic_export.errors import CheckFailed
from elastic_export.export.files import load_model
from elastic_export.export.graph import constant_of, is_weightlike
from elastic_export.export.half import HALF_MAX, beyond_half
from elastic_export.export.products import SCORE_STEPS
from elastic_export.export.running import probe

__all__ = ["check_activations", "check_half_range"]

NEAR = 0.25
"""Share of FP16's range from which on a value is reported: other images may be two bits larger."""

HALF_STEP = 2.0**-11
"""Largest relative rounding error of a normal FP16 number."""

MASK = float(np.finfo(np.float16).min)
"""Scores at or below this are masked out: Softmax makes zero of them in every format."""

LAYERS = ("Conv", "Gemm", "MatMul", "MatMulIntegerToFloat")


@dataclass(frozen=True)
class _Seen:
    """The largest magnitude of a node's result on the given images; NaN where one was NaN."""

    where: str
    largest: float


def check_activations(path: Path, images: NDArray[np.float32]) -> dict[str, Any]:
    """Check that no value inside a file is NaN or infinite.

    Args:
        path: A file of any flavour.
        images: float32 ``(B, C, H, W)``; a fixed batch size is served that many at a time.

    Returns:
        ``{"values": 310, "largest": 41.2, "largest_at": 'Add "Add_3" behind "blocks.0.proj"'}``.

    Raises:
        CheckFailed: One is; the first node and the layer in front of it are named.
    """
    seen = _look(path, images)
    _refuse_infinite(Path(path).name, seen)
    top = max(seen, key=lambda each: each.largest)
    return {"values": len(seen), "largest": top.largest, "largest_at": top.where}


def check_half_range(fp32: Path, images: NDArray[np.float32]) -> dict[str, Any]:
    """Check that a network can run in FP16, before or after its FP16 file is written.

    Args:
        fp32: The FP32 file of the network. What ``LayerNormalization`` computes inside is not
            looked at: it runs in FP32 (see ``half``).
        images: float32 ``(B, C, H, W)``, as different as the ones to come.

    Returns:
        The largest value and where it is, ``headroom`` (how many times larger it may become),
        ``near`` (node to value from a quarter of the range on), and ``subnormal`` (constants that
        FP16 holds with a larger error than its rounding, with that error).

    Raises:
        CheckFailed: A value or a constant does not fit; the node or constant, its value and a
            remedy are named.
    """
    name = Path(fp32).name
    subnormal = _check_constants(name, load_model(fp32).graph)
    seen = _look(fp32, images)
    _refuse_infinite(name, seen)
    beyond = [each for each in seen if each.largest > HALF_MAX]
    if beyond:
        first, others = beyond[0], len(beyond) - 1
        more = f" {others} more values are too large." if others else ""
        raise CheckFailed(
            f"{name} does not fit into FP16: {first.where} reaches {first.largest:g}, and FP16 "
            f"ends at {HALF_MAX:g}.{more}",
            "Use FP32 or INT8 with FP32 around it for this network, or train it with weight decay "
            "or a normalisation in front of that layer so that its values stay small.",
        )
    top = max(seen, key=lambda each: each.largest)
    return {
        "largest": top.largest,
        "largest_at": top.where,
        "headroom": HALF_MAX / top.largest if top.largest else float("inf"),
        "near": {each.where: each.largest for each in seen if each.largest > NEAR * HALF_MAX},
        "subnormal": subnormal,
    }


def _refuse_infinite(name: str, seen: list[_Seen]) -> None:
    bad = next((each for each in seen if not np.isfinite(each.largest)), None)
    if bad is not None:
        kind = "NaN" if np.isnan(bad.largest) else "infinite"
        raise CheckFailed(
            f"{name} computes a value that is {kind}: {bad.where}.",
            "Look at the weights and ranges of that layer, or keep it in FP32.",
        )


def _check_constants(name: str, graph: ir.Graph) -> dict[str, float]:
    """Refuse constants that FP16 cannot hold; return those it holds badly, with their error."""
    found: dict[str, float] = {}
    for key, value in graph.initializers.items():
        array = constant_of(value)
        if array is None or array.dtype != np.float32 or not array.any():
            continue
        largest = beyond_half(array)
        if largest:
            raise CheckFailed(
                f'{name} does not fit into FP16: "{key}" holds {largest:g}, and FP16 ends at '
                f"{HALF_MAX:g}.",
                "Keep this network in FP32, or rescale that layer.",
            )
        exact = np.clip(array.astype(np.float64), -HALF_MAX, HALF_MAX)
        halved = exact.astype(np.float16).astype(np.float64)
        if not halved.any():
            raise CheckFailed(
                f'{name} does not fit into FP16: "{key}" holds nothing larger than '
                f"{float(np.abs(exact).max()):g}, which FP16 rounds to zero.",
                "Keep this network in FP32, or choose a larger constant (an epsilon of 1e-5).",
            )
        lost = float(np.linalg.norm(halved - exact) / np.linalg.norm(exact))
        if lost > HALF_STEP:
            found[key] = lost
    return found


def _look(path: Path, images: NDArray[np.float32]) -> list[_Seen]:
    """Return the largest magnitude of every floating-point value that depends on the images."""
    graph = load_model(path).graph
    places = _places(graph)
    masked = {output.name for node in graph for output in node.outputs if _is_masked(output)}
    largest: dict[str, float] = {}
    for found in probe(path, list(places), images):
        for name, array in found.items():
            if array.dtype.kind == "f" and name in places:
                known = np.where(array <= MASK, 0, array) if name in masked else array
                peak = np.max(np.abs(known), initial=0.0)
                largest[name] = float(np.maximum(largest.get(name, 0.0), peak))  # keeps NaN
    return [_Seen(where, largest[name]) for name, where in places.items() if name in largest]


def _places(graph: ir.Graph) -> dict[str, str]:
    """Return the name of each value to its node and to the last layer in front of that."""
    layers: dict[ir.Value | None, tuple[int, str]] = {}
    places: dict[str, str] = {}
    for number, node in enumerate(graph, start=1):
        computed = [v for v in node.inputs if v is not None and not is_weightlike(v)]
        if not computed:
            continue
        weighted = node.op_type in LAYERS and len(computed) < len(node.inputs)
        last = max(layers.get(value, (0, "")) for value in computed)
        behind = f' behind "{last[1]}"' if last[1] and not weighted else ""
        for output in node.outputs:
            layers[output] = (number, str(node.name)) if weighted else last
            if output.name:
                places[output.name] = f'{node.op_type} "{node.name}"{behind}'
    return places


def _is_masked(value: ir.Value, steps: int = 4) -> bool:
    """Tell whether a value is the scores of a Softmax, up to what moves or adds to them."""
    readers = [use.node for use in value.uses()]
    if not readers or not steps:
        return False
    return all(
        node.op_type == "Softmax"
        or (node.op_type in SCORE_STEPS and _is_masked(node.outputs[0], steps - 1))
        for node in readers
    )
