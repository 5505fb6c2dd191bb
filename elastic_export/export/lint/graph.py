"""Rules for any graph: constants, shapes, marked nodes, 2:4."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from elastic_export.export.graph import constant_of
from elastic_export.export.lint.constants import constant_behind, sums_over
from elastic_export.export.lint.findings import Context, Finding, Rule
from elastic_export.export.lowering.pins import pinned
from elastic_export.export.lowering.weights import INT8_WEIGHTS

__all__ = ["GRAPH_RULES"]

_INT32 = np.iinfo(np.int32)


def convolution_weights(c: Context) -> Iterator[Finding]:
    """Weights of convolutions that are computed while the network runs."""
    for node in c.nodes if c.holds("needs_constant_conv_weights") else ():
        convolution = node.op_type in ("Conv", "ConvTranspose")
        if convolution and constant_behind(node.inputs[1]) is None:
            yield c.finding(
                node,
                "Its weights are computed while the network runs, and this parser wants constants.",
                "Compute them before the export.",
                fact="needs_constant_conv_weights",
            )


def wide_integers(c: Context) -> Iterator[Finding]:
    """INT64 constants where the parser turns them into INT32."""
    if not c.holds("casts_int64"):
        return
    harmless = 0
    for name, value in c.model.graph.initializers.items():
        array = constant_of(value)
        if array is None or array.dtype != np.int64:
            continue
        outside = bool(array.size) and (array.min() < _INT32.min or array.max() > _INT32.max)
        # The end of a Slice may be beyond every size; clamped it still is.
        if outside and any(use.node.op_type != "Slice" for use in value.uses()):
            yield c.finding(
                ("initializer", name),
                "It holds INT64 values that do not fit into INT32, and the parser clamps them.",
                "Keep the values within 32 bits.",
                fact="casts_int64",
            )
        else:
            harmless += 1
    if harmless:
        yield c.finding(
            ("initializer", ""),
            f"INT64 constants ({harmless}) are read as INT32, which changes none of them; the "
            "parser warns once.",
            "Nothing needs to be done.",
            "note",
            fact="casts_int64",
        )


def shapes(c: Context) -> Iterator[Finding]:
    """Inputs of open size."""
    if c.software.runtime == "onnxruntime":
        return
    static = c.device is not None and c.device.static_shapes
    for value in c.model.graph.inputs:
        open_sizes = [str(s) for s in value.shape or () if not isinstance(s, int)]
        if value.shape is None or open_sizes:
            named = ", ".join(open_sizes) or "all"
            yield c.finding(
                ("input", value.name or ""),
                f"Its size is open ({named})."
                + ("" if static else " trtexec takes 1 for it unless --shapes says otherwise."),
                "Export with a fixed batch size.",
                "refused" if static else "note",
                source="static shapes are what the target's profile asks for"
                if static
                else "samples/common/sampleOptions.cpp of NVIDIA/TensorRT",
            )


def pins(c: Context) -> Iterator[Finding]:
    """Marked nodes where trtexec cannot be told of them."""
    marked = pinned(c.model)
    if marked and c.holds("no_layer_precisions"):
        yield c.finding(
            ("precision", marked[0]),
            f"Marked nodes ({len(marked)}) must run in FP32, which this release's trtexec cannot "
            "be told.",
            "Build FP16 with the bundle's script, which asks the builder through Python.",
            "note",
            fact="no_layer_precisions",
        )


def sparsity(c: Context) -> Iterator[Finding]:
    """2:4 weights where nothing skips zeros."""
    if c.device is None or c.device.sparse_2_4:
        return
    sparse = [node.name or "" for node in c.nodes if _is_sparse(node)]
    if sparse:
        yield c.finding(
            ("sparsity", sparse[0]),
            f"Its 2:4 layers ({len(sparse)}) gain nothing: {c.device.name} multiplies zeros like "
            "any other number.",
            "Ship the dense network, which is more accurate and as fast.",
            "note",
            source="the target's profile, sparse_2_4",
        )


def _is_sparse(node: ir.Node) -> bool:
    axis = sums_over(node)
    weight = constant_behind(node.inputs[1]) if axis is not None else None
    if axis is None or weight is None or weight.ndim < 2 or weight.shape[axis] % 4:
        return False
    groups = np.moveaxis(weight, axis, -1).reshape(-1, 4)
    return bool((np.count_nonzero(groups, axis=1) <= 2).all()) and bool(weight.any())


def forms(c: Context) -> Iterator[Finding]:
    """Stored INT8 weights where the profile rules them out."""
    if INT8_WEIGHTS not in c.software.lacks or c.holds("refuses_int8_weights"):
        return
    for node in c.nodes:
        stored = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if stored is not None and constant_of(stored) is not None:
            problem = f"The profile says that {c.software.name} takes no stored INT8 weights."
            yield c.finding(node, problem, "Write the file again.", source=c.software.source)


GRAPH_RULES: tuple[Rule, ...] = (
    convolution_weights,
    wide_integers,
    shapes,
    pins,
    sparsity,
    forms,
)
