"""Which tensors have UINT8 codes in the graph, and how each gets them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from elastic_export.export.affine import Affine
from elastic_export.export.graph import add_initializer, insert_after, insert_before, value_shape
from elastic_export.export.graph import redirect as let_read

__all__ = ["Codes", "Quantized"]


@dataclass(frozen=True)
class Quantized:
    """The codes of a tensor, their form, and the tensor's name."""

    value: ir.Value
    affine: Affine
    name: str


class Codes:
    """The quantized tensors of one graph.

    Attributes:
        graph: The graph that is rewritten.
        affine: Tensor name to the form of its codes.
        quantized: Tensor name to its codes.
        origins: Each dequantized tensor to the float tensor that it stands for.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.affine: dict[str, Affine] = {}
        self.quantized: dict[str, ir.Value] = {}
        self.origins: dict[ir.Value, ir.Value] = {}

    def parameters(self, name: str, affine: Affine) -> tuple[ir.Value, ir.Value]:
        """Return scale and zero point as initializers."""
        scale = add_initializer(self.graph, f"{name}.scale", np.float32(affine.scale))
        zero = add_initializer(self.graph, f"{name}.zero_point", np.uint8(affine.zero_point))
        return scale, zero

    def known(self, value: ir.Value | None) -> Quantized | None:
        """Return the codes behind ``value`` where it is a dequantized tensor, else None."""
        origin = None if value is None else self.origins.get(value)
        if origin is None:
            return None
        name = origin.name or ""
        return Quantized(self.quantized[name], self.affine[name], name)

    def add(self, value: ir.Value, affine: Affine, codes: ir.Value) -> ir.Value:
        """Remember codes that were computed without the float tensor."""
        self.affine[value.name or ""] = affine
        self.quantized[value.name or ""] = codes
        return codes

    def quantize(self, value: ir.Value, affine: Affine) -> ir.Value:
        """Return the UINT8 form of a tensor; readers of one tensor share it."""
        name = value.name or ""
        if name not in self.quantized:
            inputs = [self._floored(value, affine), *self.parameters(name, affine)]
            options = {
                "name": f"{name}.q",
                "dtype": ir.DataType.UINT8,
                "shape": value_shape(value),
            }
            producer = inputs[0].producer()
            if producer is None:
                codes = insert_before(self.graph[0], "QuantizeLinear", inputs, **options)
            else:
                codes = insert_after(producer, "QuantizeLinear", inputs, **options)
            self.add(value, affine, codes)
        return self.quantized[name]

    def quantize_for_all(self, value: ir.Value, affine: Affine) -> None:
        """Let every reader of a tensor read its codes through ``DequantizeLinear``.

        The codes are those that were added for it, or else come from ``QuantizeLinear``.
        """
        readers = [use.node for use in value.uses()]
        source = self.quantize(value, affine).producer()
        codes = self.quantized[value.name or ""]
        assert source is not None
        dequantized = insert_after(
            source,
            "DequantizeLinear",
            [codes, *self.parameters(value.name or "", self.affine[value.name or ""])],
            name=f"{value.name}.dq",
            dtype=ir.DataType.FLOAT,
            shape=value_shape(value),
        )
        let_read(value, dequantized, readers)
        self.origins[dequantized] = value
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = dequantized
                value.name, dequantized.name = f"{value.name}.float", value.name

    def _floored(self, value: ir.Value, affine: Affine) -> ir.Value:
        """Keep a float ``MaxPool`` float.

        ONNX Runtime moves Q in front of ``MaxPool``, whose UINT8 kernel is some 20 times slower in
        this layout. A maximum with the lowest number the codes hold changes nothing but stops it.
        """
        pool = value.producer()
        if pool is None or pool.op_type != "MaxPool" or pool.inputs[0] in self.origins:
            return value
        lowest = np.float32(affine.scale * np.float32(-affine.zero_point))
        floor = add_initializer(self.graph, f"{value.name}.lowest", lowest)
        return insert_after(
            pool,
            "Max",
            [value, floor],
            name=f"{value.name}.floored",
            dtype=ir.DataType.FLOAT,
            shape=value_shape(value),
        )
