"""AttentiveNAS / AlphaNet against an independent rewrite on slices, and its published sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from elastic_export.config.transform import Transform
from elastic_export.elastic import Supernet, extract
from elastic_export.elastic.fold import fold_batchnorm
from elastic_export.errors import UserError
from elastic_export.export import check_no_weight_slices, check_parity, export_fp32
from elastic_export.families.alphanet import AlphaNet, AlphaNetConfig
from elastic_export.families.alphanet.config import AlphaNetStage, inner_width
from elastic_export.families.counters.alphanet import alphanet_mflops, alphanet_params
from elastic_export.families.registry import family_config
from elastic_export.space import Spec


def stage(**changes: Any) -> AlphaNetStage:
    usual = {
        "width": (8, 16),
        "depth": (1, 2),
        "kernel_size": (3, 5),
        "expand_ratio": (4, 6),
        "stride": 2,
        "se": True,
    }
    return AlphaNetStage(**{**usual, **changes})


CONFIGS = {
    "v3": AlphaNetConfig(
        image_size=40,
        resolution=(20, 33, 40),
        num_classes=5,
        stem=(8, 16),
        stages=(
            stage(expand_ratio=(1,), stride=1, se=False),
            stage(),
            stage(width=(16, 24), kernel_size=(1, 3, 7), act="h_swish"),
            stage(depth=(1,), stride=1, act="relu6", se=False),
        ),
        head=(12, 20),
    ),
    "plain head": AlphaNetConfig(
        image_size=24,
        resolution=(24,),
        num_classes=3,
        in_chans=1,
        stem=(16,),
        stem_stride=1,
        stem_act="relu",
        stages=(stage(width=(16, 32), depth=(2, 3), expand_ratio=(1, 2, 3.5)), stage()),
        head=(16, 24),
        v3_head=False,
        bn_eps=1e-3,
    ),
}


def filled(config: AlphaNetConfig) -> Supernet:
    supernet = Supernet.create(AlphaNet(), config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in supernet.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    supernet.to("cpu", torch.float64)
    return supernet


def some_specs(supernet: Supernet, n: int = 4) -> list[Spec]:
    rng, space = np.random.default_rng(3), supernet.space
    return [space.min(), space.max(), *(space.sample(rng) for _ in range(n))]


ACTS = {
    "swish": lambda x: x * x.sigmoid(),
    "h_swish": lambda x: x * F.relu6(x + 3) / 6,
    "relu": F.relu,
    "relu6": F.relu6,
}


def reference(config: AlphaNetConfig, t: dict[str, Tensor], spec: Spec, x: Tensor) -> Tensor:
    """What the systems' static network does, on slices of the stored tensors."""

    def norm(name: str, x: Tensor) -> Tensor:
        leaves = ("running_mean", "running_var", "weight", "bias")
        parts = [t[f"{name}.{leaf}"][: x.shape[1]] for leaf in leaves]
        return F.batch_norm(x, *parts, False, 0.0, config.bn_eps)

    def point(name: str, x: Tensor, out: int) -> Tensor:
        bias = t.get(f"{name}.bias")
        weight = t[f"{name}.weight"][:out, : x.shape[1]]
        return F.conv2d(x, weight, None if bias is None else bias[:out])

    stem = int(spec["stem.width"])
    x = F.conv2d(x, t["conv_stem.weight"][:stem], stride=config.stem_stride, padding=1)
    x = ACTS[config.stem_act](norm("bn_stem", x))
    for s, choices in enumerate(config.stages):
        act, k = ACTS[choices.act], int(spec[f"stages.{s}.kernel_size"])
        out, ratio = int(spec[f"stages.{s}.width"]), spec[f"stages.{s}.expand_ratio"]
        for b in range(int(spec[f"stages.{s}.depth"])):
            p, stride = f"stages.{s}.{b}.", 1 if b else choices.stride
            inner, skip, y = inner_width(round(x.shape[1] * ratio)), x, x
            if ratio != 1:
                y = act(norm(p + "bn1", point(p + "conv_pw", y, inner)))
            kernel = t[p + "conv_dw.weight"][:inner]
            start = kernel.shape[-1] // 2 - k // 2
            kernel = kernel[:, :, start : start + k, start : start + k]
            y = F.conv2d(y, kernel, stride=stride, padding=k // 2, groups=inner)
            y = act(norm(p + "bn2", y))
            if choices.se:
                z = point(
                    p + "se.conv_reduce", y.mean((2, 3), keepdim=True), inner_width(inner // 4)
                )
                y = y * (F.relu6(point(p + "se.conv_expand", F.relu(z), inner) + 3) / 6)
            y = norm(p + "bn3", point(p + "conv_pwl", y, out))
            if stride > 1:
                skip = F.avg_pool2d(skip, stride, padding=skip.shape[-1] % 2)
            if skip.shape[1] != out:
                skip = point(p + "shortcut", skip, out)
            x = y + skip
    act, head = ACTS[config.head_act], int(spec["head.width"])
    x = act(norm("bn_head", point("conv_head", x, 6 * out if config.v3_head else head)))
    x = x.mean((2, 3), keepdim=True)
    if config.v3_head:
        x = act(point("conv_mix", x, head))
    return F.linear(x.flatten(1), t["classifier.weight"][:, :head], t["classifier.bias"])


@pytest.mark.parametrize("name", CONFIGS)
def test_extracted_networks_compute_what_the_rewrite_computes(name: str) -> None:
    config, supernet = CONFIGS[name], filled(CONFIGS[name])
    for spec in some_specs(supernet):
        shape = supernet.family.input_shape(config, spec)
        x = torch.randn(2, *shape, dtype=torch.float64)
        with torch.no_grad():
            wanted = reference(config, supernet.state_dict(), spec, x)
            module = extract(supernet, spec).module
            assert (module(x) - wanted).abs().max() <= 1e-12 * wanted.abs().max(), spec
            assert torch.equal(supernet.eval()(spec, x), module(x))
            assert module(x[:1]).shape == (1, config.num_classes)
            fold_batchnorm(module, supernet.family.fold_pairs(module))
            assert (module(x) - wanted).abs().max() <= 1e-10 * wanted.abs().max()
            assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in module.modules())


@pytest.mark.parametrize("name", CONFIGS)
def test_groups_of_the_layout_move_together(name: str) -> None:
    supernet = filled(CONFIGS[name])
    layout = supernet.family.layout(supernet.config)
    for spec in some_specs(supernet):
        sizes: dict[str, set[int]] = {}
        skeleton = supernet.activate(spec).skeleton
        for key, tensor in (*skeleton.named_parameters(), *skeleton.named_buffers()):
            assert len(layout[key]) == tensor.dim(), key
            for dim, size in zip(layout[key], tensor.shape, strict=True):
                if dim is not None:
                    sizes.setdefault(dim.group, set()).add(size)
        assert all(len(found) == 1 for found in sizes.values())


def test_training_writes_statistics_into_the_store() -> None:
    supernet = filled(CONFIGS["v3"])
    spec = supernet.space.min()
    before = supernet.state_dict()["stages.1.0.bn2.running_mean"].clone()
    x = torch.randn(2, *supernet.family.input_shape(supernet.config, spec), dtype=torch.float64)
    supernet.train()(spec, x).square().sum().backward()
    after = supernet.state_dict()["stages.1.0.bn2.running_mean"]
    assert (after != before).sum() == 32
    grad = dict(supernet.named_parameters())["stages.2.0.conv_dw.weight"].grad
    assert grad is not None
    assert grad[:32, 0, 3, 3].ne(0).all()
    assert not grad[32:].any()
    assert grad.count_nonzero() == 32


def test_it_exports(tmp_path: Path) -> None:
    supernet = filled(CONFIGS["plain head"])
    supernet.to("cpu", torch.float32)
    module = extract(supernet, supernet.space.min()).module
    x = torch.randn(1, 1, 24, 24)
    path = export_fp32(module, x, tmp_path / "net.onnx").path
    assert check_no_weight_slices(path)["sliced"] == 0
    with torch.no_grad():
        assert check_parity(path, x.numpy(), module(x).numpy(), 1e-4)["relative_error"] <= 1e-4


def test_the_default_space_is_the_published_one() -> None:
    family, config = AlphaNet(), AlphaNetConfig()
    stored = sum(p.numel() for p in family.stored(config).parameters())
    assert round(stored / 1e6, 1) == 23.9
    space = family.space(config)
    found = {}
    for name, genes in family.named_specs(config).items():
        spec = space.canonical(genes)
        found[name] = (round(alphanet_mflops(config, spec), 1),
                       round(alphanet_params(config, spec) / 1e6, 2))  # fmt: skip
        costs = family.costs(config, space, space.encode(spec)[None])
        assert costs.macs[0] == round(alphanet_mflops(config, spec) * 1e6)
    assert len(found) == 15
    for system in ("attentive_nas", "alphanet"):
        assert found[f"{system}_a0"] == (203.4, 9.06)
        assert found[f"{system}_a3"] == (356.5, 13.0)
        assert found[f"{system}_a6"] == (709.0, 15.44)
    assert AlphaNetConfig.model_validate(config.model_dump(mode="json")) == config
    assert family.named_specs(CONFIGS["v3"]) == {}


def test_the_resolution_is_resized_to_last() -> None:
    family, config = AlphaNet(), AlphaNetConfig()
    space, usual = family.space(config), Transform()
    smaller = family.preprocess(config, space.canonical({"resolution": 192}), usual)
    assert (smaller.resize, smaller.size, smaller.final_size) == (256, 224, 192)
    assert family.preprocess(config, space.canonical({"resolution": 224}), usual) == usual


def test_inner_widths_round_as_the_systems_round() -> None:
    assert [inner_width(v) for v in (1, 2, 4, 12, 19, 30, 60)] == [1, 9, 8, 16, 24, 32, 64]
    values = np.arange(1, 200)
    assert inner_width(values).tolist() == [inner_width(int(v)) for v in values]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_size": 32}, "not the largest resolution 40"),
        ({"stem": (16, 8)}, "from small to large"),
        ({"stages": [{**stage().model_dump(), "kernel_size": (4, 5)}]}, "odd sizes"),
        ({"stages": [{**stage().model_dump(), "stride": 3}]}, "stride"),
        ({"stages": [{**stage().model_dump(), "act": "tanh"}]}, "act"),
        ({"stem": (10,), "stages": [{**stage().model_dump(), "expand_ratio": (1, 2)}]}, "inner"),
        ({"stem": (12,), "stages": [{**stage().model_dump(), "expand_ratio": (5,)}]}, "stored 60"),
        ({"stages": []}, "stages"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        family_config(AlphaNet(), {**CONFIGS["v3"].model_dump(), **changes})


def test_timm_names_are_not_its_own() -> None:
    with pytest.raises(UserError, match="set it to alphanet"):
        AlphaNet().recognise({}, {})
