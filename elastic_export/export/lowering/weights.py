"""Weights the way TensorRT 8 reads them: in float, with a Q/DQ pair that the builder folds.

Its network definition has no INT8 constants: "invalid weights type of Int8" on 8.0, 8.2 and 8.4
(github.com/microsoft/onnxruntime/issues/11535, github.com/megvii-research/Sparsebit/issues/16);
TensorRT 10 has. The float weights are the codes times their scales, so the pair gives back the very
same codes, and an N:M pattern stays.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from elastic_export.export.graph import add_initializer, constant_of, insert_before

__all__ = ["INT8_WEIGHTS", "quantize_while_building"]

INT8_WEIGHTS = "int8-weights"
"""What a target's ``lacks`` says of a parser that takes no INT8 initializers."""


def quantize_while_building(model: ir.Model) -> list[str]:
    """Write ``float weight -> Q -> DQ`` for each ``INT8 weight -> DQ``, in place.

    Returns:
        One sentence, or nothing where no weight was INT8.
    """
    graph, count = model.graph, 0
    for node in list(graph):
        codes, scale = _stored(node)
        if codes is None or scale is None:
            continue
        stored, scales = node.inputs[0], node.inputs[1]
        assert stored is not None
        assert stored.name is not None
        axis = node.attributes.get_int("axis", 1)
        broadcast = scale.reshape([-1 if i == axis else 1 for i in range(codes.ndim)])
        weight = codes.astype(scale.dtype) * (broadcast if scale.ndim else scale)
        zeros = np.zeros(scale.shape, dtype=codes.dtype)
        name = stored.name
        graph.initializers[name].name = f"{name}.codes"
        zero = add_initializer(graph, f"{name}.zero_point", zeros)
        quantized = insert_before(
            node,
            "QuantizeLinear",
            [add_initializer(graph, name, weight), scales, zero],
            name=f"{name}.q",
            dtype=ir.DataType.INT8,
            shape=ir.Shape(codes.shape),
            attributes={"axis": axis},
        )
        node.resize_inputs(3)
        node.replace_input_with(0, quantized)
        node.replace_input_with(2, zero)
        if not stored.uses():
            del graph.initializers[f"{name}.codes"]
        count += 1
    if not count:
        return []
    return [f"{count} INT8 weights are stored in float and quantized while the engine is built."]


def _stored(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Codes and scales of a DequantizeLinear that reads stored INT8 weights."""
    if node.op_type != "DequantizeLinear" or node.domain:
        return None, None
    codes, scale = constant_of(node.inputs[0]), constant_of(node.inputs[1])
    if codes is None or scale is None or codes.dtype != np.int8:
        return None, None
    return codes, scale
