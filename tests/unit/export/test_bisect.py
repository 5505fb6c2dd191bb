"""Damage one thing in a real file, and exactly that layer is named."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from elastic_export.errors import CheckFailed
from elastic_export.export import (
    check_activations,
    check_parity,
    emit,
    emit_fp16,
    export_fp32,
    first_bad_layer,
    layer_errors,
)
from elastic_export.export.reference import rounded_like

TOLERANCE = {"plain": 1e-4, "fp16": 2e-2}
INT8_TOLERANCE = 1e-1
FORMS = ("plain", "fp16", "ort-cpu", "ort-trt", "trt-strong", "trt-weak", "trt-weak@13")
INT8_FORMS = FORMS[2:]
RESNET_INT8 = (("resnet", "ort-cpu"), ("resnet", "trt-strong"))
ROUNDING = {"plain": 5e-6, "fp16": 2e-3, "trt-strong": 2e-3}
"""Largest error of a layer on its own that rounding makes; elsewhere the order of sums (5e-5)."""


class File:
    """A flavour of a case: the file, what torch says of it, and its allowed error."""

    def __init__(self, case, form: str, folder: Path) -> None:
        flavour, _, opset = form.partition("@")
        self.case, self.form = case, form
        self.table, self.images = case.exported.table, case.images.numpy()
        self.path = folder / f"bisect.{id(case)}.{form}.onnx"
        self.module: nn.Module = case.module
        self.tolerance = TOLERANCE.get(form, INT8_TOLERANCE)
        if form == "plain":
            self.path = case.exported.path
        elif form == "fp16":
            emit_fp16(case.exported.path, self.path)
        else:
            number = int(opset) if opset else None
            emit(flavour, case.exported.path, self.table, case.record, self.path, opset=number)
            self.module = rounded_like(case.module, case.record, flavour)

    def loudest(self, node: str) -> int:
        """The input channel of a layer with the largest values."""
        modules = {entry.module for entry in self.table.entries.values()}
        layer = self.case.module.get_submodule(node if node in modules else node.rpartition(".")[0])
        seen: list[torch.Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with torch.no_grad():
            self.case.module(self.case.images)
        handle.remove()
        values = seen[0].movedim(1, -1) if isinstance(layer, nn.Conv2d) else seen[0]
        return int(values.abs().flatten(0, -2).mean(0).argmax())

    def first_bad(self, path: Path | None = None):
        return first_bad_layer(
            path or self.path, self.module, self.table, self.images, self.tolerance
        )


@pytest.fixture(scope="module")
def file_of(request, folder) -> Callable[[str, str], File]:
    return cache(lambda network, form: File(request.getfixturevalue(network), form, folder))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("network", ["tiny", "resnet", "swin", "elasticvit"])
def test_a_sound_file_has_no_bad_layer(network, form, file_of):
    file = file_of(network, form)
    assert file.first_bad() is None
    errors = layer_errors(file.path, file.module, file.table, file.images)
    names = {error.name for error in errors}
    modules = {entry.module for entry in file.table.entries.values()}
    assert {n if n in modules else n.rpartition(".")[0] for n in names} == modules
    # The kernel of a strided first convolution is rounded in another order (ort_cpu.stems).
    own = [error.own for error in errors[form == "ort-cpu" :]]
    assert max(own) <= ROUNDING.get(form, 5e-5), "a layer is exact on its own"
    int8 = {error.name for error in errors if error.kind.startswith("INT8")}
    assert bool(int8) == (form in INT8_FORMS)


class Graph:
    """An ONNX file that is damaged."""

    def __init__(self, path: Path) -> None:
        self.model = onnx.load(str(path))
        self.nodes = {node.name: node for node in self.model.graph.node}
        self.makers = {out: node for node in self.model.graph.node for out in node.output}
        self.tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.tensors[name]).copy()

    def put(self, name: str, array: np.ndarray) -> None:
        self.tensors[name].CopyFrom(numpy_helper.from_array(array, name))

    def weight(self, layer: str) -> tuple[str, str | None]:
        """Names of the stored weight and, where it is INT8, of its scales."""
        node = self.nodes[layer]
        if node.op_type == "MatMulIntegerToFloat":
            return node.input[1], node.input[3]
        made = self.makers.get(node.input[1])
        if made is None:
            return node.input[1], None
        return made.input[0], made.input[1]

    def source(self, layer: str) -> tuple[onnx.NodeProto, int, int]:
        """The node with scale and zero point of a layer's input, and which inputs they are."""
        node = self.nodes[layer]
        if node.op_type == "MatMulIntegerToFloat":
            return node, 2, 4
        return self.makers[node.input[0]], 1, 2


def flip_one_weight(graph: Graph, layer: str, loud: int = 0) -> None:
    """Change the sign of the largest weight of the input channel that is loudest."""
    name, _ = graph.weight(layer)
    array = graph.array(name)
    conv = graph.nodes[layer].op_type == "Conv"
    # Channels of the input lie along axis 1 of a Conv, 0 of a MatMul, and 1 of a transposed Gemm.
    transposed = graph.nodes[layer].op_type == "Gemm"
    channel = np.moveaxis(array, 1 if conv or transposed else 0, 0)[loud]
    place = np.unravel_index(np.abs(channel.astype(np.float32)).argmax(), channel.shape)
    channel[place] = -channel[place]
    graph.put(name, array)


def double_one_weight_scale(graph: Graph, layer: str) -> None:
    _, name = graph.weight(layer)
    array = graph.array(name)
    array[array.astype(np.float32).argmax()] *= 2
    graph.put(name, array)


def quarter_the_input_scale(graph: Graph, layer: str) -> None:
    node, scale, _ = graph.source(layer)
    graph.put(node.input[scale], graph.array(node.input[scale]) / np.float16(4))


def move_the_zero_point(graph: Graph, layer: str) -> None:
    """Only what reads the integers is wrong; TensorRT's flavours share one zero, so it is new."""
    node, _, zero = graph.source(layer)
    moved = graph.array(node.input[zero])
    moved = np.asarray(moved + 30 if moved < 128 else moved - 30, moved.dtype)
    graph.model.graph.initializer.append(numpy_helper.from_array(moved, "moved"))
    node.input[zero] = "moved"


FLOAT_DAMAGE = (flip_one_weight,)
INT8_DAMAGE = (
    flip_one_weight,
    double_one_weight_scale,
    quarter_the_input_scale,
    move_the_zero_point,
)


@pytest.mark.parametrize(
    ("network", "form"),
    [*(("tiny", form) for form in FORMS), ("resnet", "plain"), *RESNET_INT8],
)
def test_the_damaged_layer_is_named(network, form, file_of, tmp_path):
    file = file_of(network, form)
    errors = layer_errors(file.path, file.module, file.table, file.images)
    rounded = [error.name for error in errors if error.kind.startswith("INT8")]
    names = rounded or [error.name for error in errors]
    for damage in INT8_DAMAGE if rounded else FLOAT_DAMAGE:
        for layer in (names[1], names[len(names) // 2], names[-2]):
            graph = Graph(file.path)
            if damage is flip_one_weight:
                flip_one_weight(graph, layer, file.loudest(layer))
            else:
                damage(graph, layer)
            onnx.save(graph.model, str(tmp_path / "damaged.onnx"))
            bad = file.first_bad(tmp_path / "damaged.onnx")
            assert bad is not None, (damage.__name__, layer)
            assert bad.table().splitlines()[-1].startswith(bad.name)
            if damage is quarter_the_input_scale:
                # All that read the same integers are wrong, and the first of them is named. In
                # ort-cpu the integers may come from other integers: then it is what it reads.
                assert bad.name in {layer, *_readers_of_the_same(graph, layer, rounded)}
                continue
            assert bad.name == layer, (damage.__name__, bad.table())
            assert bad.cause == "layer"
            assert bad.layer.own > 5 * max((e.own for e in bad.before[1:]), default=0.0)


def _readers_of_the_same(graph: Graph, layer: str, names: list[str]) -> set[str]:
    node, scale, _ = graph.source(layer)
    wanted = node.input[scale]
    sources = {name: graph.source(name) for name in names}
    return {name for name, (other, at, _) in sources.items() if other.input[at] == wanted}


@pytest.mark.parametrize("form", INT8_FORMS)
def test_swapped_scales_name_the_first_of_both(form, file_of, tmp_path):
    file = file_of("tiny", form)
    graph = Graph(file.path)
    scales = {}
    for error in layer_errors(file.path, file.module, file.table, file.images):
        if error.kind.startswith("INT8"):
            node, at, _ = graph.source(error.name)
            scales[error.name] = node.input[at]
    value = {layer: float(graph.array(name)) for layer, name in scales.items()}
    pairs = [(a, b) for number, a in enumerate(value) for b in list(value)[number + 1 :]]
    first, second = max(pairs, key=lambda pair: value[pair[0]] / value[pair[1]])
    assert value[first] > 1.8 * value[second], "the first of them is clipped"
    one, two = graph.array(scales[first]), graph.array(scales[second])
    graph.put(scales[first], two)
    graph.put(scales[second], one)
    onnx.save(graph.model, str(tmp_path / "swapped.onnx"))
    bad = file.first_bad(tmp_path / "swapped.onnx")
    assert bad.name in {first, *_readers_of_the_same(graph, first, list(scales))}


@pytest.mark.parametrize("form", ["plain", "ort-cpu", "trt-strong"])
def test_what_lies_between_layers_is_told_apart(form, file_of, tmp_path):
    """A wrong LayerNorm leaves every layer right on its own."""
    file = file_of("tiny", form)
    graph = Graph(file.path)
    name = "blocks.1.norm2.weight"
    graph.put(name, graph.array(name) * np.float16(3))
    onnx.save(graph.model, str(tmp_path / "norm.onnx"))
    bad = file.first_bad(tmp_path / "norm.onnx")
    assert (bad.name, bad.cause) == ("blocks.1.fc1", "input")
    assert "reads something wrong" in bad.sentence()


@pytest.mark.parametrize("network", ["swin", "elasticvit"])
def test_layers_whose_tokens_and_channels_were_moved(network, file_of, tmp_path):
    file = file_of(network, "ort-cpu")
    errors = layer_errors(file.path, file.module, file.table, file.images)
    parts = [error.name for error in errors if error.name.endswith(".1") and "INT8" in error.kind]
    rounded = [error.name for error in errors if error.kind == "INT8 MatMulIntegerToFloat"]
    for layer in (parts[-1], rounded[len(rounded) // 2]):
        graph = Graph(file.path)
        flip_one_weight(graph, layer, file.loudest(layer))
        onnx.save(graph.model, str(tmp_path / "damaged.onnx"))
        bad = file.first_bad(tmp_path / "damaged.onnx")
        assert bad is not None
        assert bad.name == layer


def test_channels_of_zeros_are_known_by_their_bias(new_tiny, take_record, tmp_path):
    """A dead head leaves nothing of a projection but biases, and the parts are still compared."""
    module = new_tiny()
    with torch.no_grad():
        for start in (0, 32, 64):
            module.blocks[0].qkv.weight[start : start + 16] = 0
    images = torch.randn(2, 3, 32, 32)
    exported = export_fp32(module, images[:1], tmp_path / "dead.onnx")
    record = take_record(module, images)
    emit("ort-cpu", exported.path, exported.table, record, tmp_path / "int8.onnx")
    twin = rounded_like(module, record, "ort-cpu")
    errors = layer_errors(tmp_path / "int8.onnx", twin, exported.table, images.numpy())
    own = {error.name: error.own for error in errors}
    assert max(own[f"blocks.0.qkv.{part}"] for part in "qkv") < 5e-5


def test_int8_attention_leaves_layers_exact(tiny, tmp_path):
    table, images = tiny.exported.table, tiny.images.numpy()
    path, told = tmp_path / "int8.onnx", {"attention": "int8"}
    report = emit("trt-strong", tiny.exported.path, table, tiny.record, path, **told)
    assert len(report.int8_attentions) == 2
    twin = rounded_like(tiny.module, tiny.record, "trt-strong", **told)
    assert first_bad_layer(path, twin, table, images, INT8_TOLERANCE) is None


def test_nan_is_named_by_layer(file_of, tmp_path):
    file = file_of("tiny", "plain")
    graph = Graph(file.path)
    array = graph.array("blocks.0.fc2.weight")
    array[3, 5] = np.nan
    graph.put("blocks.0.fc2.weight", array)
    onnx.save(graph.model, str(tmp_path / "nan.onnx"))
    bad = file.first_bad(tmp_path / "nan.onnx")
    assert bad.name == "blocks.0.fc2"
    assert np.isnan(bad.layer.own)
    with pytest.raises(CheckFailed, match=r'is NaN: MatMul "blocks\.0\.fc2"'):
        check_activations(tmp_path / "nan.onnx", file.images)
    assert check_activations(file.path, file.images)["largest"] > 1
    graph = Graph(file.path)
    graph.put("blocks.1.norm1.bias", np.full(32, np.nan, np.float32))
    onnx.save(graph.model, str(tmp_path / "nan.onnx"))
    bad = file.first_bad(tmp_path / "nan.onnx")
    assert (bad.name, bad.cause) == ("blocks.1.qkv", "input")
    with pytest.raises(CheckFailed, match=r'is NaN: LayerNorm.* behind "blocks\.0\.fc2"'):
        check_activations(tmp_path / "nan.onnx", file.images)


def test_a_failed_parity_check_names_the_layer(file_of, tmp_path):
    file = file_of("tiny", "ort-cpu")
    graph = Graph(file.path)
    double_one_weight_scale(graph, "head")
    onnx.save(graph.model, str(tmp_path / "damaged.onnx"))
    named = {"module": file.module, "table": file.table}
    logits = file.case.logits
    with pytest.raises(CheckFailed, match=r'The first bad layer is "head" \(INT8 MatMul') as caught:
        check_parity(tmp_path / "damaged.onnx", file.images, logits, INT8_TOLERANCE, **named)
    assert "is allowed and" in str(caught.value)
    with pytest.raises(CheckFailed, match="Each layer keeps to its share"):
        check_parity(file.path, file.images, logits + 1, INT8_TOLERANCE, **named)
    with pytest.raises(CheckFailed, match="differs from torch") as caught:
        check_parity(tmp_path / "damaged.onnx", file.images, logits, INT8_TOLERANCE)
    assert "layer" not in str(caught.value), "without the module nothing is said of layers"


def test_a_file_that_lacks_a_layer(file_of, tmp_path):
    file = file_of("tiny", "plain")
    graph = Graph(file.path)
    graph.nodes["blocks.0.fc2"].name = "other"
    onnx.save(graph.model, str(tmp_path / "renamed.onnx"))
    with pytest.raises(CheckFailed, match=r'no node for the layer "blocks\.0\.fc2"'):
        file.first_bad(tmp_path / "renamed.onnx")
