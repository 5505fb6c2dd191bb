"""One line per node of an ONNX graph: what it is, what it reads and what it makes, no values."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from elastic_export.export.files import load_model
from elastic_export.export.simplify import infer_shapes

__all__ = ["NETWORKS", "listing"]

NETWORKS = ("family_vit", "swin", "resnet", "elasticvit")
"""Fixtures of the folder above."""

SHORT = {"FLOAT": "f32", "FLOAT16": "f16", "INT8": "i8", "UINT8": "u8", "INT32": "i32"}
SHORT |= {"INT64": "i64", "BOOL": "b"}


def listing(path: Path) -> str:
    """Return the opsets, inputs, nodes in the order of the file, and outputs of a graph.

    A node is ``domain.Op name (what it reads) {attributes} -> types``. What it reads is the node
    (or input) that made it, with the number of the output where that has several, and the type of
    constants instead of their names: a one-dimensional one of 32 float32 is ``f32[32]``. Constants
    of the quantizers and weights keep their names, so that sharing shows.
    """
    model = load_model(path)
    infer_shapes(model)
    graph = model.graph
    opsets = [f"{domain or 'onnx'} {version}" for domain, version in model.opset_imports.items()]
    lines = [f"opset {', '.join(sorted(opsets))}"]
    lines += [f"input {value.name} {_type(value)}" for value in graph.inputs]
    lines += [_line(node) for node in graph]
    lines += [f"output {value.name} {_type(value)} = {_read(value)}" for value in graph.outputs]
    return "\n".join(lines) + "\n"


def _line(node: ir.Node) -> str:
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    read = ", ".join(_read(value) for value in node.inputs)
    attributes = ", ".join(f"{k}={_plain(a)}" for k, a in sorted(node.attributes.items()))
    made = ", ".join(_type(value) for value in node.outputs)
    return f"{op} {node.name} ({read}){f' {{{attributes}}}' if attributes else ''} -> {made}"


def _read(value: ir.Value | None) -> str:
    if value is None:
        return "-"
    if value.is_initializer():
        return f"{value.name}:{_type(value)}"
    producer = value.producer()
    if producer is None:
        return str(value.name)
    number = f"#{value.index()}" if len(producer.outputs) > 1 else ""
    return f"{producer.name}{number}"


def _type(value: ir.Value) -> str:
    kind = "?" if value.dtype is None else SHORT.get(value.dtype.name, value.dtype.name)
    shape = "?" if value.shape is None else ",".join(str(size) for size in value.shape)
    return f"{kind}[{shape}]" if shape else kind


def _plain(attribute: ir.Attr) -> str:
    value = attribute.value
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, ir.TensorProtocol):
        return "tensor"
    if isinstance(value, tuple | list):
        return f"[{','.join(map(str, value))}]"
    return str(value)
