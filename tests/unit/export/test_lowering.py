"""Lowered graphs are valid, compute the same, and hold nothing the old opset does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import timm
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from elastic_export.elastic import Supernet, extract
from elastic_export.engine import tensorrt_rtx
from elastic_export.errors import CheckFailed
from elastic_export.export import check_pattern_onnx, emit, emit_fp16, run_onnx
from elastic_export.export.files import load_model, save_model
from elastic_export.export.fp32 import export_fp32
from elastic_export.export.graph import insert_before
from elastic_export.export.half import to_half
from elastic_export.export.lowering import SUFFIX, lower, lower_file, pinned_nodes
from elastic_export.families import get_family
from elastic_export.families.registry import family_config


class Mixed(nn.Module):
    """Operators that changed between opsets 13 and 20, in one network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.LayerNorm((8, 12, 12))
        self.tanh = nn.GELU(approximate="tanh")
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardswish(self.conv(x))
        x = self.tanh(nn.functional.pad(self.norm(x), (1, 0, 2, 1)))
        low, high = x.split([3, 5], dim=1)
        x = torch.cat([high.amax(dim=(2, 3), keepdim=True) + high, low.abs()], dim=1)
        return self.head(nn.functional.gelu(x.mean(dim=(2, 3))))


class Norms(nn.Module):
    """Everything that squares and sums: LayerNorm, RMSNorm and the response norm of ConvNeXt V2."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 16), nn.Linear(16, 5)
        self.layer, self.rms = nn.LayerNorm(16, eps=1e-12), nn.RMSNorm(16, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x.flatten(2).movedim(1, -1))
        x = self.layer(x) + 0.1 * self.rms(x)
        response = torch.linalg.vector_norm(300 * x, dim=1, keepdim=True)
        return self.fc2(x * response / (response.mean(-1, keepdim=True) + 1e-6)).amax(1)


NETWORKS = ["mixed", "test_vit", "test_resnet", "test_convnext"]
FILES = [*((name, 18) for name in NETWORKS), ("mixed", 20)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    made = {}
    for name, opset in FILES:
        torch.manual_seed(0)
        net = Mixed() if name == "mixed" else timm.create_model(name)
        x = torch.randn(1, 3, 12, 12) if name == "mixed" else torch.randn(1, 3, 160, 160)
        path = tmp_path_factory.mktemp(name) / f"{opset}.onnx"
        made[name, opset] = export_fp32(net, x, path, opset=opset).path
    return made


@pytest.mark.parametrize(("name", "start"), FILES)
@pytest.mark.parametrize("opset", [13, 17])
def test_the_function_stays(
    exported: dict[tuple[str, int], Path], name: str, start: int, opset: int, tmp_path: Path
) -> None:
    before = exported[name, start]
    model = load_model(before)
    lower(model, opset)
    path = tmp_path / "low.onnx"
    save_model(model, path)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.opset_import[0].version == opset
    later = {"Gelu", "HardSwish", "LayerNormalization"} if opset < 14 else {"Gelu"}
    assert not later & {node.op_type for node in proto.graph.node}
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    wanted, found = run_onnx(before, x), run_onnx(path, x)
    assert np.abs(found - wanted).max() <= 2e-6 * np.abs(wanted).max()


def test_an_operator_the_runtime_lacks_is_decomposed_at_any_opset(
    exported: dict[tuple[str, int], Path],
) -> None:
    model = load_model(exported["test_vit", 18])
    notes = lower(model, 17, without={"LayerNormalization"})
    assert "LayerNormalization" not in {node.op_type for node in model.graph}
    assert "LayerNormalization were decomposed" in notes[0]


def test_what_has_no_old_form_is_named(tmp_path: Path) -> None:
    class Warp(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.grid_sample(x, x[:, :2].movedim(1, -1), align_corners=False)

    path = export_fp32(Warp(), torch.rand(1, 3, 8, 8), tmp_path / "warp.onnx", opset=18).path
    with pytest.raises(CheckFailed, match="is a GridSample, which opset 13 does not have"):
        lower(load_model(path), 13)


SMALL_VIT = {"image_size": 16, "patch_size": 8, "num_classes": 5, "heads": [2], "depth": [1]}
STAGE = {"depth": [1], "width": [8]}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {**SMALL_VIT, "width": [16], "mlp_ratio": [2], "layer_scale": True},
    "swin": {
        "image_size": 16,
        "patch_size": 2,
        "num_classes": 5,
        "width": [8],
        "window": 4,
        "stages": [{"depth": [2], "heads": [2]}, {"depth": [1], "heads": [2]}],
    },
    "convnext": {"image_size": 32, "num_classes": 5, "grn": True, "stages": [STAGE] * 4},
    "resnet": {
        "image_size": 32,
        "num_classes": 5,
        "stem": [8],
        "stages": [{**STAGE, "expand": [0.5]}] * 4,
    },
    "vgg": {
        "pool": 1,
        "image_size": 16,
        "num_classes": 5,
        "cfg": [[8], "M", [8], "M"],
        "fc": [[8]],
    },
    "ofa_mbv3": {"width_mult": 0.1, "depth_list": [1], "ks_list": [3]},
    "autoformer": {
        "image_size": 12,
        "patch_size": 6,
        "num_classes": 5,
        "super_width": 16,
        "change_qkv": False,
        "super_depth": 1,
        "super_heads": 1,
        "width": [16],
        "depth": [1],
        "heads": [1],
        "mlp_ratio": [2.0],
        "max_relative_position": 2,
    },
    "elasticvit": {
        "resolution": [32],
        "image_size": 32,
        "num_classes": 5,
        "stem_depth": [1],
        "stem_channels": [8],
        "stages": [
            {"kind": "C", "depth": [1], "channels": [8], "ratio": [2], "kernel": [3]},
            {"kind": "T", "depth": [1], "channels": [16], "v_scale": [1.0]},
        ],
        "head_dim": 8,
        "head_expand": 2,
        "head_hidden": 8,
    },
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_reaches_the_oldest_opset(name: str, tmp_path: Path) -> None:
    family = get_family(name)
    config = family_config(family, FAMILIES[name])
    supernet = Supernet.create(family, config, seed=1)
    spec = supernet.space.min()
    module = extract(supernet, spec).module
    x = torch.randn(1, *family.input_shape(config, spec))
    before = export_fp32(module, x, tmp_path / "new.onnx").path
    wanted = run_onnx(before, x.numpy())
    for opset, without in ((13, ()), (17, ("LayerNormalization",))):
        path = tmp_path / f"{opset}.onnx"
        lower_file(before, path, opset, without=without)
        onnx.checker.check_model(onnx.load(path), full_check=True)
        # Float rounding; the largest over 36 networks of all families was 7e-7.
        difference = np.abs(run_onnx(path, x.numpy()) - wanted).max()
        assert difference <= 2e-6 * np.abs(wanted).max(), opset


@pytest.fixture(scope="module")
def norms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The network of norms, new and lowered to 13."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("norms")
    new = export_fp32(Norms(), torch.randn(1, 16, 8, 8), folder / "new.onnx").path
    lower_file(new, folder / "old.onnx", 13)
    return new, folder / "old.onnx"


def test_what_overflows_fp16_is_marked_in_the_file(norms: tuple[Path, Path]) -> None:
    old = norms[1]
    pins = pinned_nodes(old)
    parts = ("mean", "centred", "squared", "variance", "shifted", "root", "normal")
    assert [name for name in pins if name.startswith("Layer")] == [
        f"LayerNormalization_0.{part}{SUFFIX}" for part in parts
    ]
    assert [name for name in pins if name.startswith("ReduceL2")] == [
        f"ReduceL2_0.{part}{SUFFIX}" for part in ("squared", "sum", "root")
    ]
    kinds = {n.name: n.op_type for n in onnx.load(old).graph.node}
    rms = [kinds[name] for name in pins if not name.startswith(("Layer", "ReduceL2"))]
    assert rms == ["Pow", "ReduceMean", "Add", "Sqrt", "Div"]
    lower_file(old, old.with_name("twice.onnx"), 13)
    assert pinned_nodes(old.with_name("twice.onnx")) == pins


def as_built(path: Path, *, obey: bool) -> ir.Model:
    """What a weakly typed builder makes of a file with FP16: half, but for the nodes it is told."""
    model = load_model(path)
    to_half(model)
    marked = {id(n) for n in model.graph if n.name and n.name.endswith(SUFFIX)}
    for node in [n for n in model.graph if obey and id(n) in marked]:
        for output in node.outputs:
            output.type = ir.TensorType(ir.DataType.FLOAT)
    for node in list(model.graph) if obey else ():
        wanted = ir.DataType.FLOAT if id(node) in marked else ir.DataType.FLOAT16
        for index, value in enumerate(node.inputs):
            floating = value is not None and value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
            if not floating or value.dtype == wanted or node.op_type == "Cast":
                continue
            cast = insert_before(
                node,
                "Cast",
                [value],
                name=f"{node.name}.in{index}",
                dtype=wanted,
                attributes={"to": int(wanted)},
            )
            node.replace_input_with(index, cast)
    return model


def test_no_norm_overflows_when_the_builder_obeys(norms: tuple[Path, Path], tmp_path: Path) -> None:
    """Activations of some thousands, whose squares are beyond FP16 (65504)."""
    x = 4e3 * np.random.default_rng(2).normal(size=(1, 16, 8, 8)).astype(np.float32)
    wanted = run_onnx(norms[0], x)
    found = {}
    for obey in (True, False):
        path = tmp_path / f"{obey}.onnx"
        save_model(as_built(norms[1], obey=obey), path)
        # ONNX Runtime's CPU kernels would run FP16 in FP32; the reference rounds every value.
        with np.errstate(all="ignore"):
            (found[obey],) = ReferenceEvaluator(str(path)).run(None, {"input": x})
    assert np.isfinite(wanted).all()
    assert np.abs(found[True] - wanted).max() <= 2e-2 * np.abs(wanted).max()
    assert not np.isfinite(found[False]).all() or (
        np.abs(found[False] - wanted).max() > 0.5 * np.abs(wanted).max()
    ), "without the pins this network is lost, so the pins are what keeps it"


@pytest.mark.skipif(tensorrt_rtx.available() is None, reason="tensorrt-rtx is not installed")
def test_nvidias_parser_names_layers_after_the_marked_nodes(norms: tuple[Path, Path]) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(0)
    assert trt.OnnxParser(network, logger).parse(norms[1].read_bytes())
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    marked = [layer.name for layer in layers if layer.name.endswith(SUFFIX)]
    assert sorted(marked) == sorted(pinned_nodes(norms[1]))


def test_a_typed_graph_says_itself_where_it_is_fp32(
    exported: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    source, path = exported["test_vit", 18], tmp_path / "half.onnx"
    emit_fp16(source, path, without={"LayerNormalization"})
    graph = onnx.load(path).graph
    marked = [n for n in graph.node if n.name.endswith(SUFFIX)]
    kinds = {v.name: v.type.tensor_type.elem_type for v in graph.value_info}
    assert len(marked) == 13 * 7
    assert {kinds[n.output[0]] for n in marked} == {onnx.TensorProto.FLOAT}
    x = np.random.default_rng(1).normal(size=(1, 3, 160, 160)).astype(np.float32)
    wanted = run_onnx(source, x)
    assert np.abs(run_onnx(path, x) - wanted).max() <= 2e-2 * np.abs(wanted).max()


@pytest.mark.parametrize("opset", [13, 17])
def test_float_weights_give_back_the_same_codes(tiny: Any, opset: int, tmp_path: Path) -> None:
    paths = {}
    for without in ((), ("int8-weights",)):
        path = paths[without] = tmp_path / f"{len(without)}.onnx"
        args = (tiny.exported.path, tiny.exported.table, tiny.record, path)
        report = emit("trt-weak", *args, opset=opset, without=without)
        onnx.checker.check_model(onnx.load(path), full_check=True)
    x = tiny.images[:1].numpy()
    assert np.array_equal(run_onnx(paths[()], x), run_onnx(paths["int8-weights",], x))
    check_pattern_onnx(paths["int8-weights",], tiny.exported.table, tiny.patterns)
    graph = onnx.load(paths["int8-weights",]).graph
    types = {i.name: i.data_type for i in graph.initializer}
    inverse = [n for n in graph.node if n.op_type == "DequantizeLinear"]
    assert all(len(n.input) == 3 and n.input[0] not in types for n in inverse)
    assert all(types[f"{name}.weight"] == onnx.TensorProto.FLOAT for name in report.int8)
    assert "quantized while the engine is built" in " ".join(report.notes)
    # TensorRT 8 wants a zero point for each scale even where the weights stay INT8.
    for node in onnx.load(paths[()]).graph.node:
        assert node.op_type != "DequantizeLinear" or len(node.input) == 3


def test_an_error_names_operator_node_and_target(tmp_path: Path) -> None:
    class Fold(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(1).tril()

    path = export_fp32(Fold(), torch.rand(1, 3, 8, 8), tmp_path / "fold.onnx", opset=18).path
    message = 'The node "Trilu_0" is a Trilu, which opset 13 does not have'
    with pytest.raises(CheckFailed, match=message) as caught:
        lower_file(path, tmp_path / "no.onnx", 13, target="jetson-nano@jp4.6")
    assert "jetson-nano@jp4.6 reads opset 13" in caught.value.what
    assert caught.value.fix
    assert not (tmp_path / "no.onnx").exists()
    with pytest.raises(CheckFailed, match="which the runtime does not know"):
        lower(load_model(path), 18, without={"CumSum"})
