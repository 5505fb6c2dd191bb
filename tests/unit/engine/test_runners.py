from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from elastic_export.engine.runners import OrtRunner, TorchRunner
from elastic_export.errors import UserError

WEIGHT = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)


def _save(path: Path, *, op: str = "MatMul", batch: int | str = 2, kind: str = "float32") -> Path:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node(op, ["flat", "w"], ["logits"], name="fc"),
        ],
        "net",
        [helper.make_tensor_value_info("input", element, [batch, 3, 2, 2])],
        [helper.make_tensor_value_info("logits", element, [batch, 5])],
        [numpy_helper.from_array(WEIGHT.astype(kind), "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, 3, 2, 2)).astype(np.float32)


def test_onnx_runtime_computes_the_graph(tmp_path: Path, x: np.ndarray) -> None:
    runner = OrtRunner(_save(tmp_path / "net.onnx"), threads=2)
    assert np.allclose(runner.run(x), x.reshape(2, -1) @ WEIGHT, atol=1e-5)
    assert runner.name.startswith("ONNX Runtime 1.")


def test_half_and_dynamic_inputs(tmp_path: Path, x: np.ndarray) -> None:
    half = OrtRunner(_save(tmp_path / "half.onnx", kind="float16"))
    assert half.run(x.astype(np.float16)).dtype == np.float16
    free = OrtRunner(_save(tmp_path / "free.onnx", batch="N"))
    assert free.run(np.repeat(x, 3, axis=0)).shape == (6, 5)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((3, 3, 2, 2), np.float32),
        np.zeros((2, 1, 2, 2), np.float32),
        np.zeros((2, 12), np.float32),
        np.zeros((2, 3, 2, 2), np.float64),
    ],
)
def test_onnx_runtime_names_both_shapes(tmp_path: Path, wrong: np.ndarray) -> None:
    runner = OrtRunner(_save(tmp_path / "net.onnx"))
    with pytest.raises(UserError, match=r"shape \[2, 3, 2, 2\], but got"):
        runner.run(wrong)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no ONNX file"):
        OrtRunner(tmp_path / "none.onnx")
    with pytest.raises(UserError, match="no ONNX file"):
        OrtRunner(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not onnx at all", None])
def test_not_onnx(tmp_path: Path, content: bytes | None) -> None:
    path = _save(tmp_path / "net.onnx")
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(UserError, match="not a complete ONNX file"):
        OrtRunner(path)


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="FooBar"):
        OrtRunner(_save(tmp_path / "net.onnx", op="FooBar"))


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"])],
        "net",
        [value("a", TensorProto.FLOAT, [1]), value("b", TensorProto.FLOAT, [1])],
        [value("c", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(UserError, match="takes 2 inputs"):
        OrtRunner(tmp_path / "two.onnx")


def test_torch_equals_the_module_and_puts_its_threads_back(x: np.ndarray) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Dropout(0.9))
    before = torch.get_num_threads()
    runner = TorchRunner(module, threads=before + 1)
    expected = module[1](torch.from_numpy(x).flatten(1)).detach().numpy()
    assert np.allclose(runner.run(x), expected, atol=1e-6)
    assert torch.get_num_threads() == before
    assert runner.name.startswith("torch ")


def test_torch_says_what_the_module_cannot_take(x: np.ndarray) -> None:
    before = torch.get_num_threads()
    with pytest.raises(UserError, match=r"cannot take float32 of shape \[2, 3, 2, 2\]"):
        TorchRunner(nn.Linear(7, 5), threads=before + 1).run(x)
    assert torch.get_num_threads() == before
