"""INT8 attention: placed where TensorRT can fuse it, equal to torch, and judged by its lint."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from elastic_export.engine import tensorrt_rtx
from elastic_export.errors import CheckFailed
from elastic_export.export import ExportTable, check_parity, emit, emit_fp16, export_fp32
from elastic_export.export.mha import lint_attention
from elastic_export.export.reference import rounded_like

ROLES = ("bmm_a", "bmm_b", "probs", "value")


class Attention(nn.Module):
    """One attention in the ways that networks write it."""

    def __init__(self, form: str, size: int = 16, mask: bool = False) -> None:
        super().__init__()
        self.form, self.size = form, size
        self.qkv = nn.Linear(32, 6 * size)
        self.proj = nn.Linear(2 * size, 32)
        self.mask = nn.Parameter(torch.randn(1, 2, 9, 9)) if mask else None

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).reshape(len(x), 9, 3, 2, self.size).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        scale = self.size**-0.5
        if self.form == "fused":
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        else:
            if self.form == "query scaled":
                scores = (q * scale) @ k.transpose(-2, -1)
            elif self.form == "in place":
                q *= scale
                scores = torch.matmul(q, k.transpose(-2, -1))
            elif self.form == "both scaled":
                scores = (q / math.sqrt(1 / scale)) @ (k * math.sqrt(scale)).transpose(-2, -1)
            else:
                scores = torch.matmul(q, k.transpose(-2, -1)) * scale
            if self.mask is not None:
                scores = scores + self.mask
            mixed = nn.functional.dropout(scores.softmax(-1), 0.1, self.training) @ v
        return self.proj(mixed.transpose(1, 2).reshape(len(x), 9, -1))


class Network(nn.Module):
    """The same attention in every way, side by side."""

    FORMS = ("fused", "query scaled", "both scaled", "scores scaled", "in place")

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Attention(form, mask="scaled" not in form) for form in self.FORMS
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + sum(block(x) for block in self.blocks)


def arrays_of(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    return {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}


def test_every_way_to_write_attention_is_rounded_as_in_torch(tmp_path, take_record):
    torch.manual_seed(0)
    module, x = Network().eval(), torch.randn(3, 9, 32)
    for block in module.blocks:
        block.qkv.weight.data *= 3
    exported = export_fp32(module, x, tmp_path / "a.onnx")
    record = take_record(module, x)
    # Behind what the exporter writes for a change in place no scale can be found.
    assert record.attentions() == [f"blocks.{index}" for index in range(4)]
    path = tmp_path / "b.onnx"
    report = emit("trt-weak", exported.path, exported.table, record, path, attention="int8")
    assert report.int8_attentions == tuple(record.attentions())
    with torch.no_grad():
        wanted = rounded_like(module, record, "trt-weak", attention="int8")(x).numpy()
        otherwise = rounded_like(module, record, "trt-weak")(x).numpy()
    # Equal but for values that lie at the border of two integers.
    check_parity(path, x.numpy(), wanted, 2e-3)
    with pytest.raises(CheckFailed):
        check_parity(path, x.numpy(), otherwise, 2e-3)
    forms = lint_attention(path)
    assert [form.precision for form in forms] == ["int8"] * 4 + ["fp32"]
    assert all(form.fuses for form in forms), forms


@pytest.fixture(scope="module", params=["vit", "swin", "elasticvit"])
def written(request, folder):
    case = request.getfixturevalue(request.param)
    path = folder / f"{request.param}.mha.onnx"
    tell = emit(
        "trt-strong", case.exported.path, case.exported.table, case.record, path, attention="int8"
    )
    return request.param, case, path, tell


def test_node_by_node(written):
    name, case, path, report = written
    graph = onnx.load(str(path)).graph
    arrays, nodes = arrays_of(graph), {node.name: node for node in graph.node}
    makers = {output: node for node in graph.node for output in node.output}
    modules = [entry.module for entry in case.exported.table.attentions]
    assert len(modules) == {"vit": 6, "swin": 4, "elasticvit": 3}[name]
    assert report.int8_attentions == tuple(modules) == tuple(case.record.attentions())
    for module in modules:
        first, second = nodes[f"{module}.first"], nodes[f"{module}.second"]
        operands = [*first.input, *second.input]
        for role, value in zip(ROLES, operands, strict=True):
            dequantizer = makers[value]
            quantizer = makers[dequantizer.input[0]]
            assert [dequantizer.op_type, quantizer.op_type] == [
                "DequantizeLinear",
                "QuantizeLinear",
            ]
            scale = arrays[quantizer.input[1]]
            assert scale.dtype == np.float16
            site = case.record.site(module, role)
            if role in ("bmm_b", "value"):
                assert scale == site.symmetric_scale(np.float16)
            if role == "bmm_a":
                size = case.module.get_submodule(module).head_dim if name != "elasticvit" else 16
                assert scale == pytest.approx(float(site.amax) * size**-0.5 / 127, rel=2e-3)
            if role == "probs":
                assert makers[quantizer.input[0]].name == f"{module}.softmax"
                assert scale == np.float16(1 / 127)


def test_equal_to_the_rounded_network(written, tmp_path):
    name, case, path, _ = written
    weak = tmp_path / "weak.onnx"
    parts = (case.exported.path, case.exported.table, case.record, weak)
    emit("trt-weak", *parts, attention="int8")
    # Equal where no value lies at the border of two integers; six blocks of random numbers at 101
    # tokens have some, and FP16 moves many across.
    exact = 5e-2 if name == "vit" else 5e-3
    for flavour, file, tolerance in (("trt-weak", weak, exact), ("trt-strong", path, 1e-1)):
        reference = rounded_like(case.module, case.record, flavour, attention="int8")
        with torch.no_grad():
            wanted = reference(case.images).numpy()
        check_parity(file, case.images.numpy(), wanted, tolerance)


def test_the_lint_finds_every_attention_and_accepts_this_form(written):
    name, case, path, _ = written
    forms = lint_attention(path)
    assert len(forms) == len(case.exported.table.attentions)
    assert {form.precision for form in forms} == {"int8"}
    assert all(form.fuses for form in forms), forms
    assert {form.head_size for form in forms} == {32 if name == "vit" else 16}


@pytest.mark.parametrize("network", ["vit", "swin"])
def test_tensorrt_rtx_takes_int8_attention(network, request, folder, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="install the extra rtx to build engines")
    case = request.getfixturevalue(network)
    path = tmp_path / "mha.onnx"
    emit("trt-strong", case.exported.path, case.exported.table, case.record, path, attention="int8")
    assert tensorrt_rtx.build(path, tmp_path / "mha.engine", sm=86).status == "accepted"


def test_attention_stays_float_unless_asked(tiny, tmp_path):
    parts = (tiny.exported.path, tiny.exported.table, tiny.record)
    for flavour in ("trt-weak", "trt-strong", "ort-trt", "ort-cpu"):
        report = emit(flavour, *parts, tmp_path / "a.onnx")
        assert report.int8_attentions == ()
    report = emit("ort-cpu", *parts, tmp_path / "cpu.onnx", attention="int8")
    assert report.int8_attentions == ()
    assert "Attention products stay float: this runtime has no INT8 form of them." in report.notes
    (form, *_) = lint_attention(tmp_path / "cpu.onnx")
    assert "operator of ONNX Runtime" in form.problems[0]


def test_an_attention_that_cannot_be_found_is_an_error(tiny, tmp_path):
    table = tiny.exported.table
    parts = (tmp_path / "no.onnx",)
    lost = replace(table, attentions=table.attentions[1:])
    with pytest.raises(CheckFailed, match=r'attention "blocks\.0"'):
        emit("trt-weak", tiny.exported.path, lost, tiny.record, *parts, attention="int8")
    wrong = replace(table.attentions[0], first="Mul_0")
    mixed = replace(table, attentions=(wrong, *table.attentions[1:]))
    with pytest.raises(CheckFailed, match="no such nodes"):
        emit("trt-weak", tiny.exported.path, mixed, tiny.record, *parts, attention="int8")
    assert not list(tmp_path.iterdir())


def test_an_attention_that_costs_accuracy_stays_float(tiny, tmp_path):
    record = tiny.record.with_float({"blocks.0": "It is sensitive."})
    parts = (tiny.exported.path, tiny.exported.table, record, tmp_path / "a.onnx")
    report = emit("trt-strong", *parts, attention="int8")
    assert report.int8_attentions == ("blocks.1",)
    first, second = lint_attention(tmp_path / "a.onnx")
    assert (first.precision, second.precision) == ("fp16", "int8")


def test_the_table_keeps_attentions(tiny, tmp_path):
    path = tmp_path / "table.json"
    tiny.exported.table.save(path)
    assert ExportTable.load(path) == tiny.exported.table
    assert [entry.module for entry in tiny.exported.table.attentions] == ["blocks.0", "blocks.1"]


def attention_file(path: Path, size: int, tokens: int, kind: int, *, spoil: str = "") -> Path:
    """An attention with Q/DQ on its operands, all of it right but for what ``spoil`` names."""
    make, of = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    shape, nodes = [1, 2, tokens, size], []
    elements = {onnx.TensorProto.FLOAT16: np.float16, onnx.TensorProto.FLOAT: np.float32}
    constants = [
        onnx.numpy_helper.from_array(np.asarray(0.1, elements[kind]), "s"),
        onnx.numpy_helper.from_array(np.int8(0), "z"),
    ]

    def rounded(name: str) -> str:
        if spoil in ("all", name):
            return name
        nodes.append(make("QuantizeLinear", [name, "s", "z"], [f"{name}.q"]))
        nodes.append(make("DequantizeLinear", [f"{name}.q", "s", "z"], [f"{name}.dq"]))
        return f"{name}.dq"

    key = rounded("k")
    if spoil == "transpose":
        nodes.append(make("Transpose", [key], ["t"], perm=[0, 1, 3, 2]))
        key = "t"
    nodes.append(make("MatMul", [rounded("q"), key], ["a"], name="first"))
    nodes.append(make("Softmax", ["a"], ["p"], axis=-1, name="softmax"))
    nodes.append(make("MatMul", [rounded("p"), rounded("v")], ["y"], name="second"))
    keys = shape if spoil == "transpose" else [1, 2, size, tokens]
    inputs = [of("q", kind, shape), of("k", kind, keys), of("v", kind, shape)]
    graph = onnx.helper.make_graph(nodes, "g", inputs, [of("y", kind, shape)], constants)
    onnx.save(onnx.helper.make_model(graph), str(path))
    return path


@pytest.mark.parametrize(
    ("size", "tokens", "spoil", "problem"),
    [
        (64, 512, "", ""),
        (32, 197, "", ""),
        (48, 197, "", "heads have 48 values; INT8 wants 16, 32 or 64"),
        (64, 513, "", "513 tokens; INT8 takes at most 512"),
        (64, 49, "q", "query has no Q/DQ"),
        (64, 49, "k", "key has no Q/DQ"),
        (64, 49, "p", "Softmax has no Q/DQ"),
        (64, 49, "v", "value has no Q/DQ"),
        (64, 49, "transpose", "Behind the DequantizeLinear of its key is Transpose"),
        (80, 900, "all", ""),
        (256, 9, "all", ""),
        (20, 9, "all", "heads have 20 values; FP16 wants a multiple of 8 from 16 to 256"),
        (264, 9, "all", "heads have 264 values"),
        (8, 9, "all", "heads have 8 values"),
    ],
)
def test_what_keeps_tensorrt_from_fusing(size, tokens, spoil, problem, tmp_path):
    """The limits are those of NVIDIA's TensorRT guide, quoted in TensorRT issues 2981 and 4167."""
    kind = onnx.TensorProto.FLOAT16
    (form,) = lint_attention(attention_file(tmp_path / "a.onnx", size, tokens, kind, spoil=spoil))
    assert (form.head_size, form.tokens) == (size, tokens)
    assert form.precision == ("fp16" if spoil == "all" else "int8")
    assert form.nodes == ("first", "softmax", "second")
    assert form.fuses == (not problem)
    if problem:
        assert len(form.problems) == 1
        assert problem in form.problems[0]


def test_plain_and_half_files(tiny, tmp_path):
    half = tmp_path / "half.onnx"
    emit_fp16(tiny.exported.path, half)
    for path, precision in ((tiny.exported.path, "fp32"), (half, "fp16")):
        forms = lint_attention(path)
        assert [form.precision for form in forms] == [precision] * 2
        assert all(form.fuses and form.head_size == 16 and form.tokens == 17 for form in forms)


def test_a_softmax_that_is_no_attention(tmp_path):
    module = nn.Sequential(nn.Linear(8, 8), nn.Softmax(-1), nn.Linear(8, 8)).eval()
    exported = export_fp32(module, torch.randn(1, 3, 8), tmp_path / "a.onnx")
    assert exported.table.attentions == ()
    assert lint_attention(exported.path) == []
