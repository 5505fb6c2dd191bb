"""The ``ort-cpu`` flavour: what ONNX Runtime's CPU kernels run fastest, with default options.

Activations are asymmetric UINT8, weights symmetric INT8 per output channel (see ``saturation``).

- A ``Linear`` becomes ONNX Runtime's ``MatMulIntegerToFloat``, which takes the bias and needs no
  range of the output. Written as Q/DQ around ``MatMul`` the same kernel is used, but the bias stays
  a node of its own; with a one-dimensional bias ``MatMulAddFusion`` even turns the pair into a
  ``Gemm`` on dequantized weights that is slower than FP32.
- A ``Conv2d`` becomes Q/DQ on input, weight, INT32 bias and output, from which ONNX Runtime makes
  ``QLinearConv`` in channels-last layout. Every reader of such a tensor reads it dequantized, so
  that residual additions become ``QLinearAdd`` and ReLU is the lower bound of the range.
- GELU in front of a quantized ``Linear`` takes its tanh form where the difference (below 5e-4) is
  under a quarter of the step it is then rounded to.
- A network that classifies one token computes only that one where it can (see ``tokens``).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from elastic_export.errors import CheckFailed
from elastic_export.export.affine import Affine, affine_of, clipped
from elastic_export.export.attention import MICROSOFT, separate_attention
from elastic_export.export.graph import (
    add_initializer,
    constant_of,
    insert_after,
    insert_before,
    only_consumer,
    redirect,
    replace_node,
    value_shape,
)
from elastic_export.export.layers import Layer
from elastic_export.export.saturation import pair_safe_int8
from elastic_export.export.tokens import select_tokens_early

__all__ = ["write_ort_cpu"]

TANH_GELU_ERROR = 4.8e-4
"""Largest absolute difference between GELU and its tanh form, at |x| near 2.3 (measured)."""

SAME_CODES = ("MaxPool", "Flatten", "Reshape", "Transpose")
"""Operators whose output holds values of their input, so one scale serves both."""

MAX_BIAS = 2.0**30


def write_ort_cpu(model: ir.Model, layers: list[Layer]) -> list[str]:
    """Rewrite a clean FP32 model in place.

    Args:
        model: What ``export_fp32`` wrote.
        layers: What ``join`` found in it.

    Returns:
        One sentence for each rewrite beyond quantization.

    Raises:
        CheckFailed: A convolution's output range is unknown (BatchNorm folded after calibration).
    """
    notes: list[str] = []
    chosen = separate_attention(model.graph, [layer for layer in layers if layer.is_int8])
    moved = select_tokens_early(model.graph)
    if moved:
        notes.append(f"{moved} nodes of the last block compute only the token that is classified.")
    writer = _Writer(model.graph, chosen)
    writer.write_convolutions()
    faster = writer.write_linears()
    if faster:
        notes.append(f"{faster} GELU take their tanh form, within a quarter of the INT8 step.")
    model.opset_imports[MICROSOFT] = 1
    return notes


class _Writer:
    def __init__(self, graph: ir.Graph, layers: list[Layer]) -> None:
        self.graph = graph
        self.convolutions = [layer for layer in layers if layer.entry.op == "Conv"]
        self.linears = [layer for layer in layers if layer.entry.op != "Conv"]
        self.readers = {
            layer.source.name: layer for layer in reversed(self.convolutions + self.linears)
        }
        self.makers: dict[str | None, Layer] = {}
        self.codes: dict[str, Affine] = {}
        self.quantized: dict[str, ir.Value] = {}
        self.origins: dict[ir.Value, ir.Value] = {}

    # Convolutions: everything between them stays in Q/DQ form.

    def write_convolutions(self) -> None:
        tensors: dict[str | None, ir.Value] = {}
        for layer in self.convolutions:
            result = _through_relu(layer.node.outputs[0])
            self.makers[result.name] = layer
            tensors[result.name] = result
        for layer in self.convolutions:
            tensors[layer.source.name] = layer.source
        order = {id(node): number for number, node in enumerate(self.graph)}
        for value in sorted(tensors.values(), key=lambda v: order.get(id(v.producer()), -1)):
            self._quantize_for_all(value)
        for layer in self.convolutions:
            self._write_convolution(layer)

    def _quantize_for_all(self, value: ir.Value) -> None:
        """Put Q and DQ behind a tensor and let every reader take the dequantized one."""
        readers = [use.node for use in value.uses()]
        affine = self._affine(value)
        codes = self._quantize(value, affine)
        scale, zero = self._parameters(value.name or "", affine)
        producer = codes.producer()
        assert producer is not None
        dequantized = insert_after(
            producer,
            "DequantizeLinear",
            [codes, scale, zero],
            name=f"{value.name}.dq",
            dtype=ir.DataType.FLOAT,
            shape=value_shape(value),
        )
        redirect(value, dequantized, readers)
        self.origins[dequantized] = value
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = dequantized
                value.name, dequantized.name = f"{value.name}.float", value.name

    def _affine(self, value: ir.Value) -> Affine:
        """Find the UINT8 form of a tensor from the sites of the layers around it."""
        name = value.name or ""
        producer = value.producer()
        if name not in self.codes and producer is not None and producer.op_type in SAME_CODES:
            origin = self.origins.get(producer.inputs[0]) if producer.inputs[0] else None
            if origin is not None:
                self.codes[name] = self.codes[origin.name or ""]
        if name not in self.codes:
            reader, maker = self.readers.get(value.name), self.makers.get(value.name)
            if reader is not None:
                self.codes[name] = affine_of(reader.input)
            elif maker is not None and not maker.entry.folded:
                low, high = _relu_bounds(maker.node.outputs[0])
                self.codes[name] = affine_of(clipped(maker.output, low, high))
            else:
                layer = maker.name if maker is not None else name
                raise CheckFailed(
                    f'The range of the output of the layer "{layer}" is unknown, because its '
                    "BatchNorm was folded after calibration.",
                    "Fold BatchNorm before calibrating.",
                )
        return self.codes[name]

    def _write_convolution(self, layer: Layer) -> None:
        node, entry = layer.node, layer.entry
        scale_in = self._affine(self.origins[layer.source]).scale
        weight = layer.weight
        # The kernels sum over kernel positions first and channels last (channels-last layout).
        rows = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
        bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
        codes, scale = pair_safe_int8(rows, layer.amax)
        if bias is not None:
            # A channel of tiny weights and a large bias: keep the bias inside INT32.
            least = np.abs(bias).astype(np.float64) / (MAX_BIAS * float(scale_in))
            wide = scale.astype(np.float64) < least
            if wide.any():
                scale = np.where(wide, least, scale).astype(np.float32)
                codes = np.rint(rows / scale[:, None]).clip(-127, 127).astype(np.int8)
        n, c, kh, kw = weight.shape
        kernel = codes.reshape(n, kh, kw, c).transpose(0, 3, 1, 2)
        node.replace_input_with(1, self._dequantized(node, entry.initializer, kernel, scale))
        if bias is not None:
            product = (scale * scale_in).astype(np.float32)
            levels = np.rint(bias.astype(np.float64) / product.astype(np.float64))
            name = f"{layer.name}.bias.int32"
            node.replace_input_with(
                2, self._dequantized(node, name, levels.astype(np.int32), product)
            )

    def _dequantized(
        self, anchor: ir.Node, name: str, codes: np.ndarray, scale: np.ndarray
    ) -> ir.Value:
        self.graph.initializers.pop(name, None)
        stored = add_initializer(self.graph, name, codes)
        scales = add_initializer(self.graph, f"{name}.scale", scale)
        return insert_before(
            anchor,
            "DequantizeLinear",
            [stored, scales],
            name=f"{name}.dq",
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape(codes.shape),
            attributes={"axis": 0},
        )

    # Linears: one integer product each, float in between.

    def write_linears(self) -> int:
        faster = 0
        for layer in self.linears:
            faster += self._use_tanh_gelu(layer)
            self._write_linear(layer)
        return faster

    def _use_tanh_gelu(self, layer: Layer) -> int:
        gelu = layer.source.producer()
        if gelu is None or gelu.op_type != "Gelu" or only_consumer(layer.source) is None:
            return 0
        if gelu.attributes.get_string("approximate", "none") == "tanh":
            return 0
        if float(affine_of(layer.input).scale) < 4 * TANH_GELU_ERROR:
            return 0
        gelu.attributes["approximate"] = ir.AttrString("approximate", "tanh")
        return 1

    def _write_linear(self, layer: Layer) -> None:
        node, entry = layer.node, layer.entry
        label = entry.node
        rows = layer.weight if entry.output_axis == 0 else layer.weight.T
        codes, scale = pair_safe_int8(rows, layer.amax)
        del self.graph.initializers[entry.initializer]
        weight = add_initializer(self.graph, entry.initializer, codes.T)
        scales = add_initializer(self.graph, f"{entry.initializer}.scale", scale)
        source = self.origins.get(layer.source, layer.source)
        affine = self._affine(source)
        quantized = self._quantize(source, affine)
        scale_in, zero_in = self._parameters(source.name or "", affine)
        last, bias = _bias_of(node)
        inputs = [quantized, weight, scale_in, scales, zero_in, None, bias]
        output = insert_before(
            last,
            "MatMulIntegerToFloat",
            inputs if bias is not None else inputs[:5],
            name=f"{label}.new",
            dtype=ir.DataType.FLOAT,
            shape=value_shape(last.outputs[0]),
            domain=MICROSOFT,
        )
        product = output.producer()
        assert product is not None
        product.name, output.name = label, f"{label}.out"
        replace_node(last, output)
        if last is not node:
            self.graph.remove(node, safe=True)

    # Shared by both.

    def _parameters(self, name: str, affine: Affine) -> tuple[ir.Value, ir.Value]:
        scale = add_initializer(self.graph, f"{name}.scale", np.float32(affine.scale))
        zero = add_initializer(self.graph, f"{name}.zero_point", np.uint8(affine.zero_point))
        return scale, zero

    def _quantize(self, value: ir.Value, affine: Affine) -> ir.Value:
        """Return the UINT8 form of a tensor; readers of one tensor share it."""
        name = value.name or ""
        if name not in self.quantized:
            inputs = [self._floored(value, affine), *self._parameters(name, affine)]
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
            self.quantized[name] = codes
        return self.quantized[name]

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


def _bias_of(node: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """Return the last node of a linear layer (the product or its bias addition) and the bias."""
    if node.op_type == "Gemm":
        return node, node.inputs[2] if len(node.inputs) > 2 else None
    follower = only_consumer(node.outputs[0])
    if follower is None or follower.op_type != "Add":
        return node, None
    other = follower.inputs[1] if follower.inputs[0] is node.outputs[0] else follower.inputs[0]
    array = constant_of(other)
    if array is None or array.ndim != 1:
        return node, None
    return follower, other


def _through_relu(value: ir.Value) -> ir.Value:
    """Return the output of the ReLU or Clip that alone reads the value, else the value."""
    node = only_consumer(value)
    return node.outputs[0] if node is not None and node.op_type in ("Relu", "Clip") else value


def _relu_bounds(value: ir.Value) -> tuple[float, float]:
    node = only_consumer(value)
    if node is None or node.op_type not in ("Relu", "Clip"):
        return -np.inf, np.inf
    if node.op_type == "Relu":
        return 0.0, np.inf
    bounds = [constant_of(bound) for bound in node.inputs[1:]]
    low = -np.inf if not bounds or bounds[0] is None else float(bounds[0])
    high = np.inf if len(bounds) < 2 or bounds[1] is None else float(bounds[1])
    return low, high
