"""How far each layer of a file is from the torch network's.

Errors travel: what one layer gets wrong, all layers behind it show. So each layer is asked twice.
Its *own* error is that of its result against the torch layer on the very input that the file gave
it, before rounding: a wrong weight, scale, zero point or bias shows there and in no other layer.
Its *error* is that against the whole torch network, which also holds what came in from in front.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elastic_export.export.files import load_model
from elastic_export.export.graph import nodes_by_name
from elastic_export.export.running import probe
from elastic_export.export.table import ExportTable, TableEntry
from elastic_export.export.written import (
    Reading,
    bias_of,
    is_quantized,
    nodes_of,
    reading_of,
    result_of,
    rows_of,
    stored_weight,
)

__all__ = ["LayerError", "layer_errors"]

BIAS_COUNTS = 0.01
"""How much the bias counts beside the direction of the weights in telling channels apart."""


@dataclass(frozen=True)
class LayerError:
    """How far a layer of a file is from torch, relative to the largest magnitude of its result.

    Args:
        name: Name of its node: the module's, with ``.q``, ``.k``, ``.v`` or a number behind it
            where its output channels were dealt out to several nodes.
        kind: ``INT8 Conv``, ``FP16 MatMul``, ``FP32 Gemm`` ...
        own: Largest error on the input that the file gave it; NaN where one of both is.
        error: Largest error with all that came in from the layers in front.
    """

    name: str
    kind: str
    own: float
    error: float


def layer_errors(
    path: Path, module: nn.Module, table: ExportTable, x: NDArray[np.float32]
) -> list[LayerError]:
    """Compare every layer of a file with torch.

    Args:
        path: A file of any flavour.
        module: What it must compute: the exported module for FP32 and FP16,
            ``reference.rounded_like`` of it for INT8. It is put into eval mode.
        table: The export table of the FP32 file it came from.
        x: float32 images ``(B, C, H, W)``; a fixed batch size is served that many at a time.

    Returns:
        One entry per node of a layer, in the order in which the file runs them.

    Raises:
        CheckFailed: The file cannot be run or misses a layer.
        UserError: The file cannot be read.
    """
    places = _places(load_model(path).graph, module, table)
    shown = [name for place in places for name in (place.result, place.reading.value)]
    worst = np.zeros((len(places), 2))
    start = 0
    with _Results(module, {place.entry.module for place in places}) as results:
        for found in probe(path, shown, x):
            # The first value is the result of the graph, one row for each image.
            images = x[start : start + len(next(iter(found.values())))]
            start += len(images)
            whole = results.of_network(images)
            for number, place in enumerate(places):
                wanted = whole[place.entry.module]
                scale = float(np.abs(wanted).max()) or 1.0
                got = _rows(found[place.result], place.entry)
                own = results.of_layer(
                    place.entry.module, place.reading.real(found[place.reading.value])
                )
                own_rows = _rows(own, place.entry)[:, place.channels]
                rows = _same_rows(_rows(wanted, place.entry)[:, place.channels], got, place.rows)
                pair = [_difference(got, own_rows, scale), _difference(got, rows, scale)]
                worst[number] = np.maximum(worst[number], pair)  # NaN stays
    return [
        LayerError(place.node, place.kind, float(own), float(error))
        for place, (own, error) in zip(places, worst, strict=True)
    ]


@dataclass(frozen=True)
class _Place:
    """Where a layer, or a part of it, is in the file.

    ``channels`` are the layer's output channels that the node computes, in its order; ``rows`` are
    described in `written.rows_of`.
    """

    entry: TableEntry
    node: str
    kind: str
    result: str
    reading: Reading
    channels: NDArray[np.int64]
    rows: NDArray[np.int64] | None


def _places(graph: ir.Graph, module: nn.Module, table: ExportTable) -> list[_Place]:
    nodes = nodes_by_name(graph)
    order = {name: number for number, name in enumerate(nodes)}
    found = []
    for entry in table.entries.values():
        layer = module.get_submodule(entry.module)
        for node in nodes_of(nodes, entry):
            result = result_of(node)
            found.append(
                _Place(
                    entry=entry,
                    node=str(node.name),
                    kind=_kind(node, result),
                    result=str(result.name),
                    reading=reading_of(node, entry),
                    channels=_channels(node, entry, layer),
                    rows=rows_of(graph, node),
                )
            )
    return sorted(found, key=lambda place: order[place.node])


def _kind(node: ir.Node, result: ir.Value) -> str:
    if is_quantized(node):
        return f"INT8 {node.op_type}"
    return f"{'FP16' if result.dtype == ir.DataType.FLOAT16 else 'FP32'} {node.op_type}"


def _channels(node: ir.Node, entry: TableEntry, layer: nn.Module) -> NDArray[np.int64]:
    """Tell which output channels of a layer a node computes, by what its weight points at.

    A channel's weights are known up to their scale, and one may be damaged; channels of nothing but
    zeros are told apart by their bias.
    """
    stored, weight = stored_weight(node, entry), layer.get_parameter("weight").detach().numpy()
    if len(stored) == len(weight):
        return np.arange(len(weight))
    similar = _directions(stored) @ _directions(weight).T
    bias, whole = bias_of(node), getattr(layer, "bias", None)
    if bias is not None and whole is not None:
        full = whole.detach().numpy()
        width = float(np.ptp(full)) or 1.0
        similar -= BIAS_COUNTS * np.abs(bias.astype(np.float64)[:, None] - full) / width
    return similar.argmax(axis=1)


def _directions(weight: NDArray) -> NDArray[np.float64]:
    """Return rows of length 1; rows of zeros point along an axis of their own."""
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    flat = np.column_stack([flat, ~flat.any(axis=1)])
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


class _Results:
    """Runs a network, or one layer of it, and keeps what its layers return."""

    def __init__(self, module: nn.Module, names: set[str]) -> None:
        self._module = module.eval()
        self._layers = {name: module.get_submodule(name) for name in names}
        self._kept: dict[str, NDArray] = {}

    def __enter__(self) -> _Results:
        # In front of other hooks, because those round the result for what reads it; a copy,
        # because what follows may work in place.
        self._handles = [
            layer.register_forward_hook(self._keep(name), prepend=True)
            for name, layer in self._layers.items()
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
            self._kept[name] = result.detach().clone().numpy()

        return hook

    def of_network(self, x: NDArray[np.float32]) -> dict[str, NDArray]:
        with torch.no_grad():
            self._module(torch.from_numpy(x))
        return dict(self._kept)

    def of_layer(self, name: str, x: NDArray[np.float32]) -> NDArray:
        with torch.no_grad():
            self._layers[name](torch.from_numpy(np.ascontiguousarray(x)))
        return self._kept[name]


def _rows(array: NDArray, entry: TableEntry) -> NDArray[np.float64]:
    """Return ``(positions, channels)`` of a layer's result."""
    array = np.moveaxis(array, 1, -1) if entry.op == "Conv" else array
    return array.reshape(-1, array.shape[-1]).astype(np.float64)


def _same_rows(
    wanted: NDArray[np.float64], got: NDArray[np.float64], rows: NDArray[np.int64] | None
) -> NDArray[np.float64]:
    """Bring torch's rows into the order of the file's, or leave out those the file leaves out."""
    if rows is not None and len(wanted) % len(rows) == 0:
        images = wanted.reshape(-1, len(rows), wanted.shape[-1])
        wanted = images[:, rows].reshape(wanted.shape)
    if len(wanted) != len(got) and len(wanted) % len(got) == 0:
        # ``tokens.select_tokens_early`` keeps one token of each image.
        tokens = wanted.reshape(len(got), -1, wanted.shape[-1])
        distances = np.nansum(np.abs(tokens - got[:, None]), axis=(0, 2))
        wanted = tokens[:, int(distances.argmin())]
    return wanted


def _difference(got: NDArray[np.float64], wanted: NDArray[np.float64], scale: float) -> float:
    """Return the largest difference; NaN on both sides came in from in front and is none."""
    if got.shape != wanted.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        apart = np.where(np.isnan(got) & np.isnan(wanted), 0.0, np.abs(got - wanted))
    return float(apart.max()) / scale
