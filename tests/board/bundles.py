"""A bundle of real, tiny networks that any machine measures in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from elastic_export.config.transform import Transform
from elastic_export.engine.bundle import sample_file, write_bundle
from elastic_export.engine.device_plan import PLAN, Graph, device_plan
from elastic_export.engine.runners import OrtRunner
from elastic_export.measure.board.compose import SCRIPT, compose

__all__ = ["RELEASES", "make_bundle", "network"]

RELEASES = ("8.2.1", "8.5.2", "8.6.2", "10.3.0", "11.1.0")


def network(path: Path, scale: float = 1.0) -> None:
    """A real, tiny network: one product of 48 values with ten columns."""
    weight = np.random.default_rng(0).normal(size=(48, 10)).astype(np.float32) * scale
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"], "flat"),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"], "head"),
        ],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(weight, "weight")],
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))


def make_bundle(
    folder: Path,
    runtime: str = "onnxruntime",
    name: str = "tiny",
    *,
    strong: bool = True,
    pins: Sequence[str] = (),
    dla: int | None = None,
) -> Path:
    """Write a bundle; the device plan is the one that real bundles have.

    It holds FP32 and INT8, and for a DLA core the FP32 file that is built in FP16.
    """
    work = folder.parent / f"{folder.name}.work"
    work.mkdir()
    images = np.random.default_rng(1).normal(size=(3, 3, 4, 4)).astype(np.float32)
    files: dict[str, Path | bytes] = {SCRIPT: compose().encode()}
    logits = {}
    models = {"fp32": 1.0, "int8": 1.01} if dla is None else {"fp16": 1.0}
    for precision, scale in models.items():
        path = work / f"{precision}.onnx"
        network(path, scale)
        files[f"model.{precision}.onnx"] = path
        runner = OrtRunner(path)
        logits[precision] = np.concatenate([runner.run(image[None]) for image in images])
    files["sample.safetensors"] = sample_file(images, logits)
    graphs = {
        p: Graph(
            strong, sparse=dla is None, quantized=p == "int8", half=p != "fp32", pins=pins, dla=dla
        )
        for p in logits
    }
    files[PLAN] = device_plan(graphs)
    write_bundle(
        folder,
        manifest_fields={
            "name": name,
            "target": "host-cpu@ort",
            "runtime": {"name": runtime, "version": "10.3"},
            "models": {p: f"model.{p}.onnx" for p in logits},
            "descendant": {},
            "inputs": [{"name": "input", "dtype": "float32", "shape": [1, 3, 4, 4]}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": [1, 10]}],
            "transform": Transform(size=4, channels=3, mean=(0, 0, 0), std=(1, 1, 1)),
            "sample": {
                "file": "sample.safetensors",
                "images": 3,
                "tolerance": dict.fromkeys(logits, 1e-4),
            },
            "versions": {},
        },
        files=files,
    )
    return folder
