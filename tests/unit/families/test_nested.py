"""Nested levels made from settings: sizes, own tensors, and what each level trains and costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from elastic_export.checkpoints import save_supernet
from elastic_export.checkpoints.native import load_supernet
from elastic_export.elastic import Supernet, extract
from elastic_export.errors import UserError
from elastic_export.export import check_no_weight_slices, check_parity, export_fp32
from elastic_export.families import get_family
from elastic_export.families.nested.build import same_in_all_parts
from elastic_export.families.registry import family_config

VIT: dict[str, Any] = {
    "image_size": 16,
    "num_classes": 5,
    "network": {"arch": "vit", "patch_size": 4, "depth": 2},
    "levels": [
        {
            "sizes": {"embed": 8, "blocks.0.inner": 4, "inner": 8, "hidden": 12},
            "heads": 2,
            "overrides": ["cls_token", "blocks.0.norm1.bias", "blocks.1.attn.qkv.weight"],
        },
        {"sizes": {"embed": 12, "inner": 8, "hidden": 16}, "heads": 4, "overrides": ["head.bias"]},
        {"sizes": {"embed": 16, "inner": 16, "hidden": 24}, "heads": 4},
    ],
}
ROWS: dict[str, Any] = {
    **VIT,
    "levels": [
        {
            "sizes": {"embed": 8, "inner": 6, "hidden": 12},
            "heads": 3,
            "rows": {f"blocks.{i}.inner": [5, 0, 3, 9, 14, 2] for i in range(2)},
        },
        VIT["levels"][2],
    ],
}
RESNET: dict[str, Any] = {
    "image_size": 32,
    "num_classes": 5,
    "network": {
        "arch": "resnet",
        "block": "basic",
        "depths": [2, 1],
        "shortcuts": ["layer2.0"],
    },
    "levels": [
        {"sizes": {"stem": 4, "inner1": 6, "out": 8}, "overrides": ["bn1.running_mean", "fc.bias"]},
        {"sizes": {"stem": 8, "inner1": 8, "layer1.1.inner1": 12, "out": 16}},
    ],
}
VGG: dict[str, Any] = {
    "image_size": 20,
    "num_classes": 5,
    "network": {
        "arch": "vgg",
        "forms": [{"plan": "CCMC", "conv_bias": True}, {"plan": "CCMC"}],
        "fc": [6],
        "pool": 7,
    },
    "levels": [
        {
            "sizes": {"conv0": 4, "conv1": 5, "conv2": 6},
            "overrides": [f"features.{i}.bias" for i in (0, 3, 7)],
        },
        {"sizes": {"conv0": 8, "conv1": 8, "conv2": 8}},
    ],
}
CONFIGS = {"vit": VIT, "rows": ROWS, "resnet": RESNET, "vgg": VGG}


def make(raw: dict[str, Any]) -> Supernet:
    family = get_family("nested")
    net = Supernet.create(family, family_config(family, raw), seed=3)
    generator = torch.Generator().manual_seed(4)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.2)
    return net


def images(net: Supernet, n: int = 3) -> torch.Tensor:
    shape = net.family.input_shape(net.config)
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=CONFIGS)
def net(request: pytest.FixtureRequest) -> Supernet:
    return make(CONFIGS[request.param])


def test_levels_are_extracted_as_they_run_and_cost_what_is_counted(net: Supernet) -> None:
    for number in net.space.axes[0].choices:
        spec = net.spec(f"level{number}")
        with torch.no_grad():
            active, alone = net.eval()(spec, images(net)), extract(net, spec).module(images(net))
        assert torch.allclose(active, alone, rtol=1e-5, atol=1e-6)
    costs = net.costs([net.space.min(), net.space.max()])
    assert costs.macs[0] < costs.macs[1]
    assert costs.params[0] < costs.params[1]


def test_gradients_and_statistics_stay_in_what_a_level_reads(net: Supernet) -> None:
    spec = net.space.min()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.train()(spec, images(net)).square().sum().backward()
    rules = net.activate(spec).rules.values()
    support = {k: v for rule in rules for k, v in rule.support(net.store.tensors).items()}
    for name, parameter in net.named_parameters():
        if name in support:
            assert parameter.grad is not None
            assert not parameter.grad[~support[name]].any(), name
        else:
            assert parameter.grad is None, name
    for name, tensor in net.store.buffers.items():
        changed = tensor != before[name]
        inside = support.get(name, torch.zeros_like(changed))
        assert not (changed & ~inside).any(), name


def test_a_saved_supernet_is_read_back(net: Supernet, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_supernet(net, path)
    again = load_supernet(path)
    assert again.config == net.config
    spec = net.space.min()
    with torch.no_grad():
        assert torch.equal(again.eval()(spec, images(net)), net.eval()(spec, images(net)))


def test_own_tensors_start_as_slices(net: Supernet) -> None:
    fresh = Supernet.create(net.family, net.config, seed=1)
    stored = fresh.state_dict()
    for name in [n for n in stored if n.startswith("levels.")]:
        base = name.split(".", 2)[2]
        if base in stored:
            own = stored[name]
            assert torch.isin(own, stored[base]).all(), name


def test_layout_covers_what_is_stored(net: Supernet) -> None:
    layout = net.family.layout(net.config)
    assert {name: len(layout[name]) for name in net.state_dict()} == {
        name: tensor.dim() for name, tensor in net.state_dict().items()
    }


@pytest.mark.parametrize("name", ["vit", "vgg"])
def test_levels_are_exported_without_slicing_weights(name: str, tmp_path: Path) -> None:
    net = make(CONFIGS[name])
    module = extract(net, net.space.min()).module
    x = images(net, 1)
    path = export_fp32(module, x, tmp_path / "net.onnx").path
    assert check_no_weight_slices(path)["sliced"] == 0
    with torch.no_grad():
        assert check_parity(path, x.numpy(), module(x).numpy(), 1e-4)["relative_error"] <= 1e-4


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (VIT, {"levels": [{"sizes": {"embed": 8, "inner": 8}, "heads": 2}]}, "no size of blocks.0.hid"),
    (VIT, {"levels": [VIT["levels"][2], VIT["levels"][0]]}, "level 1 is wider in embed"),
    (VIT, {"levels": [VIT["levels"][1], VIT["levels"][0], VIT["levels"][2]]}, "narrower in embed"),
    (VIT, {"levels": [{**VIT["levels"][2], "heads": None}]}, "level 1 needs heads"),
    (VIT, {"levels": [{**VIT["levels"][2], "heads": 3}]}, "3 parts cannot share"),
    (VIT, {"levels": [{**VIT["levels"][1], "heads": 8}, VIT["levels"][2]]}, "8 heads do not fit"),
    (VIT, {"levels": []}, "at least 1 item"),
    (VIT, {"image_size": 18}, "not a multiple of patch_size"),
    (RESNET, {"network": {**RESNET["network"], "shortcuts": []}}, "first block of every stage"),
    (RESNET, {"image_size": 10**9}, "larger than can be computed"),
    (VGG, {"image_size": 1}, "too small for the poolings"),
    (VGG, {"network": {**VGG["network"], "forms": [{"plan": "C"}] * 3}}, "3 forms are given for 2"),
    (VGG, {"network": {**VGG["network"], "forms": [{"plan": "XC"}]}}, "plan"),
]


@pytest.mark.parametrize(("base", "change", "what"), BAD)
def test_settings_that_do_not_nest_are_refused(
    base: dict[str, Any], change: dict[str, Any], what: str
) -> None:
    with pytest.raises(UserError, match=what):
        family_config(get_family("nested"), {**base, **change})


def test_overrides_must_be_tensors_of_the_level() -> None:
    levels = [{**VIT["levels"][2], "overrides": ["blocks.9.norm1.bias"]}]
    with pytest.raises(UserError, match=r"no tensor blocks\.9\.norm1\.bias"):
        family_config(get_family("nested"), {**VIT, "levels": levels})


def test_a_plain_file_does_not_tell_levels() -> None:
    family = get_family("nested")
    with pytest.raises(UserError, match="elastoformer"):
        family.recognise({}, {})


def test_same_in_all_parts() -> None:
    full = tuple(range(8))
    assert same_in_all_parts([(1, 5), full], 2)
    assert not same_in_all_parts([(1, 4), full], 2)
    assert not same_in_all_parts([full], 3)
