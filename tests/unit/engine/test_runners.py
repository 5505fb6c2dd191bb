from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from elastic_export.engine.runners import OrtRunner, TensorrtOptions, TensorrtRunner, TorchRunner
from elastic_export.engine.runners import ort as ort_module
from elastic_export.engine.runners.torch_module import fits_sparse_kernels
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


def test_what_runs_is_described(tmp_path: Path) -> None:
    found = OrtRunner(_save(tmp_path / "net.onnx"), threads=2).describe()
    assert found["providers"] == ["CPUExecutionProvider"]
    assert (found["device"], found["threads"], found["input"]) == ("cpu", 2, "tensor(float)")
    assert TorchRunner(nn.Linear(2, 2)).describe() == {
        "runner": "torch",
        "version": torch.__version__,
        "device": "cpu",
        "precision": "fp32",
        "channels_last": False,
        "threads": 1,
        "sparse_layers": 0,
    }


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is there"
)
@pytest.mark.parametrize(
    ("provider", "missing"),
    [("cuda", "no CUDAExecutionProvider"), ("tensorrt", "no TensorrtExecutionProvider")],
)
def test_a_missing_provider_says_what_to_install(
    tmp_path: Path, provider: ort_module.ProviderName, missing: str
) -> None:
    with pytest.raises(UserError, match=missing) as error:
        OrtRunner(_save(tmp_path / "net.onnx"), provider=provider)
    assert "pip install onnxruntime-gpu" in error.value.fix


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is there"
)
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_no_reason_to_use_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime lists CUDA, cannot start it, and would go on with the CPU."""
    here = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort_module.ort, "get_available_providers", lambda: here)
    with pytest.raises(UserError, match="fallback to CPU EP has been explicitly disabled") as error:
        OrtRunner(_save(tmp_path / "net.onnx"), provider="cuda")
    assert "driver" in error.value.fix


def test_the_tensorrt_provider_is_told_in_its_own_words(tmp_path: Path) -> None:
    options = TensorrtOptions(tmp_path, fp16=True, int8=True, sparse=True, level=4, workspace_mib=1)
    assert options.to_provider() == {
        "trt_fp16_enable": "1",
        "trt_int8_enable": "1",
        "trt_sparsity_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
        "trt_builder_optimization_level": "4",
        "trt_max_workspace_size": "1048576",
    }
    assert "trt_engine_cache_enable" not in TensorrtOptions().to_provider()
    with pytest.raises(ValueError, match="for the TensorRT provider"):
        OrtRunner(_save(tmp_path / "net.onnx"), options=options)


@pytest.mark.parametrize("precision", ["autocast", "half"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_torch_in_half_precision_leaves_the_module_alone(
    precision: Literal["autocast", "half"], channels_last: bool
) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(128, 5))
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 4)).astype(np.float32)
    wanted = TorchRunner(module).run(x)
    runner = TorchRunner(module, precision=precision, channels_last=channels_last)
    got = runner.run(x)
    assert got.dtype == np.float32
    assert 0 < np.abs(got - wanted).max() / np.abs(wanted).max() < 1e-2
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert precision in runner.name
    assert runner.describe()["channels_last"] is channels_last


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_torch_without_a_gpu() -> None:
    with pytest.raises(UserError, match="sees no GPU here"):
        TorchRunner(nn.Linear(2, 2), device="cuda")


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed"
)
def test_an_engine_without_tensorrt(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="TensorRT need its Python package"):
        TensorrtRunner(tmp_path / "net.engine")


def test_sparse_kernels_are_refused_where_torch_has_none() -> None:
    with pytest.raises(UserError, match="no 2:4 kernels for fp32 on cpu"):
        TorchRunner(nn.Linear(64, 32), sparse=True)


def test_which_weights_sparse_kernels_take() -> None:
    weight = torch.randn(32, 64)
    assert not fits_sparse_kernels(weight)
    weight.reshape(-1, 4)[:, [1, 3]] = 0
    assert fits_sparse_kernels(weight)
    assert not fits_sparse_kernels(weight[:16])
    assert not fits_sparse_kernels(torch.zeros(32, 32))
    # Two of four along the inputs, not along the outputs.
    assert not fits_sparse_kernels(weight.repeat(2, 1).T.contiguous())
