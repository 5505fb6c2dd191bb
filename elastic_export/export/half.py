"""FP16 for runtimes with strong typing: the graph itself says every precision.

TensorRT 11 and TensorRT-RTX have no ``--fp16`` flag any more; a graph in FP32 is run in FP32.
Input and output stay FP32 with a Cast at the border. ``LayerNormalization`` keeps ``stash_type``
FLOAT, so its sums run in FP32; where a runtime lacks it, ``lowering`` keeps the part that squares
in FP32 between two Casts. In FP16 the square of any value beyond 255 overflows.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from elastic_export.errors import CheckFailed
from elastic_export.export.files import load_model, save_model
from elastic_export.export.graph import constant_of, insert_before
from elastic_export.export.lowering import lower
from elastic_export.export.simplify import tidy

__all__ = ["HALF_MAX", "beyond_half", "emit_fp16", "to_half"]

HALF_MAX = 65504.0
"""Largest finite FP16 number."""


def emit_fp16(
    fp32: Path, path: Path, *, opset: int | None = None, without: Collection[str] = ()
) -> None:
    """Write the FP16 form of a clean FP32 file, without Q/DQ.

    Args:
        fp32: The file ``export_fp32`` wrote.
        path: The file to write; whole or not at all.
        opset: Lower the file to this opset; None leaves it as it is.
        without: Operators the runtime does not know although its opset has them.

    Raises:
        CheckFailed: A constant does not fit into FP16.
    """
    model = load_model(fp32)
    to_half(model)
    lower(model, opset or model.opset_imports[""], without=without)
    tidy(model)
    save_model(model, path)


def to_half(model: ir.Model) -> None:
    """Turn every float32 constant and value of a graph into FP16, in place.

    Raises:
        CheckFailed: A constant is larger than FP16 can hold.
    """
    graph = model.graph
    for name, value in graph.initializers.items():
        array = constant_of(value)
        if array is None or array.dtype != np.float32:
            continue
        largest = beyond_half(array)
        if largest:
            raise CheckFailed(
                f'"{name}" holds {largest:g}, more than FP16 can represent ({HALF_MAX:g}).',
                "Keep this network in FP32, or rescale that layer.",
            )
        halved = np.clip(array, -HALF_MAX, HALF_MAX).astype(np.float16)
        value.const_value = ir.tensor(halved, name=name)
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    for node in graph:
        if node.op_type == "Cast" and node.attributes.get_int("to") == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.type = ir.TensorType(ir.DataType.FLOAT16)
    _cast_border(graph)


def beyond_half(array: NDArray[np.float32]) -> float:
    """Return the largest magnitude of an array if FP16 cannot hold it, else 0.

    float32's lowest number does not count: it stands for minus infinity in masks.
    """
    sizes = np.abs(array)
    real = sizes[sizes < float(np.finfo(np.float32).max)]
    largest = float(np.max(real, initial=0.0))
    return largest if largest > HALF_MAX else 0.0


def _cast_border(graph: ir.Graph) -> None:
    for value in graph.inputs:
        if value.dtype != ir.DataType.FLOAT:
            continue
        uses = list(value.uses())
        half = insert_before(
            graph[0],
            "Cast",
            [value],
            name=f"{value.name}.half",
            dtype=ir.DataType.FLOAT16,
            shape=None if value.shape is None else ir.Shape(list(value.shape)),
            attributes={"to": int(ir.DataType.FLOAT16)},
        )
        for use in uses:
            use.node.replace_input_with(use.idx, half)
    for index, value in enumerate(graph.outputs):
        name, shape = value.name, None if value.shape is None else ir.Shape(list(value.shape))
        value.name = f"{name}.half"
        single = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        to_single = {"to": int(ir.DataType.FLOAT)}
        graph.append(ir.node("Cast", [value], to_single, outputs=[single], name=f"{name}.single"))
        graph.outputs[index] = single
