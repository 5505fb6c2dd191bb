"""What other tools write from the same network: the contenders of the INT8 benchmark.

Tools that pin versions of ONNX or ONNX Runtime run as subprocesses in environments of their own
(``peers/``); what they write is measured with the ONNX Runtime of ours.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

__all__ = ["ENVIRONMENTS", "TUNED", "modelopt_legacy", "quantize_elsewhere", "static"]

ENVIRONMENTS = {"modelopt": "modelopt onnx", "nncf": "nncf"}
"""Name of an environment for ``--peer-venv`` to the contender that is made in it."""

DENSE = ["Conv", "MatMul", "Gemm"]
CONSTANT = {"MatMulConstBOnly": True}
FLOAT_OUT = {**CONSTANT, "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}

U8 = {"per_channel": True, "activation_type": QuantType.QUInt8}
S8 = {"per_channel": True, "activation_type": QuantType.QInt8}
QOPERATOR = {"quant_format": QuantFormat.QOperator}

TUNED: dict[str, dict[str, Any]] = {
    "U8S8, QDQ, all operators": U8,
    "U8S8, QOperator, all operators": {**U8, **QOPERATOR},
    "U8S8, QDQ, constant weights": {
        **U8,
        "op_types_to_quantize": DENSE,
        "extra_options": CONSTANT,
    },
    "U8S8, QOperator, constant weights": {
        **U8,
        **QOPERATOR,
        "op_types_to_quantize": DENSE,
        "extra_options": CONSTANT,
    },
    "U8S8, QDQ, constant weights, products left in float": {
        **U8,
        "op_types_to_quantize": DENSE,
        "extra_options": FLOAT_OUT,
    },
    "S8S8, QDQ, constant weights": {
        **S8,
        "op_types_to_quantize": DENSE,
        "extra_options": CONSTANT,
    },
    "S8S8, QDQ, constant weights, products left in float": {
        **S8,
        "op_types_to_quantize": DENSE,
        "extra_options": FLOAT_OUT,
    },
    "U8U8, QDQ, constant weights": {
        **U8,
        "weight_type": QuantType.QUInt8,
        "op_types_to_quantize": DENSE,
        "extra_options": CONSTANT,
    },
}


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The same images for quantize_static, one at a time."""

    def __init__(self, images: Tensor) -> None:
        self.rows = iter(images.split(1))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next image, or None at the end."""
        row = next(self.rows, None)
        return None if row is None else {"input": row.numpy()}


class BatchReader(Reader):
    """All images as one batch, for graphs of a fixed batch size above 1."""

    def __init__(self, images: Tensor) -> None:
        self.rows = iter([images])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the peers' own notes off the terminal."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def static(fp32: Path, images: Tensor, path: Path, batch: int, **settings: Any) -> Path:
    """Quantize with ONNX Runtime's own tool."""
    prepared = fp32.with_name("prepared.onnx")
    rows = images[:batch] if batch > 1 else images
    with quiet():
        if not prepared.exists():
            quant_pre_process(str(fp32), str(prepared))
        reader = Reader(rows) if batch == 1 else BatchReader(rows)
        quantize_static(str(prepared), str(path), reader, **settings)
    return path


def modelopt_legacy(module: nn.Module, images: Tensor, path: Path, batch: int) -> Path:
    """Quantize with ModelOpt and export with the TorchScript exporter."""
    import modelopt.torch.quantization as mtq

    with quiet(), torch.no_grad():
        twin = mtq.quantize(
            copy.deepcopy(module), mtq.INT8_DEFAULT_CFG, lambda model: model(images)
        )
        torch.onnx.export(
            twin,
            (images[:1].repeat(batch, 1, 1, 1),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["input"],
            output_names=["logits"],
        )
    return path


def quantize_elsewhere(
    peer: str, environment: Path, fp32: Path, images: Tensor, path: Path, *, transformer: bool
) -> Path:
    """Let a tool quantize an ONNX file in the virtual environment it is installed in.

    Args:
        peer: A name of ``ENVIRONMENTS``.
        environment: The folder of the virtual environment.
        fp32: The FP32 file; the tool gets a copy.
        images: float32 ``(N, C, H, W)`` for calibration.
        path: Where the result goes.
        transformer: Whether the network has attention.

    Raises:
        RuntimeError: The tool failed; the message is the last line it wrote.
    """
    folder = path.with_suffix("")
    folder.mkdir()
    shutil.copy(fp32, folder / "fp32.onnx")
    np.save(folder / "images.npy", images.numpy())
    script = Path(__file__).parent / "peers" / f"quantize_{peer}.py"
    kind = "transformer" if transformer else "cnn"
    done = subprocess.run(
        [environment / "bin" / "python", script, "fp32.onnx", "images.npy", path.absolute(), kind],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise RuntimeError(lines[-1])
    return path
