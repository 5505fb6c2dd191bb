"""Run a file in ONNX Runtime on the CPU, for its result or for the values inside it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from elastic_export.errors import CheckFailed
from elastic_export.export.files import load_proto

__all__ = ["probe", "run_onnx"]


def run_onnx(path: Path, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a file in ONNX Runtime on the CPU with default options, one thread.

    A graph with a fixed batch size gets that many images at a time.

    Raises:
        CheckFailed: ONNX Runtime does not load the file or does not take the input.
    """
    return np.concatenate([found[0] for found in _run(str(path), Path(path).name, inputs)])


def probe(
    path: Path, names: Collection[str], inputs: NDArray[np.float32]
) -> Iterator[dict[str, NDArray]]:
    """Run a file and show values inside it, batch by batch.

    A value that is shown keeps ONNX Runtime from merging the operators around it; what each
    operator computes stays the same.

    Args:
        path: The ONNX file.
        names: Names of values in its graph.
        inputs: float32 ``(B, C, H, W)``; a fixed batch size is served that many at a time.

    Yields:
        Value name to its array, for each batch.

    Raises:
        CheckFailed: ONNX Runtime does not load the file or does not take the input.
        UserError: The file cannot be read.
    """
    model = load_proto(path)
    known = {output.name for output in model.graph.output}
    added = [name for name in dict.fromkeys(names) if name not in known]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in added)
    shown = [output.name for output in model.graph.output]
    for found in _run(model.SerializeToString(), Path(path).name, inputs):
        yield dict(zip(shown, found, strict=True))


def _run(model: str | bytes, name: str, inputs: NDArray[np.float32]) -> Iterator[list[NDArray]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        (source,) = session.get_inputs()
        batch = source.shape[0] if isinstance(source.shape[0], int) else len(inputs)
        for start in range(0, len(inputs), batch):
            yield session.run(None, {source.name: inputs[start : start + batch]})
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckFailed(
            f"ONNX Runtime cannot run {name}: {first}.",
            "Check the input's shape, and that the file is complete.",
        ) from error
