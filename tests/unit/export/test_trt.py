"""The flavours for TensorRT: typed, symmetric, and built by NVIDIA's own builder."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from elastic_export.errors import CheckFailed
from elastic_export.export import (
    check_finite,
    check_opset,
    check_parity,
    check_pattern_onnx,
    emit,
    emit_fp16,
    export_fp32,
)
from elastic_export.export.reference import rounded_like
from elastic_export.quantize.record import QuantizationRecord


@pytest.fixture(scope="module", params=["vit", "resnet"])
def written(request, folder):
    case = request.getfixturevalue(request.param)
    path = folder / f"{request.param}.trt-strong.onnx"
    report = emit("trt-strong", case.exported.path, case.exported.table, case.record, path)
    half = folder / f"{request.param}.fp16.onnx"
    emit_fp16(case.exported.path, half)
    return request.param, case, path, report, half


def read(path: Path):
    graph = onnx.load(str(path)).graph
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    return graph, arrays, makers


def test_node_by_node(written):
    name, case, path, report, _ = written
    graph, arrays, makers = read(path)
    check_opset(path, 20)
    check_finite(path)
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == {"vit": 24, "resnet": 17}[name]
    for node in quantizers:
        scale, zero = arrays[node.input[1]], arrays[node.input[2]]
        assert (scale.dtype, scale.shape) == (np.float16, ())
        assert (zero.dtype, int(zero)) == (np.int8, 0)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in arrays:
            assert arrays[node.input[0]].dtype == np.int8, "no INT32 bias, no UINT8 weight"
            assert arrays[node.input[1]].dtype == np.float16
    for layer in report.int8:
        node = next(node for node in graph.node if node.name == layer)
        data, weight = (makers[value] for value in node.input[:2])
        assert data.op_type == weight.op_type == "DequantizeLinear"
        assert makers[data.input[0]].op_type == "QuantizeLinear"
        assert weight.input[0] == f"{layer}.weight"
        scale = arrays[weight.input[1]]
        assert scale.shape == (case.module.get_submodule(layer).weight.shape[0],)
        site = case.record.site(layer, "input")
        assert arrays[data.input[1]] == site.symmetric_scale(np.float16)
    assert not {array.dtype for array in arrays.values()} & {np.dtype("f4"), np.dtype("f8")}
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["Cast"] == 2


def test_nothing_but_layers_is_quantized(written):
    name, _, path, report, _ = written
    graph, _, _ = read(path)
    readers: dict[str, list] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    others = Counter(
        reader.op_type
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        for reader in readers[node.output[0]]
        if reader.name not in report.int8
    )
    assert others == ({} if name == "vit" else {"Add": 4})


def test_skip_inputs_of_residual_additions(written):
    name, _, path, _, _ = written
    graph, _, makers = read(path)
    additions = [
        node
        for node in graph.node
        if node.op_type == "Add"
        and any(v in makers and makers[v].op_type == "DequantizeLinear" for v in node.input)
    ]
    assert len(additions) == {"vit": 0, "resnet": 4}[name]
    skips = []
    for node in additions:
        main, skip = sorted(
            (makers[value] for value in node.input), key=lambda n: n.op_type == "DequantizeLinear"
        )
        assert main.op_type == "Conv", "fuses with the addition"
        skips.append(makers[makers[skip.input[0]].input[0]])
    if skips:
        assert skips[0].op_type == "MaxPool"
        projections = [f"layer{stage}.0.downsample.1" for stage in (2, 3, 4)]
        assert [node.name for node in skips[1:]] == projections


def test_close_to_torch(written):
    _, case, path, _, half = written
    int8 = check_parity(path, case.images.numpy(), case.logits, 0.1)
    fp16 = check_parity(half, case.images.numpy(), case.logits, 5e-3)
    assert int8["relative_error"] > fp16["relative_error"] > 0


def test_pattern_is_kept(written):
    _, case, path, report, half = written
    findings = check_pattern_onnx(path, case.exported.table, case.patterns)
    assert set(findings) == {f"{layer}.weight" for layer in report.int8}
    assert {found["dtype"] for found in findings.values()} == {"int8"}
    halves = check_pattern_onnx(half, case.exported.table, case.patterns)
    assert {found["dtype"] for found in halves.values()} == {"float16"}
    assert check_pattern_onnx(case.exported.path, case.exported.table, case.patterns)


def test_sizes(written):
    _, case, path, report, half = written
    assert half.stat().st_size < 0.55 * case.exported.path.stat().st_size
    assert report.bytes == path.stat().st_size
    assert report.to_json()["size_ratio"] == round(report.bytes / report.fp32_bytes, 4)


def test_needs_opset_19(tmp_path, take_record):
    module = nn.Sequential(nn.Linear(16, 16)).eval()
    x = torch.randn(1, 4, 16)
    exported = export_fp32(module, x, tmp_path / "old.onnx", opset=18)
    record = take_record(module, x)
    with pytest.raises(CheckFailed, match="needs opset 19"):
        emit("trt-strong", exported.path, exported.table, record, tmp_path / "no.onnx")


def test_constants_beyond_fp16_are_named(tmp_path):
    module = nn.Sequential(nn.Linear(4, 4)).eval()
    module[0].weight.data[0, 0] = 1e6
    exported = export_fp32(module, torch.randn(1, 4), tmp_path / "large.onnx")
    with pytest.raises(CheckFailed, match=r'"0\.weight" holds 1e\+06'):
        emit_fp16(exported.path, tmp_path / "no.onnx")
    assert not (tmp_path / "no.onnx").exists()


@pytest.mark.parametrize("capability", ["SM80", "SM86"])
def test_tensorrt_rtx_builds_engines(written, capability):
    """NVIDIA's parser and builder take FP32, FP16 and INT8 with 2:4, on a machine with no GPU."""
    trt = pytest.importorskip("tensorrt_rtx", reason="install the extra rtx to build engines")
    _, case, path, _, half = written
    sizes = []
    for file in (case.exported.path, half, path):
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        assert parser.parse(file.read_bytes()), [
            parser.get_error(i).desc() for i in range(parser.num_errors)
        ]
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
        engine = builder.build_serialized_network(network, config)
        assert engine is not None, file.name
        sizes.append(engine.nbytes)
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("network", ["vit", "resnet"])
@pytest.mark.parametrize("opset", [13, 17, 20])
def test_the_weak_form_is_the_fake_quantized_network_at_any_opset(
    network: str, opset: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    case = request.getfixturevalue(network)
    path = tmp_path / "weak.onnx"
    lacks = ("LayerNormalization",) if opset == 17 else ()
    emit(
        "trt-weak",
        case.exported.path,
        case.exported.table,
        case.record,
        path,
        opset=opset,
        without=lacks,
    )
    assert check_opset(path, opset)["opset"] == opset
    graph, arrays, _ = read(path)
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["QuantizeLinear"] > 10
    assert opset > 17 or not kinds["LayerNormalization"]
    assert not [a for a in arrays.values() if a.dtype == np.float16]
    with torch.no_grad():
        wanted = rounded_like(case.module, case.record, "trt-weak")(case.images).numpy()
    check_parity(path, case.images.numpy(), wanted, 5e-2)


class Residual(nn.Module):
    """Max-pool, then a convolution and a shortcut: no layer reads or makes what is added."""

    def __init__(self, projected: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.before, self.main = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.shortcut = nn.Conv2d(16, 16, 1) if projected else nn.AvgPool2d(3, 1, 1)
        self.after = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x).relu())
        x = self.main(self.before(x).relu()) + self.shortcut(x)
        return self.after(x.relu()).mean((2, 3))


@pytest.mark.parametrize("projected", [False, True])
def test_a_skip_connection_has_the_range_it_was_measured_with(projected, tmp_path, take_record):
    torch.manual_seed(0)
    module, x = Residual(projected).eval(), torch.randn(2, 3, 16, 16)
    exported = export_fp32(module, x, tmp_path / "a.onnx")
    record = take_record(module, x)
    path = tmp_path / "b.onnx"
    report = emit("trt-weak", exported.path, exported.table, record, path)
    assert report.notes == ("1 residual additions read their skip input quantized.",)
    graph, arrays, makers = read(path)
    (addition,) = [node for node in graph.node if node.op_type == "Add"]
    main, skip = (makers[value] for value in addition.input)
    assert (main.name, skip.op_type) == ("main", "DequantizeLinear")
    assert arrays[skip.input[1]] == record.site("main", "skip").scale
    assert makers[makers[skip.input[0]].input[0]].op_type == (
        "Conv" if projected else "AveragePool"
    )
    with torch.no_grad():
        wanted = rounded_like(module, record, "trt-weak")(x).numpy()
        unrounded = without_skip(module, record, x)
    # Equal but for a value or two at the border of two integers.
    check_parity(path, x.numpy(), wanted, 1e-3)
    with pytest.raises(CheckFailed):
        check_parity(path, x.numpy(), unrounded, 1e-3)


def without_skip(module: nn.Module, record: QuantizationRecord, x: Tensor) -> np.ndarray:
    """The output of the network that rounds everything but the skip connection."""
    sites = {key: site for key, site in record.sites.items() if key != ("main", "skip")}
    return rounded_like(module, replace(record, sites=sites), "trt-weak")(x).numpy()


@pytest.mark.parametrize("network", ["vit", "swin", "resnet", "elasticvit"])
@pytest.mark.parametrize("flavour", ["trt-weak", "trt-strong", "ort-trt"])
def test_what_tensorrt_wants(network, flavour, request, tmp_path):
    """Weights once, INT8, per channel; no INT32; first convolution, head and GEMV in float."""
    case = request.getfixturevalue(network)
    path = tmp_path / "a.onnx"
    report = emit(flavour, case.exported.path, case.exported.table, case.record, path)
    graph, arrays, makers = read(path)
    nodes = {node.name: node for node in graph.node}
    rules = {name: case.record.site(name, "weight").rules for name in case.record.modules()}
    assert {"classifier", "first_conv"} <= set().union(*rules.values())
    for name, held in rules.items():
        assert (name in report.int8) == (not held)
        maker = makers.get(nodes[name].input[1])
        assert (maker is not None) == (not held), "only INT8 layers have a DequantizeLinear"
    for entry in case.exported.table.entries.values():
        copies = [name for name in arrays if name.startswith(f"{entry.module}.weight")]
        codes = arrays[entry.initializer]
        if entry.module not in report.int8:
            assert copies == [entry.initializer]
            assert codes.dtype in (np.float16, np.float32)
            continue
        assert sorted(copies) == [entry.initializer, f"{entry.initializer}.scale"]
        assert codes.dtype == np.int8
        assert arrays[copies[-1]].shape == (codes.shape[entry.output_axis],)
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            codes = arrays.get(node.input[0])
            assert codes is None or codes.dtype == np.int8


@pytest.mark.parametrize("network", ["swin", "elasticvit"])
@pytest.mark.parametrize("flavour", ["trt-weak", "trt-strong", "ort-trt"])
def test_equal_to_the_rounded_network(network, flavour, request, tmp_path):
    case = request.getfixturevalue(network)
    path = tmp_path / "a.onnx"
    emit(flavour, case.exported.path, case.exported.table, case.record, path)
    with torch.no_grad():
        wanted = rounded_like(case.module, case.record, flavour)(case.images).numpy()
    # In FP32 only values at the border of two integers differ; FP16 moves many across.
    tolerance = 5e-2 if flavour == "trt-strong" else 5e-3
    check_parity(path, case.images.numpy(), wanted, tolerance)
