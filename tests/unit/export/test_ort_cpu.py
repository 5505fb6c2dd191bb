"""The ort-cpu flavour: node by node, exact in integers, and really fused by ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from torch import nn

from elastic_export.errors import CheckFailed
from elastic_export.export import (
    check_opset,
    check_parity,
    check_pattern_onnx,
    emit,
    export_fp32,
    fused_ops,
    run_onnx,
)
from elastic_export.export.files import load_model, save_model
from elastic_export.export.reference import rounded_like
from elastic_export.export.saturation import pair_safe_int8
from elastic_export.export.simplify import tidy
from elastic_export.export.tokens import select_tokens_early


def write(case, folder, name):
    path = folder / f"{name}.ort-cpu.onnx"
    report = emit("ort-cpu", case.exported.path, case.exported.table, case.record, path)
    return path, report


@pytest.fixture(scope="module")
def vit_int8(vit, folder):
    return write(vit, folder, "vit")


@pytest.fixture(scope="module")
def resnet_int8(resnet, folder):
    return write(resnet, folder, "resnet")


def arrays(path: Path) -> dict[str, np.ndarray]:
    graph = onnx.load(str(path)).graph
    return {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}


def ops(path: Path) -> Counter:
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def test_transformer_node_by_node(vit, vit_int8):
    path, report = vit_int8
    found = ops(path)
    assert found["MatMulIntegerToFloat"] == 3 * 6 + 19, "query, key and value are three products"
    assert found["MultiHeadAttention"] == 6
    assert found["QuantizeLinear"] == 28, "query, key and value share one but for the last query"
    assert found["DequantizeLinear"] == 4, "around the patch embedding"
    assert found["MatMul"] == found["Split"] == found["Gemm"] == 0
    assert found["Add"] == 13, "biases are inside the products; residuals are left"
    graph = onnx.load(str(path)).graph
    nodes = {node.name: node for node in graph.node}
    stored = arrays(path)
    names = [
        (name, part)
        for name in report.int8
        if name != "patch_embed.proj"
        for part in ((".q", ".k", ".v") if name.endswith("qkv") else ("",))
    ]
    assert len(names) == 37
    for name, part in names:
        node = nodes[name + part]
        assert node.op_type == "MatMulIntegerToFloat"
        assert node.input[1] == f"{name}.weight{part}"
        assert stored[node.input[1]].dtype == np.int8
        layer = vit.module.get_submodule(name)
        width = layer.out_features // (3 if part else 1)
        assert stored[node.input[1]].shape == (layer.in_features, width)
        assert stored[node.input[3]].shape == (width,)
        bias = layer.bias.detach().numpy()
        start = width * max(0, "qkv".find(part[1:]))
        if len(node.input) == 7:
            np.testing.assert_array_equal(stored[node.input[6]], bias[start : start + width])
        else:
            assert not bias.any(), "only a bias of zeros is left out"
        producer = next(n for n in graph.node if node.input[0] in n.output)
        if producer.op_type == "Reshape":
            producer = next(n for n in graph.node if producer.input[0] in n.output)
        assert producer.op_type == "QuantizeLinear"
        site = vit.record.site(name, "input")
        scale, zero = site.affine_u8()
        assert stored[producer.input[1]] == scale
        assert stored[producer.input[2]] == zero
        assert stored[producer.input[2]].dtype == np.uint8
    assert not report.kept_float


def test_transformer_is_fused(vit_int8):
    found = fused_ops(vit_int8[0], threads=1)
    assert found["MatMulIntegerToFloat"] == 37
    assert found["MultiHeadAttention"] == 6
    assert found["QLinearConv"] == 1
    assert not {"Conv", "Gemm", "MatMul", "Split", "Softmax"} & set(found)
    assert found["DequantizeLinear"] == 1, "behind the patch embedding"


def test_convolutions_node_by_node(resnet, resnet_int8):
    path, report = resnet_int8
    found = ops(path)
    assert found["Conv"] == 15
    assert len(report.int8) == 16
    stored = arrays(path)
    graph = onnx.load(str(path)).graph
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    for node in graph.node:
        if node.op_type != "Conv" or node.name not in report.int8:
            continue
        data, weight, bias = (makers[value] for value in node.input)
        assert {data.op_type, weight.op_type, bias.op_type} == {"DequantizeLinear"}
        assert stored[weight.input[0]].dtype == np.int8
        assert stored[bias.input[0]].dtype == np.int32
        np.testing.assert_allclose(
            stored[bias.input[1]], stored[data.input[1]] * stored[weight.input[1]], rtol=1e-6
        )
        (after,) = readers[node.output[0]]
        if after.op_type == "Relu":
            (after,) = readers[after.output[0]]
        assert after.op_type == "QuantizeLinear"


def test_convolutions_are_fused(resnet_int8):
    found = fused_ops(resnet_int8[0], threads=1)
    assert found["QLinearConv"] == 15 + 3, "three are average pools"
    assert "Conv" not in found
    assert found["QLinearAdd"] == 3, "all but the last, whose sum no quantized layer reads"
    assert "QLinearAveragePool" not in found
    assert found["SpaceToDepth"] == 1, "the first one reads blocks of pixels"
    assert found["NhwcMaxPool"] == 1, "the first stage ends in integers, so does its pool"
    assert found.get("Relu", 0) <= 1


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_close_to_torch(name, request):
    case, (path, _) = request.getfixturevalue(name), request.getfixturevalue(f"{name}_int8")
    finding = check_parity(path, case.images.numpy(), case.logits, 0.1)
    assert finding["relative_error"] > 1e-4, "an INT8 network that equals FP32 is none"
    check_opset(path, 20)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_pattern_is_kept(name, request):
    case, (path, report) = request.getfixturevalue(name), request.getfixturevalue(f"{name}_int8")
    findings = check_pattern_onnx(path, case.exported.table, case.patterns)
    assert set(findings) == set(case.patterns) <= {f"{layer}.weight" for layer in report.int8}
    assert {found["dtype"] for found in findings.values()} == {"int8"}


def test_same_input_same_bytes(vit, vit_int8, tmp_path):
    again, _ = write(vit, tmp_path, "again")
    assert again.read_bytes() == vit_int8[0].read_bytes()


def test_equals_the_fake_quantized_network(tiny, tmp_path, monkeypatch):
    """But for single values that round the other way, the graph computes what torch simulates."""
    monkeypatch.setattr("elastic_export.export.ort_cpu.linears.TANH_GELU_ERROR", np.inf)
    # A folded stem sums in another order, so its weights may have another scale.
    monkeypatch.setattr("elastic_export.export.ort_cpu.stems.ROW_BYTES", 0)
    path, _ = write(tiny, tmp_path, "tiny")
    fake = rounded_like(tiny.module, tiny.record, "ort-cpu")
    x = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        wanted, plain = fake(x).numpy(), tiny.module(x).numpy()
    found = run_onnx(path, x.numpy())
    largest = np.abs(wanted).max()
    assert np.median(np.abs(found - wanted).max(1)) < 1e-5 * largest
    assert np.median(np.abs(plain - wanted).max(1)) > 1e-3 * largest


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_exact_even_where_16_bits_overflow(bias, emit_small):
    """Activations at 255 and neighbouring weights at their limit: no processor may saturate."""
    module = nn.Sequential(nn.Linear(64, 48, bias=bias), nn.ReLU(), nn.Linear(48, 16)).eval()
    weight = module[0].weight.data
    weight[:, ::2] = weight[:, 1::2] = 0.5
    weight[::2] *= -1
    x = torch.linspace(0, 1, 3 * 5 * 64).reshape(3, 5, 64)
    x[0] = 1.0
    path, record, _ = emit_small(module, x)
    stored = arrays(path)
    site = record.site("0", "input")
    scale, zero = site.affine_u8()
    codes = np.clip(np.rint(x.numpy() / scale) + zero, 0, 255).astype(np.int64)
    hidden = ((codes - zero) @ stored["0.weight"].astype(np.int64)) * (
        scale.astype(np.float64) * stored["0.weight.scale"]
    )
    if bias:
        hidden = hidden + module[0].bias.detach().numpy()
    hidden = np.maximum(hidden, 0)
    scale, zero = record.site("2", "input").affine_u8()
    codes = np.clip(np.rint(hidden / scale) + zero, 0, 255).astype(np.int64)
    logits = ((codes - zero) @ stored["2.weight"].astype(np.int64)) * (
        scale.astype(np.float64) * stored["2.weight.scale"]
    ) + module[2].bias.detach().numpy()
    np.testing.assert_allclose(run_onnx(path, x.numpy()), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("channels", "groups"), [(16, 1), (19, 1), (64, 2)])
def test_convolution_is_exact_even_where_16_bits_overflow(channels, groups, emit_small):
    module = nn.Sequential(nn.Conv2d(channels, 32, 3, padding=1, groups=groups)).eval()
    weight = module[0].weight.data
    # Heavy tails of one sign: sums of two neighbours overflow in any order but the right one.
    weight[:] = torch.rand(weight.shape) ** 8
    weight[::2] *= -1
    flat = torch.zeros(3 * 3 * weight.shape[1])
    flat[::2] = 1
    weight[3] = flat.reshape(3, 3, -1).permute(2, 0, 1)
    x = torch.rand(2, channels, 8, 8)
    x[0] = 1.0
    path, record, _ = emit_small(module, x)
    stored = arrays(path)
    scale, zero = record.site("0", "input").affine_u8()
    codes = torch.from_numpy(np.clip(np.rint(x.numpy() / scale) + zero, 0, 255) - zero).double()
    kernel = torch.tensor(stored["0.weight"]).double()
    total = nn.functional.conv2d(codes, kernel, padding=1, groups=groups).numpy()
    factor = (scale * stored["0.weight.scale"]).astype(np.float64)[:, None, None]
    total += stored["0.bias.int32"][:, None, None]
    out_scale, out_zero = record.site("0", "output").affine_u8()
    levels = np.clip(np.rint(total * factor / out_scale) + out_zero, 0, 255)
    difference = run_onnx(path, x.numpy()) - (levels - out_zero) * out_scale
    assert fused_ops(path)["QLinearConv"] == 1
    assert np.abs(difference).max() <= 1.01 * out_scale, "at most one step from rounding"
    assert (np.abs(difference) > 0.5 * out_scale).mean() < 0.01


def test_a_large_bias_on_tiny_weights_fits_into_int32(emit_small):
    module = nn.Sequential(nn.Conv2d(16, 16, 1)).eval()
    module[0].weight.data[3] *= 1e-12
    module[0].weight.data[5] = 0
    module[0].bias.data[:] = 4.0
    x = torch.rand(1, 16, 4, 4)
    path, _, _ = emit_small(module, x)
    with torch.no_grad():
        check_parity(path, x.numpy(), module(x).numpy(), 0.02)


def test_pool_between_convolutions_keeps_the_codes(emit_small):
    module = nn.Sequential(
        nn.Conv2d(16, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3), nn.ReLU6()
    ).eval()
    path, _, _ = emit_small(module, torch.rand(2, 16, 12, 12))
    found = fused_ops(path)
    assert found["QLinearConv"] == 2
    assert not {"MaxPool", "Relu", "Clip"} & set(found), "pool and ReLU work on integers"


def test_gelu_is_exact_where_the_step_is_fine(emit_small):
    def kind(amplitude):
        module = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16)).eval()
        module[0].weight.data[:] = amplitude * torch.eye(16)
        module[0].bias.data[:] = 0
        path, _, report = emit_small(module, torch.rand(1, 4, 16))
        (gelu,) = (n for n in onnx.load(str(path)).graph.node if n.op_type == "Gelu")
        return gelu.attribute[0].s.decode(), len(report.notes)

    assert kind(4.0) == ("tanh", 1)
    assert kind(0.1) == ("none", 0)


def test_only_the_classified_token_is_computed(vit, vit_int8, tmp_path):
    model = load_model(vit.exported.path)
    assert select_tokens_early(model.graph) == 11
    tidy(model)
    save_model(model, tmp_path / "early.onnx")
    check_parity(tmp_path / "early.onnx", vit.images.numpy(), vit.logits, 1e-5)
    rows = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(
            onnx.load(str(tmp_path / "early.onnx"))
        ).graph.value_info
    }
    nodes = {node.name: node for node in onnx.load(str(tmp_path / "early.onnx")).graph.node}
    assert rows[nodes["blocks.5.mlp.fc1"].output[0]] == [1, 1, 192]
    assert rows[nodes["blocks.5.attn.qkv"].output[0]] == [1, 101, 192]
    assert rows[nodes["blocks.4.mlp.fc1"].output[0]] == [1, 101, 192]
    assert "token" in vit_int8[1].notes[0]


def test_mean_pooling_is_left_alone(new_tiny, tmp_path):
    module = new_tiny()
    module.forward = lambda x: module.head(module.blocks(x).mean(1))
    module.patch_embed = nn.Identity()
    sample = torch.randn(1, 17, 32)
    path = export_fp32(module, sample, tmp_path / "mean.onnx").path
    before = path.read_bytes()
    assert select_tokens_early(load_model(path).graph) == 0
    assert path.read_bytes() == before


def test_deit_tiny_is_a_third_of_its_size(tmp_path, take_record):
    torch.manual_seed(0)
    module = timm.create_model("deit_tiny_patch16_224", pretrained=False).eval()
    x = torch.randn(1, 3, 224, 224)
    exported = export_fp32(module, x, tmp_path / "deit.onnx")
    record = take_record(module, x)
    for flavour in ("ort-cpu", "trt-strong"):
        path = tmp_path / f"{flavour}.onnx"
        report = emit(flavour, exported.path, exported.table, record, path)
        assert report.size_ratio <= 0.35
        assert len(report.int8) == (50 if flavour == "ort-cpu" else 48)


@pytest.mark.parametrize("odd", [False, True])
def test_pair_safe_weights(odd):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((64, 191 if odd else 192)).astype(np.float32)
    rows[0] = 0
    amax = np.abs(rows).max(1)
    codes, scale = pair_safe_int8(rows, amax)
    assert codes.dtype == np.int8
    assert not codes[0].any()
    padded = np.pad(codes.astype(int), ((0, 0), (0, odd))).reshape(64, -1, 2)
    assert np.maximum(padded, 0).sum(2).max() <= 128
    assert np.minimum(padded, 0).sum(2).min() >= -128
    assert np.abs(codes * scale[:, None] - rows).max() <= 0.5001 * scale.max()
    cost = np.log2(scale[1:] / (amax[1:] / 127)).mean()
    assert 0.2 < cost < 0.6, "bits given up, of normally distributed weights"
    np.testing.assert_array_equal(codes == 0, np.abs(rows) <= 0.5 * scale[:, None])
    kept = np.tile([True, True, False, False], 48)[: rows.shape[1]]
    sparse, _ = pair_safe_int8(rows * kept, amax)
    assert not sparse[:, ~kept].any()


def test_convolutions_folded_after_calibration_are_refused(resnet, folder, tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU()).eval()
    nn.init.uniform_(module[1].weight, 2, 3)
    x = torch.rand(1, 16, 4, 4)
    exported = export_fp32(module, x, tmp_path / "bn.onnx")
    from dataclasses import replace

    record = replace(resnet.record, sites={}, model_digest="")
    for role in ("input", "weight", "output"):
        site = resnet.record.site("layer1.0.conv1", role)
        amax = site.amax[:16] if site.axis == 0 else site.amax
        record.sites["0", role] = replace(site, module="0", amax=amax)
    with pytest.raises(CheckFailed, match='"0" is unknown, because its BatchNorm'):
        emit("ort-cpu", exported.path, exported.table, record, tmp_path / "no.onnx")
    assert not (tmp_path / "no.onnx").exists()
