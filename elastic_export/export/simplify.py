"""What the exporter's graph still needs before it is clean: rewrites that change no number.

onnxscript's optimiser folds constants and Conv-BatchNorm pairs. The passes here do what it does
not: weights lose their ``Transpose`` without losing their name, and attention comes out as the
plain ``Mul``, ``Transpose``, ``MatMul``, ``Softmax``, ``MatMul`` chain that runtimes recognise.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
import onnxscript.rewriter
from onnx_ir.passes import common

from elastic_export.export.graph import (
    add_initializer,
    constant_of,
    insert_before,
    only_consumer,
    replace_node,
)

__all__ = ["fold_weight_transposes", "infer_shapes", "optimise", "tidy"]

FOLD_LIMIT = 1 << 20
"""Constants of up to this many values are computed at export time; it holds position embeddings
and gathered relative-position biases, so no ``Gather`` on a parameter is left."""

MAX_ROUNDS = 8


def fold_weight_transposes(graph: ir.Graph) -> set[str]:
    """Store weights the way their node reads them: ``Transpose(weight)`` becomes ``weight``.

    Must run before constant folding, which would give the transposed tensor a name of its own.

    Returns:
        Names of the initializers that are now the transpose of their parameter.
    """
    done: set[str] = set()
    for name, value in list(graph.initializers.items()):
        nodes = [use.node for use in value.uses()]
        if not nodes or any(node.op_type != "Transpose" for node in nodes):
            continue
        orders = {tuple(node.attributes["perm"].as_ints()) for node in nodes}
        array = constant_of(value)
        if len(orders) != 1 or array is None:
            continue
        for node in nodes:
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            graph.remove(node, safe=True)
        flipped = np.ascontiguousarray(array.transpose(orders.pop()))
        value.const_value = ir.tensor(flipped, name=name)
        value.shape = ir.Shape(flipped.shape)
        value.type = ir.TensorType(value.const_value.dtype)
        done.add(name)
    return done


def optimise(model: ir.Model) -> None:
    """Fold constants and rewrite until nothing changes; parameters keep their names.

    Equal initializers are not merged: two layers with equal weights stay two weights.
    """
    common.InlinePass()(model)
    before: Counter[str] = Counter()
    for _ in range(MAX_ROUNDS):
        onnxscript.optimizer.fold_constants(
            model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT
        )
        onnxscript.rewriter.rewrite(model)
        _drop_empty_pads(model.graph)
        _simplify_key_transposes(model.graph)
        _merge_attention_scales(model.graph)
        common.RemoveUnusedNodesPass()(model)
        infer_shapes(model)
        after = Counter(node.op_type for node in model.graph)
        if after == before:
            break
        before = after
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.CommonSubexpressionEliminationPass()(model)
    tidy(model)


def tidy(model: ir.Model) -> None:
    """Drop what nothing reads, give every name once, and leave out notes and paths."""
    for final in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
        common.TopologicalSortPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        final(model)


def infer_shapes(model: ir.Model) -> None:
    """Fill in the shapes and types of intermediate values where ONNX can tell them."""
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def _drop_empty_pads(graph: ir.Graph) -> None:
    """Remove ``Pad`` by zero everywhere, which timm's Swin asks for at every block."""
    for node in list(graph):
        if node.op_type != "Pad":
            continue
        pads = constant_of(node.inputs[1])
        if pads is not None and not pads.any():
            source = node.inputs[0]
            assert source is not None
            replace_node(node, source)


def _simplify_key_transposes(graph: ir.Graph) -> None:
    """Turn Reshape to 3-D, Transpose, Reshape to 4-D into one Transpose of the last two axes."""
    for last in list(graph):
        middle = _producer(last, "Reshape", "Transpose")
        first = _producer(middle, "Transpose", "Reshape")
        if middle is None or first is None or not _swaps_last_two(middle):
            continue
        source, batched, result = first.inputs[0], first.outputs[0].shape, last.outputs[0].shape
        if source is None or source.shape is None or batched is None or result is None:
            continue
        shape = list(source.shape)
        ranks = (len(shape), len(batched), len(result))
        if ranks != (4, 3, 4) or list(batched)[1:] != shape[2:]:
            continue
        if list(result) != [shape[0], shape[1], shape[3], shape[2]]:
            continue
        swapped = insert_before(
            last,
            "Transpose",
            [source],
            name=f"{last.name or last.outputs[0].name}.swap",
            dtype=source.dtype or ir.DataType.FLOAT,
            shape=ir.Shape(list(result)),
            attributes={"perm": [0, 1, 3, 2]},
        )
        replace_node(last, swapped)


def _merge_attention_scales(graph: ir.Graph) -> None:
    """Scale the query once by c·d where the query was scaled by c and the key by d.

    One ``Mul`` on the query in front of the product is the form that NVIDIA's attention fusion and
    ONNX Runtime's ``FusedMatMul`` look for.
    """
    for product in list(graph):
        if product.op_type != "MatMul":
            continue
        left, right = _scaled_by(product.inputs[0]), _scaled_by(product.inputs[1])
        if left is None or right is None:
            continue
        (query_node, query, first), (_, key, second) = left, right
        factor = np.float32(np.float64(first) * np.float64(second))
        name = f"{query_node.name or query_node.outputs[0].name}.scale"
        query_node.replace_input_with(0, query)
        query_node.replace_input_with(1, add_initializer(graph, name, factor))
        product.replace_input_with(1, key)


def _scaled_by(value: ir.Value | None) -> tuple[ir.Node, ir.Value, float] | None:
    """Read ``value = other * scalar``, if only one node reads ``value``."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Mul" or value is None or only_consumer(value) is None:
        return None
    for index in (0, 1):
        factor, other = constant_of(node.inputs[index]), node.inputs[1 - index]
        if factor is not None and factor.size == 1 and other is not None:
            return node, other, float(factor.reshape(()))
    return None


def _producer(node: ir.Node | None, op: str, before: str) -> ir.Node | None:
    """Return the ``before`` node that alone feeds input 0 of an ``op`` node."""
    if node is None or node.op_type != op or node.inputs[0] is None:
        return None
    found = node.inputs[0].producer()
    if found is None or found.op_type != before or only_consumer(node.inputs[0]) is not node:
        return None
    return found


def _swaps_last_two(node: ir.Node) -> bool:
    return tuple(node.attributes["perm"].as_ints()) == (0, 2, 1)
