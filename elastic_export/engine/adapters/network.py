"""From an ONNX file to a builder's network, and from its complaints to nodes of the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from elastic_export.engine.adapters.options import BuildOptions
from elastic_export.engine.adapters.releases import TITLES, Release
from elastic_export.errors import CheckFailed, UserError
from elastic_export.export.files import load_proto

__all__ = ["Graph", "make_network", "read_graph", "refused"]

_ROUNDING = "QuantizeLinear"


class Graph:
    """The nodes of an ONNX file, for error messages."""

    def __init__(self, path: Path, proto: onnx.GraphProto) -> None:
        self.path = path
        self.nodes = [(node.name, node.op_type) for node in proto.node]
        self.quantized = any(operator == _ROUNDING for _, operator in self.nodes)

    def where(self, index: int) -> str:
        """Name the node at an index: ``node "fc1" (MatMul): ``; empty where there is none."""
        if not 0 <= index < len(self.nodes):
            return ""
        return _called(*self.nodes[index])

    def mentioned(self, message: str) -> str:
        """Name the node that a builder's message speaks of, by the longest name in it."""
        words = set(re.findall(r"[\w./+-]+", message))
        found = [
            (name, operator)
            for name, operator in self.nodes
            if name and (name in words or (" " in name and name in message))
        ]
        return _called(*max(found, key=lambda each: len(each[0]))) if found else ""


def read_graph(path: Path) -> Graph:
    """Read a file's nodes, and refuse what no builder should be given.

    Raises:
        UserError: The file is missing, is not ONNX, or has dynamic shapes.
    """
    proto = load_proto(path, weights=False).graph
    for value in proto.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                raise UserError(
                    f'Axis {axis} of the input "{value.name}" of {path.name} has no fixed size.',
                    "Export it with static shapes, one file for each batch size.",
                )
    return Graph(path, proto)


def make_network(
    trt: Any, release: Release, builder: Any, log: Any, graph: Graph, options: BuildOptions
) -> tuple[Any, Any]:
    """Parse the file.

    Returns:
        The network, and the parser, which holds its weights.

    Raises:
        CheckFailed: The parser refuses the graph; node, operator and reason are named.
    """
    flags = 0
    for typing, name in release.creation:
        if typing == options.typing:
            flags |= 1 << int(getattr(trt.NetworkDefinitionCreationFlag, name))
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph.path)):
        reason = " ".join(_parser_errors(parser, release, graph))
        raise refused(graph, release, str(trt.__version__), reason)
    if options.pins:
        _pin(trt, network, options.pins)
    return network, parser


def _pin(trt: Any, network: Any, pins: tuple[str, ...]) -> None:
    """Keep layers in FP32, and what they hand on too: a square stored in FP16 overflows.

    Raises:
        CheckFailed: A node has no layer of its name.
    """
    missing = set(pins)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.name not in pins:
            continue
        missing.discard(layer.name)
        layer.precision = trt.float32
        for output in range(layer.num_outputs):
            layer.set_output_type(output, trt.float32)
    if missing:
        raise CheckFailed(
            f'{len(missing)} nodes that overflow FP16 have no layer, such as "{min(missing)}".',
            "Export the file again; the names must be those of its nodes.",
        )


def refused(graph: Graph, release: Release, version: str, reason: str) -> CheckFailed:
    """Say that the parser or the builder takes no such graph, and why."""
    remedy = "Export another flavour or opset; inspect the file to see the node."
    if "workspace" in reason.lower():
        remedy = "Give the builder more with --workspace, or leave that out."
    return CheckFailed(
        f"{TITLES[release.runtime]} {version} refuses {graph.path.name}: "
        f"{reason or 'it gives no reason'}",
        remedy,
    )


def _parser_errors(parser: Any, release: Release, graph: Graph) -> Iterator[str]:
    """Yield a sentence for each error: node, operator and the parser's message."""
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        if release.names_nodes:
            name, operator = error.node_name(), error.node_operator()
            where = _called(name, operator) if operator else ""
        else:
            where = graph.where(error.node())
        yield f"{where}{error.desc().strip()}."


def _called(name: str, operator: str) -> str:
    return f'node "{name}" ({operator}): '
