"""The FP32 export: clean, named, complete, reproducible."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from elastic_export.errors import CheckFailed, UserError
from elastic_export.export import (
    ExportTable,
    check_no_weight_slices,
    check_opset,
    check_parity,
    export_fp32,
)
from elastic_export.export.files import load_model, save_model

SAMPLE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def ops(path: Path) -> Counter:
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


@pytest.mark.parametrize("name", ["vit", "resnet", "tiny"])
def test_equals_torch(name, request):
    case = request.getfixturevalue(name)
    finding = check_parity(case.exported.path, case.images.numpy(), case.logits, 1e-5)
    assert finding["top1_agreement"] == 1.0
    assert check_opset(case.exported.path, 20) == {"opset": 20, "max_opset": 20}
    check_no_weight_slices(case.exported.path)


def test_transformer_is_written_in_whole_operators(vit):
    found = ops(vit.exported.path)
    assert found["Gelu"] == 6
    assert found["LayerNormalization"] == 13
    assert found["MatMul"] == 24 + 12
    assert found["Softmax"] == 6
    assert found["Mul"] == 6, "the attention scale is applied once, to the query"
    assert not {"Erf", "CastLike", "Cast", "Shape", "Expand", "Pad"} & set(found)


def test_table_names_every_layer(vit, resnet):
    for case in (vit, resnet):
        graph = onnx.load(str(case.exported.path)).graph
        nodes = {node.name: node for node in graph.node}
        arrays = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
        layers = {
            name: layer
            for name, layer in case.module.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)
        }
        assert set(case.exported.table.entries) == {f"{name}.weight" for name in layers}
        for entry in case.exported.table.entries.values():
            weight = layers[entry.module].weight.detach().numpy()
            stored = arrays[entry.initializer]
            assert nodes[entry.node].op_type == entry.op
            assert nodes[entry.node].input[entry.input_index] == entry.initializer
            assert stored.shape[entry.output_axis] == weight.shape[0]
            assert stored.shape[entry.reduction_axis] == weight.shape[1]
            np.testing.assert_array_equal(stored.T if entry.transposed else stored, weight)
            assert not entry.folded


def test_table_survives_a_file(vit, tmp_path):
    path = tmp_path / "table.json"
    vit.exported.table.save(path)
    assert ExportTable.load(path) == vit.exported.table
    path.write_text(path.read_text()[:200])
    with pytest.raises(UserError, match="cannot be read"):
        ExportTable.load(path)


def test_same_weights_same_bytes(new_tiny, tmp_path):
    digests = []
    for number in range(2):
        path = tmp_path / f"{number}.onnx"
        export_fp32(new_tiny(), SAMPLE, path)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    content = path.read_bytes()
    assert b".py" not in content
    assert b"site-packages" not in content
    assert str(Path.cwd()).encode() not in content
    assert [p.name for p in tmp_path.iterdir()] == ["0.onnx", "1.onnx"]


def test_says_nothing(new_tiny, tmp_path, capfd, recwarn):
    export_fp32(new_tiny(), SAMPLE, tmp_path / "quiet.onnx")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_opset_18_writes_gelu_with_erf(new_tiny, tmp_path):
    exported = export_fp32(new_tiny(), SAMPLE, tmp_path / "old.onnx", opset=18)
    found = ops(exported.path)
    assert found["Erf"] == 2
    assert found["Gelu"] == 0
    assert check_opset(exported.path, 18)["opset"] == 18
    with torch.no_grad():
        logits = new_tiny()(SAMPLE).numpy()
    check_parity(exported.path, SAMPLE.numpy(), logits, 1e-5)


@pytest.mark.parametrize("opset", [13, 17, 23])
def test_refuses_an_opset_it_would_not_write(new_tiny, tmp_path, opset):
    with pytest.raises(UserError, match=f"not {opset}"):
        export_fp32(new_tiny(), SAMPLE, tmp_path / "no.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_dynamic_batch(new_tiny, tmp_path):
    exported = export_fp32(new_tiny(), SAMPLE, tmp_path / "batch.onnx", dynamic_batch=True)
    dims = onnx.load(str(exported.path)).graph.input[0].type.tensor_type.shape.dim
    assert dims[0].dim_param == "batch"
    assert len(exported.table.entries) == 10
    for batch in (1, 3):
        x = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            check_parity(exported.path, x.numpy(), new_tiny()(x).numpy(), 1e-5)


def test_equal_weights_stay_two_weights(new_tiny, tmp_path):
    module = new_tiny()
    module.blocks[1].load_state_dict(module.blocks[0].state_dict())
    table = export_fp32(module, SAMPLE, tmp_path / "equal.onnx").table
    assert len(table.entries) == 10


class WithNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(self.bn1(self.conv1(x)).relu().mean((2, 3)))


def test_batchnorm_is_folded_and_said_so(tmp_path):
    module = WithNorm()
    nn.init.uniform_(module.bn1.weight, 0.5, 2)
    module.bn1(torch.randn(8, 16, 4, 4))
    module.train()
    exported = export_fp32(module, SAMPLE, tmp_path / "bn.onnx")
    assert module.training
    assert module.bn1.training
    assert exported.table.entries["conv1.weight"].folded
    assert not exported.table.entries["fc.weight"].folded
    assert "BatchNormalization" not in ops(exported.path)
    with torch.no_grad():
        check_parity(exported.path, SAMPLE.numpy(), module.eval()(SAMPLE).numpy(), 1e-5)


class Twice(WithNorm):
    def forward(self, x):
        y = self.conv1(x)
        return (y + self.conv1(x + 1)).mean((2, 3)) @ torch.ones(16, 10)


class TwoOutputs(WithNorm):
    def forward(self, x):
        y = self.fc(self.conv1(x).mean((2, 3)))
        return y, y + 1


class FixedBatch(WithNorm):
    def forward(self, x):
        return self.fc(self.conv1(x).mean((2, 3)) + torch.zeros(len(x), 1))


def test_a_module_that_fixes_the_batch(tmp_path):
    with pytest.raises(UserError, match="fixes the batch size"):
        export_fp32(FixedBatch(), SAMPLE, tmp_path / "no.onnx", dynamic_batch=True)


class DataDependent(WithNorm):
    def forward(self, x):
        return self.fc(self.conv1(x).mean((2, 3))) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (Twice, CheckFailed, '"conv1.weight" is read by 2 nodes'),
        (TwoOutputs, UserError, "2 outputs"),
        (DataDependent, UserError, "cannot export DataDependent"),
    ],
)
def test_modules_that_are_not_plain(kind, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_fp32(kind(), SAMPLE, tmp_path / "no.onnx")
    assert not list(tmp_path.iterdir())


def test_an_unused_layer_and_nan_are_named(new_tiny, tmp_path):
    module = new_tiny()
    module.spare = nn.Linear(16, 16)
    with pytest.raises(CheckFailed, match=r'"spare\.weight" is not in the exported graph'):
        export_fp32(module, SAMPLE, tmp_path / "no.onnx")
    module = new_tiny()
    module.blocks[1].fc1.weight.data[3, 2] = float("nan")
    with pytest.raises(CheckFailed, match=r'"blocks\.1\.fc1\.weight" holds NaN'):
        export_fp32(module, SAMPLE, tmp_path / "no.onnx")
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written(vit, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match="could not be written"):
        save_model(load_model(vit.exported.path), blocker / "model.onnx")
