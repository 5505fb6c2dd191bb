"""Packed projections taken apart: one product for each thing that is read from it.

The output channels of an INT8 weight are independent, so dealing them out to several weights
changes no number. Exported attention cuts one ``qkv`` product into three by moving it through
memory twice; where it is not one operator (windows, a bias, a convolution over the values), the
three parts get products of their own. Measured on Swin-T (AMD EPYC with AVX-512 VNNI, one thread):
three products of 197 x 384 x 384 take 0.45 ms, as one of 197 x 384 x 1152 does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from elastic_export.export.graph import (
    add_initializer,
    constant_of,
    insert_before,
    only_consumer,
    read_static_shape,
    replace_node,
)
from elastic_export.export.layers import Layer
from elastic_export.export.movement import destinations, trace

__all__ = ["product_of_channels", "separate_projections", "with_bias"]


@dataclass(frozen=True)
class _Part:
    """Something read from a projection: all its rows, some of its channels.

    Args:
        value: The value that is read.
        channels: int, the channels, in the order in which the value's axes run over them.
        sizes: Shape of the rows and channels when each axis of the value is kept, rows first.
        order: The axes of that shape in the order of the value.
    """

    value: ir.Value
    channels: NDArray[np.int64]
    sizes: tuple[int, ...]
    order: tuple[int, ...]


def separate_projections(graph: ir.Graph, layers: list[Layer]) -> list[Layer]:
    """Give every part that is cut from a linear layer's result a product of its own.

    Args:
        graph: A clean FP32 graph with static shapes; changed in place.
        layers: The layers that become INT8.

    Returns:
        The layers, each that was cut apart replaced by its parts, numbered ``.0 .1 ...``.
    """
    result: list[Layer] = []
    for layer in layers:
        parts = _parts(layer) if layer.entry.op == "MatMul" else []
        result += _rewrite(graph, layer, parts) if len(parts) > 1 else [layer]
    return result


def with_bias(layer: Layer) -> tuple[ir.Value, NDArray | None]:
    """Return the result of a linear layer, bias included, and the bias."""
    product = layer.node.outputs[0]
    step = only_consumer(product)
    if step is not None and step.op_type == "Add":
        bias = constant_of(step.inputs[1] if step.inputs[0] is product else step.inputs[0])
        if bias is not None and bias.ndim == 1:
            return step.outputs[0], bias
    return product, None


def product_of_channels(
    graph: ir.Graph,
    layer: Layer,
    bias: NDArray | None,
    channels: NDArray[np.int64],
    part: str,
) -> tuple[Layer, ir.Value]:
    """Add a product of some output channels of a layer.

    Args:
        graph: The graph.
        layer: The layer, whose weight runs over output channels along its last axis.
        bias: float ``(out,)`` or None.
        channels: Which channels, in which order.
        part: The suffix of the new node's and weight's names.

    Returns:
        The new layer and its result.
    """
    shape = read_static_shape(layer.node.outputs[0])
    assert shape is not None
    sizes = ir.Shape([*shape[:-1], len(channels)])
    name, parameter = f"{layer.entry.node}.{part}", f"{layer.entry.initializer}.{part}"
    weight = np.ascontiguousarray(layer.weight[:, channels])
    value = insert_before(
        layer.node,
        "MatMul",
        [layer.source, add_initializer(graph, parameter, weight)],
        name=name,
        dtype=ir.DataType.FLOAT,
        shape=sizes,
    )
    node = value.producer()
    assert node is not None
    if bias is not None:
        value = insert_before(
            layer.node,
            "Add",
            [value, add_initializer(graph, f"{layer.name}.bias.{part}", bias[channels])],
            name=f"{name}.bias",
            dtype=ir.DataType.FLOAT,
            shape=sizes,
        )
    entry = replace(layer.entry, initializer=parameter, node=name)
    return replace(layer, entry=entry, node=node, weight=weight, amax=layer.amax[channels]), value


def _parts(layer: Layer) -> list[_Part]:
    """Explain everything that is read from a layer's result; empty where one thing cannot be."""
    result, _ = with_bias(layer)
    found: list[_Part] = []
    for value in destinations(result):
        part = None if value is result else _explain(result, value)
        if part is None:
            return []
        found.append(part)
    taken = np.concatenate([part.channels for part in found]) if found else np.empty(0)
    return found if len(np.unique(taken)) == len(taken) else []


def _explain(result: ir.Value, value: ir.Value) -> _Part | None:
    """Tell which axes of a value run over rows of the result, and which over channels."""
    explained, flat = trace(value), read_static_shape(result)
    if explained is None or explained.root is not result or flat is None or value.is_graph_output():
        return None
    places = _with_pure_axes(explained.places, flat[-1])
    if places is None:
        return None
    rows, channels = places // flat[-1], places % flat[-1]
    over_rows = [axis for axis in range(places.ndim) if np.ptp(rows, axis=axis).any()]
    over_channels = [axis for axis in range(places.ndim) if axis not in over_rows]
    if any(np.ptp(channels, axis=axis).any() for axis in over_rows):
        return None
    # Rows keep their order: the axis with the largest step comes first.
    first = {axis: rows.take(-1, axis).min() - rows.take(0, axis).min() for axis in over_rows}
    over_rows.sort(key=lambda axis: -first[axis] / (places.shape[axis] - 1))
    order = (*over_rows, *over_channels)
    wanted = places.transpose(order)
    sizes = wanted.shape
    wanted = wanted.reshape(int(np.prod(flat[:-1])), -1) if _covers(wanted, flat) else None
    if wanted is None:
        return None
    chosen = wanted[0] % flat[-1]
    rows_in_order = np.arange(len(wanted))[:, None] * flat[-1]
    if not np.array_equal(wanted, rows_in_order + chosen):
        return None
    return _Part(value, chosen, sizes, tuple(int(axis) for axis in np.argsort(order)))


def _with_pure_axes(places: NDArray[np.int64], width: int) -> NDArray[np.int64] | None:
    """Split each axis that runs over rows and channels (windows times heads) into two that do not.

    Returns:
        The places in more axes, or None where an axis cannot be split so.
    """
    axis = 0
    while axis < places.ndim:
        if not _is_mixed(places, axis, width):
            axis += 1
            continue
        size, shape = places.shape[axis], places.shape
        for inner in (n for n in range(2, size) if size % n == 0):
            split = places.reshape(*shape[:axis], size // inner, inner, *shape[axis + 1 :])
            if not _is_mixed(split, axis, width) and not _is_mixed(split, axis + 1, width):
                places = split
                break
        else:
            return None
    return places


def _is_mixed(places: NDArray[np.int64], axis: int, width: int) -> bool:
    rows, channels = places // width, places % width
    return bool(np.ptp(rows, axis=axis).any() and np.ptp(channels, axis=axis).any())


def _covers(wanted: NDArray[np.int64], flat: tuple[int, ...]) -> bool:
    return wanted.size % int(np.prod(flat[:-1])) == 0


def _rewrite(graph: ir.Graph, layer: Layer, parts: list[_Part]) -> list[Layer]:
    _, bias = with_bias(layer)
    made: list[Layer] = []
    for number, part in enumerate(parts):
        one, value = product_of_channels(graph, layer, bias, part.channels, str(number))
        made.append(one)
        name = one.entry.node
        sizes = add_initializer(graph, f"{name}.shape", np.array(part.sizes, np.int64))
        value = insert_before(
            layer.node,
            "Reshape",
            [value, sizes],
            name=f"{name}.reshape",
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape(part.sizes),
        )
        if part.order != tuple(range(len(part.order))):
            value = insert_before(
                layer.node,
                "Transpose",
                [value],
                name=f"{name}.transpose",
                dtype=ir.DataType.FLOAT,
                shape=ir.Shape([part.sizes[axis] for axis in part.order]),
                attributes={"perm": list(part.order)},
            )
        shape = read_static_shape(part.value)
        assert shape is not None
        if len(shape) != len(part.sizes):
            merged = add_initializer(graph, f"{name}.merged", np.array(shape, np.int64))
            value = insert_before(
                layer.node,
                "Reshape",
                [value, merged],
                name=f"{name}.merge",
                dtype=ir.DataType.FLOAT,
                shape=ir.Shape(shape),
            )
        producer = part.value.producer()
        assert producer is not None
        if len(producer.outputs) == 1:
            replace_node(producer, value)
        else:
            ir.convenience.replace_all_uses_with(part.value, value)
    return made
