"""The kernels read from ONNX files: their work against the counter, their number by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from elastic_export.config.fused_layer import FusedLayer, with_batch
from elastic_export.elastic import Supernet, extract
from elastic_export.elastic.macs import count_macs
from elastic_export.errors import UserError
from elastic_export.export import emit, export_fp32
from elastic_export.export.fused_layers import fused_layers, quantized_nodes
from elastic_export.export.lowering import lower_file
from elastic_export.families import get_family
from elastic_export.families.convnext import ConvNextConfig, ConvNextStage
from elastic_export.families.vgg import VggConfig


def kinds(layers: list[FusedLayer]) -> dict[str, int]:
    return dict(Counter(layer.kind for layer in layers))


@pytest.mark.parametrize("name", ["resnet", "family_vit", "swin", "elasticvit"])
def test_macs_are_those_of_the_counter(request, name: str) -> None:
    case = request.getfixturevalue(name)
    wanted = count_macs(case.module, tuple(case.images.shape[1:]))
    for turing in (True, False):
        layers = fused_layers(case.exported.path, turing=turing)
        assert sum(layer.macs for layer in layers) == wanted.total
        for layer in layers:
            if layer.kind in ("conv", "gemm"):
                assert wanted.layers[layer.name] == layer.macs


CONVOLUTIONAL = {
    "convnext": ConvNextConfig(
        image_size=32,
        num_classes=5,
        stages=(
            ConvNextStage(depth=(2,), width=(8,), mlp_ratio=(2.0,)),
            ConvNextStage(depth=(1,), width=(16,), mlp_ratio=(2.0,)),
        ),
    ),
    "vgg": VggConfig(
        image_size=32, num_classes=5, cfg=((8,), "M", (16,), "M"), pool=2, fc=((16,),)
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_other_families_agree_with_the_counter_too(name: str, tmp_path: Path) -> None:
    family = get_family(name)
    supernet = Supernet.create(family, CONVOLUTIONAL[name], seed=1)
    module = extract(supernet, supernet.space.max()).module.eval()
    shape = family.input_shape(CONVOLUTIONAL[name])
    export_fp32(module, torch.zeros(1, *shape), tmp_path / "one.onnx")
    layers = fused_layers(tmp_path / "one.onnx")
    assert sum(layer.macs for layer in layers) == count_macs(module, shape).total


def test_a_transformer_block_is_seven_kernels(tiny) -> None:
    layers = fused_layers(tiny.exported.path)
    # Two blocks of two norms, qkv, attention, proj, fc1 and fc2; patches, their transposition with
    # class token and positions, the last norm, the classifier.
    assert kinds(layers) == {"conv": 1, "movement": 1, "norm": 5, "gemm": 9, "attention": 2}
    apart = fused_layers(tiny.exported.path, turing=False)
    # Its GELU is a kernel by itself too, and query, key and value are moved together.
    assert kinds(apart) == {
        **{"conv": 1, "movement": 3, "norm": 5, "gemm": 9},
        **{"product": 4, "softmax": 2, "elementwise": 2},
    }
    attention = next(layer for layer in layers if layer.kind == "attention")
    assert (attention.m, attention.n, attention.k, attention.groups) == (17, 17, 16, 2)
    assert attention.macs == 2 * 2 * 17 * 17 * 16
    assert attention.output == 17 * 32
    assert [read.elements for read in attention.reads] == [17 * 96]


def test_residual_and_activation_go_into_their_convolution(resnet) -> None:
    layers = fused_layers(resnet.exported.path)
    assert set(kinds(layers)) == {"conv", "pool", "gemm"}
    assert all("Relu" not in layer.name and "Add" not in layer.name for layer in layers)
    joined = [layer for layer in layers if any(n.startswith("Add") for n in layer.nodes)]
    assert joined
    for layer in joined:
        assert len(layer.reads) == 2
        assert all(read.elements > 0 for read in layer.reads)


class Gated(nn.Module):
    """SiLU, squeeze-and-excite, a joined pair of branches, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.less, self.more = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.deep(nn.functional.silu(self.stem(x))))
        scale = self.more(nn.functional.relu(self.less(x.mean((2, 3), keepdim=True))))
        x = x * scale.sigmoid()
        return self.head(torch.cat([self.left(x), self.right(x).relu()], 1).mean((2, 3)))


def test_what_needs_a_kernel_of_its_own(tmp_path: Path) -> None:
    module = Gated().eval()
    export_fp32(module, torch.zeros(1, 3, 8, 8), tmp_path / "gated.onnx")
    layers = fused_layers(tmp_path / "gated.onnx")
    # The gate multiplies a larger tensor than its convolution writes; joined branches cost nothing.
    assert kinds(layers) == {"conv": 6, "pool": 2, "elementwise": 1, "gemm": 1}
    named = {layer.name: layer for layer in layers}
    assert (named["stem"].m, named["stem"].n, named["stem"].k) == (64, 16, 27)
    assert (named["deep"].n, named["deep"].k, named["deep"].groups) == (1, 9, 16)
    assert named["stem"].weights == 16 * 27 + 16
    assert [layer.name for layer in layers if layer.int8] == ["right"]
    assert not named["stem"].eligible_2_4  # three channels
    assert not named["deep"].eligible_2_4  # grouped
    assert sum(layer.macs for layer in layers) == count_macs(module, (3, 8, 8)).total
    old = fused_layers(tmp_path / "gated.onnx", turing=False)
    # Each SiLU is a kernel before Turing, as is the gate with its Sigmoid; ReLU is not.
    assert kinds(old)["elementwise"] == 3


def test_what_a_lowering_writes_out_is_fused_again(tiny, tmp_path: Path) -> None:
    lower_file(tiny.exported.path, tmp_path / "old.onnx", 13)
    for turing in (True, False):
        clean = fused_layers(tiny.exported.path, turing=turing)
        lowered = fused_layers(tmp_path / "old.onnx", turing=turing)
        assert kinds(lowered) == kinds(clean)
        assert [layer.macs for layer in lowered] == [layer.macs for layer in clean]


def test_sparsity_is_read_from_the_weights(tiny) -> None:
    layers = fused_layers(tiny.exported.path)
    sparse = {f"{layer.name}.weight" for layer in layers if layer.sparse}
    assert set(tiny.patterns) == sparse
    assert all(layer.eligible_2_4 for layer in layers if layer.sparse)
    dense = {layer.name for layer in layers if layer.kind == "gemm" and not layer.sparse}
    assert "head" in dense


def test_a_batch_grows_all_but_the_weights(tiny, tmp_path: Path) -> None:
    export_fp32(tiny.module, tiny.images[:3], tmp_path / "three.onnx")
    real = fused_layers(tmp_path / "three.onnx")
    grown = with_batch(fused_layers(tiny.exported.path), 3)
    for a, b in zip(real, grown, strict=True):
        assert (a.macs, a.input, a.output) == (b.macs, b.input, b.output)
        assert a.weights == b.weights or a.macs == 0  # the class token is stored for each image
        assert (a.m, a.n, a.k, a.groups, a.int8) == (b.m, b.n, b.k, b.groups, b.int8)


def test_layers_are_json(tiny) -> None:
    for layer in fused_layers(tiny.exported.path):
        assert FusedLayer.model_validate_json(layer.model_dump_json()) == layer


@pytest.mark.parametrize("flavour", ["trt-weak", "trt-strong", "ort-cpu"])
def test_flavours_are_refused_and_tell_their_layers(tiny, tmp_path: Path, flavour: str) -> None:
    path = tmp_path / "int8.onnx"
    emit(flavour, tiny.exported.path, tiny.exported.table, tiny.record, path)
    with pytest.raises(UserError, match="INT8 flavour") as caught:
        fused_layers(path)
    assert "plain file" in caught.value.fix
    assert "bundle" in caught.value.fix
    if flavour != "ort-cpu":
        shapes = {layer.name for layer in fused_layers(tiny.exported.path) if layer.int8}
        assert quantized_nodes(path) == shapes


def test_an_open_batch_is_refused(tiny, tmp_path: Path) -> None:
    export_fp32(tiny.module, tiny.images[:1], tmp_path / "open.onnx", dynamic_batch=True)
    with pytest.raises(UserError, match="leaves a dimension open"):
        fused_layers(tmp_path / "open.onnx")
