"""The family ``swin`` against timm's: windows of many sizes, every choice, export, settings."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import test_every_family as every
from references_windows import masked_swin, timm_swin
from timm.models.swin_transformer import SwinTransformer

from elastic_export.elastic import Supernet, extract
from elastic_export.elastic.macs import count_macs
from elastic_export.errors import UserError
from elastic_export.export import export_fp32
from elastic_export.families import get_family
from elastic_export.families.registry import family_config
from elastic_export.families.swin import SwinConfig, SwinStage
from elastic_export.sparsity import pattern_holds

CONFIGS = {
    # The last stage's map is one window.
    "even": SwinConfig(
        image_size=32,
        patch_size=2,
        num_classes=5,
        width=(8, 16),
        window=4,
        stages=(
            SwinStage(depth=(1,), heads=(1, 2), mlp_ratio=(2.0, 4.0)),
            SwinStage(depth=(1, 2), heads=(1, 2, 4), mlp_ratio=(2.5, 4.0)),
            SwinStage(depth=(1,), heads=(4,), mlp_ratio=(1.0, 2.0)),
        ),
    ),
    # Maps of 20, 10 and 5 places: an odd window, shifted by two.
    "odd": SwinConfig(
        image_size=20,
        patch_size=1,
        in_chans=1,
        num_classes=3,
        width=(12, 20),
        window=5,
        stages=(
            SwinStage(depth=(1, 2), heads=(2, 4), head_dim=5),
            SwinStage(depth=(1,), heads=(5,)),
            SwinStage(depth=(1,), heads=(2, 8), head_dim=6),
        ),
        qkv_bias=False,
        qk_scale=0.3,
        ape=True,
        patch_norm=False,
    ),
    # The window is larger than every map.
    "small": SwinConfig(
        image_size=24,
        patch_size=4,
        num_classes=7,
        width=(8,),
        window=7,
        stages=(SwinStage(depth=(1, 2), heads=(2,)), SwinStage(depth=(1,), heads=(1, 2))),
        ape=True,
    ),
}


@dataclass
class Case:
    """What the tests of every family take."""

    supernet: Supernet
    state: dict[str, Tensor]
    images: Tensor

    def reference(self, spec: Any) -> torch.nn.Module:
        """timm's network masked to a spec."""
        config = self.supernet.config
        assert isinstance(config, SwinConfig)
        return masked_swin(config, self.state, spec)


def make(config: SwinConfig, dtype: torch.dtype) -> Case:
    family = get_family("swin")
    supernet = Supernet.create(family, config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in supernet.state_dict().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    supernet.to("cpu", dtype)
    state = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    images = torch.randn(3, *family.input_shape(config), generator=generator).to(dtype)
    return Case(supernet, state, images)


@pytest.fixture(params=sorted(CONFIGS))
def case(request: pytest.FixtureRequest) -> Case:
    return make(CONFIGS[request.param], torch.float32)


@pytest.fixture(params=sorted(CONFIGS))
def exact(request: pytest.FixtureRequest) -> Case:
    return make(CONFIGS[request.param], torch.float64)


def test_extracted_equals_timm_masked_to_the_spec(exact: Case) -> None:
    net, some = exact.supernet, every.specs(exact, 4)
    costs = net.costs(some)
    for i, spec in enumerate(some):
        module = extract(net, spec).module
        with torch.no_grad():
            assert every.error(module(exact.images), exact.reference(spec)(exact.images)) <= 1e-10
        assert costs.params[i] == sum(p.numel() for p in module.parameters())
        assert costs.macs[i] == count_macs(module.float(), net.family.input_shape(net.config)).total


@pytest.mark.parametrize(
    "check",
    [
        every.test_the_active_network_is_the_extracted_one,
        every.test_extraction_copies,
        every.test_gradients_land_in_the_declared_support_alone,
        every.test_layout_covers_every_tensor_and_its_groups_move_together,
        every.test_skeletons_have_no_memory_and_run_no_initialisers,
        every.test_starting_values_are_a_function_of_the_seed,
    ],
    ids=lambda check: check.__name__.removeprefix("test_"),
)
def test_what_holds_for_every_family(case: Case, check: Any) -> None:
    check(case)


def test_a_train_step_moves_the_store_as_it_moves_the_plain_module(exact: Case) -> None:
    net = exact.supernet
    for spec in every.specs(exact, 3):
        module = extract(net, spec).module.train()
        module(exact.images).square().sum().backward()
        for parameter in net.parameters():
            parameter.grad = None
        net.train()(spec, exact.images).square().sum().backward()
        moved = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
        rules = net.activate(spec).rules
        for name, parameter in module.named_parameters():
            sources = [net.store.parameters[source] for source in rules[name].sources]
            read = rules[name].read(net.store.tensors)
            parts = torch.autograd.grad(read, sources, parameter.grad)
            for source, part in zip(rules[name].sources, parts, strict=True):
                moved[source] += part
        for name, parameter in net.named_parameters():
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert torch.allclose(found, moved[name], rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize(
    "sizes",
    [
        {"img_size": 56, "patch_size": 2, "depths": (2, 1, 2), "num_heads": (2, 4, 4)},
        {"img_size": 32, "patch_size": 2, "window_size": 4, "depths": (1, 3), "num_heads": (4, 1)},
        {"img_size": 16, "patch_size": 4, "depths": (2, 2), "num_heads": (1, 2), "qkv_bias": False},
    ],
    ids=["56", "32", "16"],
)
def test_sizes_are_read_from_shapes(sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    wanted = SwinTransformer(embed_dim=16, num_classes=4, mlp_ratio=2.5, **sizes).double().eval()
    with torch.no_grad():
        for parameter in wanted.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = {}
    for name, tensor in wanted.state_dict().items():
        stage, _, leaf = name.partition(".downsample.")
        name = f"layers.{int(stage[-1]) - 1}.downsample.{leaf}" if leaf else name
        ours[name.replace("head.fc.", "head.")] = tensor
    family = get_family("swin")
    shapes = {name: tuple(tensor.shape) for name, tensor in ours.items()}
    with pytest.raises(UserError, match="image size is not stored"):
        family.recognise(shapes, {})
    config = family.recognise(shapes, {"image_size": sizes["img_size"]})
    net = Supernet.create(family, config).to("cpu", torch.float64)
    net.load_state_dict(ours)
    x = torch.randn(2, 3, sizes["img_size"], sizes["img_size"], dtype=torch.float64)
    with torch.no_grad():
        got = extract(net, net.space.max()).module(x)
        assert float((got - wanted(x)).abs().max() / wanted(x).abs().max()) <= 1e-10


def test_files_tell_the_image_size_by_masks_or_positions() -> None:
    family = get_family("swin")
    for name, mask in (("even", True), ("odd", False)):
        config = CONFIGS[name]
        shapes = {n: tuple(t.shape) for n, t in family.stored(config).named_parameters()}
        if mask:
            shapes["layers.1.blocks.1.attn_mask"] = (4, 16, 16)
        assert family.input_shape(family.recognise(shapes, {}))[1] == config.image_size


def test_the_exported_graph_reads_no_table(tmp_path: Path) -> None:
    case = make(CONFIGS["even"], torch.float32)
    spec = case.supernet.space.max()
    module = extract(case.supernet, spec).module
    path = tmp_path / "net.onnx"
    export_fp32(module, case.images[:1], path, dynamic_batch=True)
    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    readers = {n.op_type for n in graph.node if weights & set(n.input)}
    assert readers <= {"Conv", "MatMul", "Gemm", "Add"}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = torch.from_numpy(session.run(None, {"input": case.images.numpy()})[0])
    with torch.no_grad():
        assert every.error(got, module(case.images)) <= 1e-5


def test_patterns_are_axes_of_every_linear_layer() -> None:
    raw = CONFIGS["even"].model_dump() | {
        "nm": ("1:4", "2:4", "dense"),
        "nm_of": {"layers.1.blocks.0.mlp.fc2": ("2:8",)},
    }
    net = Supernet.create(get_family("swin"), SwinConfig.model_validate(raw))
    assert SwinConfig.model_validate(net.config.model_dump(mode="json")) == net.config
    rng = np.random.default_rng(3)
    for spec in [net.space.min(), net.space.max(), *(net.space.sample(rng) for _ in range(4))]:
        one = extract(net, spec)
        weights = dict(one.module.named_parameters())
        assert one.patterns["layers.1.blocks.0.mlp.fc2.weight"] == "2:8"
        assert all(pattern_holds(weights[name], p) for name, p in one.patterns.items())
    costs = net.costs([net.space.min(), net.space.max()])
    assert costs.algorithmic_macs[0] < costs.hardware_macs[0] < costs.macs[0]
    assert costs.algorithmic_macs[1] < costs.macs[1]


def test_the_largest_network_is_timms() -> None:
    case = make(CONFIGS["even"], torch.float64)
    net = timm_swin(CONFIGS["even"], case.state)
    module = extract(case.supernet, case.supernet.space.max()).module
    with torch.no_grad():
        assert every.error(module(case.images), net(case.images)) <= 1e-10


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"image_size": 30}, "not a multiple of patch_size"),
        ({"image_size": 256}, "windows of 7 do not divide"),
        ({"image_size": 24, "window": 3}, "cannot be halved"),
        ({"width": [96, 48]}, "small to large"),
        ({"width": [100]}, "give head_dim"),
        ({"stages": []}, "at least 1"),
        ({"stages": [{"depth": [2, 1]}]}, "small to large"),
        ({"qk_scale": 0}, "greater than 0"),
        ({"nm": ["dense", "2:4"]}, "sparse to dense"),
        ({"nm_of": {"layers.0.blocks.2.attn.qkv": ["2:4"]}}, "no layer that can be sparse"),
        ({"width": [6], "stages": [{"heads": [1]}], "nm": ["2:4"]}, "multiples of its M"),
    ],
)
def test_impossible_settings(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        family_config(get_family("swin"), raw)


def test_other_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"not a Swin .*relative_position_bias_table is missing"):
        get_family("swin").recognise({"patch_embed.proj.weight": (8, 3, 4, 4)}, {})


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("patch_embed.proj.weight", (8, 48), "which no Swin's has"),
        ("layers.1.blocks.0.attn.relative_position_bias_table", (48, 2), "square window"),
        ("layers.1.blocks.0.attn.relative_position_bias_table", (49, 0), "which no Swin's has"),
        ("layers.1.blocks.0.mlp.fc1.weight", None, "has no tensor"),
        ("layers.1.blocks.999999999.mlp.fc1.weight", (8, 8), "Blocks are missing before"),
        ("layers.5.blocks.0.mlp.fc1.weight", (8, 8), "Blocks are missing before"),
        ("absolute_pos_embed", (1, 63, 8), "windows of 4|not a multiple|cannot be halved"),
    ],
)
def test_shapes_that_fit_no_swin(name: str, shape: tuple[int, ...] | None, said: str) -> None:
    family = get_family("swin")
    stored = family.stored(CONFIGS["even"]).named_parameters()
    shapes = {key: tuple(tensor.shape) for key, tensor in stored}
    shapes.pop(name, None)
    if shape is not None:
        shapes[name] = shape
    with pytest.raises(UserError, match=said):
        family.recognise(shapes, {"patch_size": 2} if "pos" in name else {"image_size": 32})
