"""What each flavour promises its runtime, whatever the listings say.

Sources: NVIDIA's TensorRT guide on explicit quantization and ModelOpt's placement (symmetric, zero
points of 0, INT8 weights per output channel, no INT32 bias, Q/DQ in front of the layer and never
between it and its activation, a quantized shortcut in residual additions); ONNX Runtime's fusions
(onnxruntime/core/optimizer/qdq_transformer), counted in the graph that it really runs.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from torch import nn

from elastic_export.export import fused_ops
from elastic_export.export.files import load_model
from elastic_export.export.graph import constant_of, is_weightlike
from elastic_export.export.written import nodes_of
from tests.unit.export.flavours.listing import NETWORKS

TRT = ("trt-strong", "trt-weak", "trt-weak@17", "trt-weak@13", "ort-trt")
INT8 = ("ort-cpu", *TRT)
ALL = ("plain", "fp16", *INT8)
Q, DQ = "QuantizeLinear", "DequantizeLinear"
NARROW = 16
WEIGHTS = (np.float32, np.float16, np.int8)

networks = pytest.mark.parametrize("network", NETWORKS)


def forms(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("form", names)


class Read:
    """The graph of a file, and its layers."""

    def __init__(self, one) -> None:
        self.model = load_model(one.path)
        self.graph = self.model.graph
        self.nodes = {node.name: node for node in self.graph}
        self.entries = {e.module: e for e in one.case.exported.table.entries.values()}
        self.layers = {name: nodes_of(self.nodes, entry) for name, entry in self.entries.items()}

    def of_type(self, *ops: str) -> list[ir.Node]:
        return [node for node in self.graph if node.op_type in ops]


@pytest.fixture
def read(network, form, written):
    return Read(written(network, form))


def maker(value: ir.Value | None, op: str = "") -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and op in ("", node.op_type) else None


def data_of(node: ir.Node, entry) -> ir.Value:
    return node.inputs[0 if entry.op == "Conv" else 1 - entry.input_index]


@networks
@forms(*ALL)
def test_opset_domains_and_nothing_needless(network, form, written, read):
    one = written(network, form)
    domains = dict(read.model.opset_imports)
    assert domains.pop("") == one.opset
    assert set(domains) <= ({"com.microsoft"} if form == "ort-cpu" else set())
    assert {node.domain for node in read.graph} <= {"", *domains}
    assert not read.of_type("Identity", "Dropout", "Constant")
    casts = read.of_type("Cast")
    assert len(casts) == (2 if form in ("fp16", "trt-strong") else 0), "at the border only"
    assert not [node for node in casts if maker(node.inputs[0], "Cast")]
    transposes = read.of_type("Transpose")
    assert not [n for n in transposes if _undoes(n, maker(n.inputs[0], "Transpose"))]


def _undoes(node: ir.Node, before: ir.Node | None) -> bool:
    if before is None:
        return False
    one, two = before.attributes["perm"].as_ints(), node.attributes["perm"].as_ints()
    return [one[axis] for axis in two] == sorted(one)


@networks
@forms(*ALL)
def test_constants_are_stored_once_and_read(read):
    seen: dict[tuple, str] = {}
    for name, value in read.graph.initializers.items():
        array = constant_of(value)
        assert value.uses(), f"{name} is not read"
        key = (array.dtype.str, array.shape, array.tobytes())
        # A norm without parameters reads ones; orders of tokens may be those of another block.
        if array.dtype in WEIGHTS and array.size >= 256 and np.ptp(array):
            assert key not in seen, f"{name} repeats {seen[key]}"
            seen[key] = name


@networks
@forms("plain", "fp16")
def test_floating_point_files_hold_one_float_type(form, read):
    kinds = {constant_of(value).dtype.str[1:] for value in read.graph.initializers.values()}
    assert kinds & {"f2", "f4", "f8"} == {"f4" if form == "plain" else "f2"}
    assert not read.of_type(Q, DQ)
    for value in (*read.graph.inputs, *read.graph.outputs):
        assert value.dtype == ir.DataType.FLOAT
    norms = read.of_type("LayerNormalization")
    assert {node.attributes.get_int("stash_type", 1) for node in norms} <= {1}, "sums in FP32"


@networks
@forms(*INT8)
def test_int8_layers_are_those_of_the_record(network, form, written, read):
    one = written(network, form)
    placed = one.case.record.placed(one.flavour)
    assert set(one.report.int8) == set(placed.quantized_modules())
    stored = {
        name: {_weight_type(node, read.entries[name]) for node in nodes}
        for name, nodes in read.layers.items()
    }
    assert {name for name, kinds in stored.items() if kinds == {"int8"}} == set(one.report.int8)
    floats = {"float16"} if form == "trt-strong" else {"float32"}
    assert all(kinds in ({"int8"}, floats) for kinds in stored.values())


def _weight_type(node: ir.Node, entry) -> str:
    value = node.inputs[1 if node.op_type == "MatMulIntegerToFloat" else entry.input_index]
    behind = maker(value, DQ)
    return str(constant_of(behind.inputs[0] if behind is not None else value).dtype)


@networks
@forms(*TRT)
def test_weights_for_tensorrt(network, form, written, read):
    """INT8, one scale per output channel, on the axis of the output channels, no zero point."""
    one = written(network, form)
    for name in one.report.int8:
        entry, (node,) = read.entries[name], read.layers[name]
        assert node.op_type == entry.op
        dequantizer = maker(node.inputs[entry.input_index], DQ)
        codes, scale = (constant_of(value) for value in dequantizer.inputs[:2])
        channels = one.case.module.get_submodule(name).weight.shape[0]
        axis = dequantizer.attributes.get_int("axis", 1) % codes.ndim
        assert axis == entry.output_axis
        assert codes.dtype == np.int8
        assert scale.shape == (channels,) == (codes.shape[axis],)
        assert (scale > 0).all()
        assert int(codes.min()) >= -127
        if len(node.inputs) > 2:
            assert constant_of(node.inputs[2]).dtype == scale.dtype, "a bias in floating point"


@networks
@forms(*TRT)
def test_quantizers_for_tensorrt(form, read):
    """Symmetric, in the graph's own float type, nothing in INT32 and no integer operator."""
    dtype = np.float16 if form == "trt-strong" else np.float32
    for node in read.of_type(Q, DQ):
        scale = constant_of(node.inputs[1])
        zero = constant_of(node.inputs[2]) if len(node.inputs) > 2 else np.int8(0)
        assert scale.dtype == dtype
        assert zero.dtype == np.int8
        assert not zero.any()
    for node in read.of_type(DQ):
        codes = constant_of(node.inputs[0])
        assert codes is None or codes.dtype == np.int8
        assert codes is not None or maker(node.inputs[0], Q)
    integer = ("Integer", "QLinear", "QGemm")
    assert not [node for node in read.graph if any(word in node.op_type for word in integer)]


@networks
@forms(*TRT)
def test_inputs_for_tensorrt(network, form, written, read):
    """Both operands of an INT8 layer come from Q/DQ; nothing else but shortcuts reads one."""
    one = written(network, form)
    for name in one.report.int8:
        entry, (node,) = read.entries[name], read.layers[name]
        dequantizer = maker(data_of(node, entry), DQ)
        assert dequantizer is not None
        quantizer = maker(dequantizer.inputs[0], Q)
        assert quantizer.inputs[1] is dequantizer.inputs[1], "one scale for both"
        assert constant_of(quantizer.inputs[1]).shape == ()
    readers = {
        use.node.name: use.node
        for node in read.of_type(DQ)
        for use in node.outputs[0].uses()
        if use.node.name not in one.report.int8
    }
    assert {node.op_type for node in readers.values()} <= {"Add"}
    assert bool(readers) == (network in ("resnet", "elasticvit"))


@networks
@forms(*TRT)
def test_residual_additions_for_tensorrt(network, form, written, read):
    """The convolution in front fuses with an addition whose shortcut is INT8."""
    one = written(network, form)
    int8 = {id(read.layers[name][0]) for name in one.report.int8}
    fused = 0
    for node in read.of_type("Add"):
        makers = [maker(value) for value in node.inputs]
        shortcuts = [made for made in makers if made is not None and made.op_type == DQ]
        convolutions = [m for m in makers if m is not None and m.op_type == "Conv"]
        if shortcuts:
            assert len(shortcuts) == len(convolutions) == 1
            assert id(convolutions[0]) in int8
            fused += 1
        elif len(convolutions) and not any(is_weightlike(value) for value in node.inputs):
            assert not int8 & {id(made) for made in convolutions}
    assert fused == {"resnet": 4, "elasticvit": 6}.get(network, 0)


@networks
@forms(*INT8)
def test_no_quantization_between_a_convolution_and_its_activation(form, read):
    """But for hard swish in ort-cpu, which is computed from the convolution's own codes."""
    apart = ("Relu", "Clip") if form == "ort-cpu" else ("Relu", "Clip", "HardSwish", "Sigmoid")
    for node in read.of_type(*apart):
        dequantizer = maker(node.inputs[0], DQ)
        quantizer = None if dequantizer is None else maker(dequantizer.inputs[0], Q)
        assert quantizer is None or maker(quantizer.inputs[0], "Conv") is None, node.name


@networks
@forms(*TRT)
def test_what_stays_in_floating_point_for_tensorrt(network, form, written, read):
    """The classifier, convolutions on images, narrow and grouped layers, and SE gates."""
    one = written(network, form)
    kept = set(one.report.kept_float)
    for name, layer in one.case.module.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        out, inside = layer.weight.shape[:2]
        narrow = min(out, inside) < NARROW
        assert name in kept or not narrow
        assert name in kept or name not in ("head", "fc", "classifier")
    first = next(iter(read.entries))
    assert first in kept
    for name in kept:
        (node,) = read.layers[name]
        assert maker(data_of(node, read.entries[name]), DQ) is None, "nothing is rounded for it"


@networks
@forms(*INT8)
def test_norms_softmax_and_attention_stay_in_floating_point(form, read):
    for node in read.of_type("LayerNormalization", "Softmax", "MatMul"):
        if node.name in read.layers:
            continue
        for value in node.inputs:
            if value is not None and not is_weightlike(value):
                assert maker(value, DQ) is None


FUSED = {
    "family_vit": {"QLinearConv": 1, "MatMulIntegerToFloat": 2 * (3 + 3) + 1},
    "swin": {"QLinearConv": 1, "MatMulIntegerToFloat": 4 * (3 + 3) + 2},
    "resnet": {"QLinearConv": 15 + 3, "MatMulIntegerToFloat": 1, "QLinearAdd": 3},
    "elasticvit": {"QLinearConv": 29 + 2, "MatMulIntegerToFloat": 21},
}
"""What ONNX Runtime runs: one for each INT8 layer and each further part of a projection, and a
convolution for each average over windows."""


@networks
def test_every_int8_layer_of_ort_cpu_runs_on_integers(network, written):
    one = written(network, "ort-cpu")
    read, ops = Read(one), Counter(fused_ops(one.path, threads=1))
    kinds = {name: type(one.case.module.get_submodule(name)) for name in one.report.int8}
    convolutions = [name for name, kind in kinds.items() if kind is nn.Conv2d]
    parts = [len(read.layers[name]) for name, kind in kinds.items() if kind is nn.Linear]
    pools = len(read.of_type("QLinearConv"))  # averages written as depthwise convolutions
    assert ops["QLinearConv"] == len(convolutions) + pools
    assert ops["MatMulIntegerToFloat"] == sum(parts)
    assert {name: ops[name] for name in FUSED[network]} == FUSED[network]
    floats = ("Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "QGemm", "ConvInteger")
    assert not [name for name in floats if ops[name]], "no weight is multiplied in floating point"
    attentions = len(one.case.exported.table.attentions)
    products = ops["MatMul"] + ops["FusedMatMul"] + 2 * ops["MultiHeadAttention"]
    assert products == 2 * attentions, "two products for each attention"
    assert len(one.report.kept_float) == 0
    for form in ("plain", "fp16"):
        assert not {"QLinearConv", "MatMulIntegerToFloat"} & set(
            fused_ops(written(network, form).path)
        )
