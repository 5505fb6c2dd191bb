"""The checks find what they are for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from elastic_export.errors import CheckFailed, UserError
from elastic_export.export import (
    check_finite,
    check_no_weight_slices,
    check_opset,
    check_parity,
    check_pattern_onnx,
    emit,
    export_fp32,
    fused_ops,
    integer_products,
)

WEIGHT = "blocks.0.qkv.weight"


@pytest.fixture(scope="module")
def flavours(tiny, folder):
    paths = {"fp32": tiny.exported.path}
    for flavour in ("ort-cpu", "trt-strong"):
        paths[flavour] = folder / f"tiny.{flavour}.onnx"
        table = tiny.exported.table
        emit(flavour, tiny.exported.path, table, tiny.record, paths[flavour])
    return paths


def edit(source: Path, target: Path, change) -> Path:
    model = onnx.load(str(source))
    change({i.name: i for i in model.graph.initializer})
    onnx.save(model, str(target))
    return target


@pytest.mark.parametrize("flavour", ["fp32", "ort-cpu", "trt-strong"])
def test_one_value_too_many_is_found(flavour, flavours, tiny, tmp_path):
    findings = check_pattern_onnx(flavours[flavour], tiny.exported.table, tiny.patterns)
    assert findings[WEIGHT]["density"] <= 0.5
    assert findings[WEIGHT]["groups"] == 32 * 96 // 4
    json.dumps(findings)

    def fill_a_group(tensors):
        name = WEIGHT if WEIGHT in tensors else f"{WEIGHT}.k"
        array = numpy_helper.to_array(tensors[name]).copy()
        array[4:8, 3] = 1
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))

    broken = edit(flavours[flavour], tmp_path / "broken.onnx", fill_a_group)
    with pytest.raises(CheckFailed, match=rf'"{WEIGHT}" is not 2:4 in broken.onnx: 1 of 768'):
        check_pattern_onnx(broken, tiny.exported.table, tiny.patterns)


@pytest.mark.parametrize("network", ["swin", "elasticvit"])
def test_projections_that_were_dealt_out_are_looked_at_whole(network, request, tmp_path):
    case = request.getfixturevalue(network)
    table, path = case.exported.table, tmp_path / "int8.onnx"
    emit("ort-cpu", case.exported.path, table, case.record, path)
    nodes = {node.name for node in onnx.load(str(path)).graph.node}
    apart = [name for name in case.patterns if f"{name.removesuffix('.weight')}.1" in nodes]
    assert apart
    findings = check_pattern_onnx(path, table, case.patterns)
    for name in case.patterns:
        size = case.module.get_parameter(name).numel()
        assert findings[name]["groups"] == size // 4
        assert findings[name]["dtype"] == "int8"


@pytest.mark.parametrize("kind", ["conv", "linear", "gemm"])
def test_the_axis_is_the_summed_one(kind, tmp_path):
    """A weight that is 2:4 along the wrong axis is not 2:4."""
    module, x = {
        "conv": (nn.Conv2d(8, 8, 3), torch.randn(1, 8, 4, 4)),
        "linear": (nn.Linear(8, 8), torch.randn(1, 4, 8)),
        "gemm": (nn.Linear(8, 8), torch.randn(1, 8)),
    }[kind]
    module = nn.Sequential(module).eval()
    mask = torch.tensor([1.0, 0, 1, 0, 0, 1, 1, 0])
    weight = module[0].weight.data
    weight *= mask.reshape(1, 8, *[1] * (weight.ndim - 2))
    right = export_fp32(module, x, tmp_path / "right.onnx")
    assert {e.op for e in right.table.entries.values()} == {
        {"conv": "Conv", "linear": "MatMul", "gemm": "Gemm"}[kind]
    }
    assert check_pattern_onnx(right.path, right.table, {"0.weight": "2:4"})

    def turn(tensors):
        array = numpy_helper.to_array(tensors["0.weight"]).swapaxes(0, 1).copy()
        tensors["0.weight"].CopyFrom(numpy_helper.from_array(array, "0.weight"))

    wrong = edit(right.path, tmp_path / "wrong.onnx", turn)
    with pytest.raises(CheckFailed, match="is not 2:4"):
        check_pattern_onnx(wrong, right.table, {"0.weight": "2:4"})


def test_widths_patterns_and_names_that_cannot_be(tiny, flavours):
    table, path = tiny.exported.table, flavours["fp32"]
    with pytest.raises(CheckFailed, match=r'"patch_embed.weight" is summed over 3 values'):
        check_pattern_onnx(path, table, {"patch_embed.weight": "2:4"})
    with pytest.raises(UserError, match=r'no parameter "blocks\.7\.qkv\.weight"'):
        check_pattern_onnx(path, table, {"blocks.7.qkv.weight": "2:4"})
    for pattern in ("4:2", "2-4", "0:4"):
        with pytest.raises(UserError, match="no N:M pattern"):
            check_pattern_onnx(path, table, {WEIGHT: pattern})


def test_opset_and_validity(flavours, tmp_path):
    with pytest.raises(CheckFailed, match="has opset 20, and the target takes 17"):
        check_opset(flavours["fp32"], 17)
    model = onnx.load(str(flavours["fp32"]))
    del model.graph.node[3]
    onnx.save(model, str(tmp_path / "torn.onnx"))
    with pytest.raises(CheckFailed, match="is not a valid ONNX model"):
        check_opset(tmp_path / "torn.onnx", 20)


def test_a_sliced_weight_is_named(tmp_path):
    table = numpy_helper.from_array(np.ones((64, 64), np.float32), "super.weight")
    index = numpy_helper.from_array(np.arange(8), "index")
    nodes = [
        helper.make_node("Gather", ["super.weight", "index"], ["w"], name="cut"),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [1, 8])],
        [value("y", TensorProto.FLOAT, [1, 64])],
        [table, index],
    )
    onnx.save(helper.make_model(graph), str(tmp_path / "active.onnx"))
    with pytest.raises(CheckFailed, match=r'"super.weight" is read through a Gather node \("cut"'):
        check_no_weight_slices(tmp_path / "active.onnx")


def test_values_that_are_not_finite(flavours, tmp_path):
    assert check_finite(flavours["trt-strong"])["constants"] > 20

    def poison(tensors):
        array = numpy_helper.to_array(tensors["norm.weight"]).copy()
        array[0] = np.inf
        tensors["norm.weight"].CopyFrom(numpy_helper.from_array(array, "norm.weight"))

    with pytest.raises(CheckFailed, match=r'"norm\.weight" holds NaN or infinite'):
        check_finite(edit(flavours["fp32"], tmp_path / "inf.onnx", poison))


def test_parity_fails_loudly(flavours, tiny):
    images = tiny.images.numpy()
    with pytest.raises(CheckFailed, match="differs from torch by"):
        check_parity(flavours["fp32"], images, tiny.logits + 1, 1e-3)
    with pytest.raises(CheckFailed, match="differs from torch by nan"):
        check_parity(flavours["fp32"], images * np.nan, tiny.logits, 1e-3)
    with pytest.raises(CheckFailed, match="logits of shape"):
        check_parity(flavours["fp32"], images, tiny.logits[:, :5], 1e-3)
    with pytest.raises(CheckFailed, match=r"cannot run tiny\.onnx"):
        check_parity(flavours["fp32"], images[:, :1], tiny.logits, 1e-3)


def test_fused_operators_are_counted(flavours, tmp_path):
    assert integer_products(fused_ops(flavours["ort-cpu"])) == 2 * (3 + 3) + 2
    assert integer_products(fused_ops(flavours["fp32"], threads=2)) == 0
    (tmp_path / "no.onnx").write_bytes(b"not a model")
    with pytest.raises(CheckFailed, match=r"cannot load no\.onnx"):
        fused_ops(tmp_path / "no.onnx")
