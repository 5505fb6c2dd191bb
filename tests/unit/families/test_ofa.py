"""Both Once-for-all families against the active supernet written out, for sizes of all kinds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import references_ofa

from elastic_export.elastic import Supernet, extract, has_batchnorm
from elastic_export.elastic.fold import fold_batchnorm
from elastic_export.elastic.macs import count_macs
from elastic_export.errors import UserError
from elastic_export.export import export_fp32
from elastic_export.families import get_family
from elastic_export.families.counters.ofa import official_counts
from elastic_export.families.registry import family_config

BASES = (2, 2, 4, 2)
SETTINGS: dict[str, dict[str, Any]] = {
    "ofa_mbv3": {"width_mult": 0.25, "depth_list": [1, 2]},
    "ofa_mbv3 two kernels, half width": {
        "width_mult": 0.5,
        "ks_list": [3, 5],
        "expand_ratio_list": [1.5, 2],
        "depth_list": [1],
        "bn_eps": 1e-3,
    },
    "ofa_mbv3 crops, a step over": {
        "width_mult": 0.1,
        "ks_list": [3, 7],
        "expand_ratio_list": [4],
        "depth_list": [2],
        "kernel_transform": False,
    },
    "ofa_mbv3 a step over": {"width_mult": 0.1, "ks_list": [3, 7], "depth_list": [1, 2]},
    "ofa_resnet50d": {"width_mult_list": [0.0625, 0.09375, 0.125]},
    "ofa_resnet50d shallow": {
        "width_mult_list": [0.05, 0.1],
        "expand_ratio_list": [0.3, 0.5],
        "depth_list": [0, 1],
        "bn_eps": 1e-3,
    },
    "ofa_resnet50d fixed depth": {"width_mult_list": [0.07], "depth_list": [1]},
}


@dataclass
class Case:
    supernet: Supernet
    reference: Callable[..., Tensor]

    @property
    def config(self) -> Any:
        return self.supernet.config

    def arch(self, rng: np.random.Generator) -> dict[str, Any]:
        """A random arch in the official encoding, with noise in its inert places."""
        c = self.config

        def draw(choices: Any, n: int) -> list[Any]:
            return [choices[i] for i in rng.integers(0, len(choices), n)]

        arch: dict[str, Any] = {"resolution": draw(c.resolution, 1)[0]}
        e = draw(c.expand_ratio_list, c.places)
        if self.supernet.family.name == "ofa_mbv3":
            return {**arch, "ks": draw(c.ks_list, c.places), "e": e, "d": draw(c.depth_list, 5)}
        ends = (min(c.depth_list), max(c.depth_list))
        w = draw(range(len(c.width_mult_list)), 6)
        return {**arch, "d": draw(ends, 1) + draw(c.depth_list, 4), "e": e, "w": w}


def make(name: str, dtype: torch.dtype = torch.float64) -> Case:
    family = get_family(name.split()[0])
    config = family_config(family, {"resolution": [33, 48], "num_classes": 5, **SETTINGS[name]})
    supernet = Supernet.create(family, config, seed=1)
    generator = torch.Generator().manual_seed(2)
    for key, tensor in supernet.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    references: Mapping[str, Any] = {
        "ofa_mbv3": references_ofa.mbv3,
        "ofa_resnet50d": references_ofa.resnet,
    }
    return Case(supernet.to("cpu", dtype).eval(), references[family.name])


@pytest.fixture(params=SETTINGS)
def case(request: pytest.FixtureRequest) -> Case:
    return make(request.param)


@pytest.fixture(params=["ofa_mbv3", "ofa_resnet50d"])
def one(request: pytest.FixtureRequest) -> Case:
    return make(request.param)


def images(size: int, dtype: torch.dtype = torch.float64, n: int = 2) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(3)).to(dtype)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def test_extracted_equals_the_active_supernet(case: Case) -> None:
    net, rng = case.supernet, np.random.default_rng(0)
    for arch in (case.arch(rng) for _ in range(5)):
        spec = net.family.from_arch(net.config, arch)  # type: ignore[attr-defined]
        x = images(arch["resolution"])
        module = extract(net, spec).module
        with torch.no_grad():
            wanted = case.reference(net.config, net.store.state_dict(), arch, x)
            assert error(module(x), wanted) <= 1e-10
            assert torch.equal(net(spec, x), module(x))
            fold_batchnorm(module, net.family.fold_pairs(module))
            assert not has_batchnorm(module)
            assert error(module(x), wanted) <= 1e-10


def test_the_official_lists_are_a_spec(case: Case) -> None:
    net, rng = case.supernet, np.random.default_rng(1)
    for arch in (case.arch(rng) for _ in range(5)):
        spec = net.family.from_arch(net.config, arch)  # type: ignore[attr-defined]
        assert net.spec(arch) == spec


def test_costs_of_smallest_largest_and_random(case: Case) -> None:
    net, rng = case.supernet, np.random.default_rng(2)
    specs = [net.space.min(), net.space.max(), *(net.space.sample(rng) for _ in range(8))]
    costs = net.costs(specs)
    for i, spec in enumerate(specs):
        skeleton = net.activate(spec).skeleton
        counted = count_macs(skeleton, net.family.input_shape(net.config, spec)).total
        params = sum(p.numel() for p in skeleton.parameters())
        assert (costs.macs[i], costs.params[i]) == (counted, params)
        official = official_counts(net.family, net.config, spec)  # type: ignore[arg-type]
        assert official == {"flops": counted, "params": params}


def test_the_official_sums_are_float32() -> None:
    family = get_family("ofa_resnet50d")
    config = family_config(family, {})
    spec = family.space(config).max()
    exact = Supernet(family, config, None).costs([spec])  # type: ignore[arg-type]
    counts = official_counts(family, config, spec)  # type: ignore[arg-type]
    assert counts["flops"] == np.float32(counts["flops"])
    assert counts["flops"] != exact.macs[0]
    assert counts["flops"] == pytest.approx(exact.macs[0], rel=1e-6)


def test_gradients_stay_in_the_support(case: Case) -> None:
    net, rng = case.supernet, np.random.default_rng(3)
    for spec in (net.space.min(), net.space.sample(rng)):
        for parameter in net.parameters():
            parameter.grad = None
        net.train()(spec, images(48, n=3)).square().sum().backward()
        support: dict[str, Tensor] = {}
        for rule in net.activate(spec).rules.values():
            for source, mask in rule.support(net.store.tensors).items():
                support[source] = support.get(source, torch.zeros_like(mask)) | mask
        for name, parameter in net.named_parameters():
            assert (parameter.grad is not None) == (name in support), name
            if parameter.grad is not None:
                assert not parameter.grad[~support[name]].any(), name
    net.eval()


def test_layout_groups_move_together(case: Case) -> None:
    net, rng = case.supernet, np.random.default_rng(4)
    layout = net.family.layout(net.config)
    stored = net.family.stored(net.config)
    assert {n for n, _ in (*stored.named_parameters(), *stored.named_buffers())} == set(layout)
    for spec in (net.space.min(), net.space.sample(rng)):
        sizes: dict[str, set[int]] = {}
        skeleton = net.activate(spec).skeleton
        for name, tensor in (*skeleton.named_parameters(), *skeleton.named_buffers()):
            assert len(layout[name]) == tensor.dim(), name
            for dim, size in zip(layout[name], tensor.shape, strict=True):
                if dim is not None:
                    sizes.setdefault(dim.group, set()).add(size)
        assert {group for group, found in sizes.items() if len(found) > 1} == set()


@pytest.mark.parametrize("name", ["ofa_mbv3 two kernels, half width", "ofa_resnet50d shallow"])
def test_exported_descendants_compute_the_same(name: str, tmp_path: Path) -> None:
    net = make(name, torch.float32).supernet
    for i, spec in enumerate((net.space.min(), net.space.sample(np.random.default_rng(5)))):
        module = extract(net, spec).module
        fold_batchnorm(module, net.family.fold_pairs(module))
        x = images(int(spec["resolution"]), torch.float32, 1)
        path = export_fp32(module, x, tmp_path / f"{i}.onnx").path
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        with torch.no_grad():
            assert error(found, module(x)) <= 1e-4


def test_a_config_survives_json(case: Case) -> None:
    config = case.config
    assert type(config).model_validate(json.loads(config.model_dump_json())) == config


def test_published_spaces() -> None:
    for factor, widths in ((1.0, (16, 24, 1280)), (1.2, (24, 32, 1536))):
        config: Any = family_config(get_family("ofa_mbv3"), {"width_mult": factor})
        assert (config.widths[0], config.widths[2], config.widths[-1]) == widths
        assert config.places == 20
    resnet: Any = family_config(get_family("ofa_resnet50d"), {})
    assert (resnet.places, resnet.width(0, 0), resnet.width(5, 1)) == (18, 24, 1640)


def test_inert_places_may_hold_anything() -> None:
    net = make("ofa_mbv3").supernet
    arch = {"ks": [5, 0] * 5, "e": [4, 0] * 5, "d": [1] * 5, "image_size": 33, "wid": None}
    spec = net.family.from_arch(net.config, arch)  # type: ignore[attr-defined]
    assert spec == net.space.canonical({"ks": 5, "e": 4, "d": 1, "resolution": 33})


def test_a_stem_below_the_largest_depth_is_bare() -> None:
    net = make("ofa_resnet50d").supernet
    some = {"d": [1, 2, 2, 2, 2], "r": [48]}
    spec = net.family.from_arch(net.config, some)  # type: ignore[attr-defined]
    assert spec["stem.d"] == 0
    assert "stem.1.conv.weight" not in dict(net.activate(spec).skeleton.named_parameters())


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ({"e": [3]}, "has 1 values"),
        ({"x": 1}, 'no "x"'),
        ({"d": 9}, "cannot be 9"),
        ({"e": 7}, "cannot be 7"),
        ({"d": "deep"}, "cannot be 'deep'"),
        ({"r": 33, "image_size": 48}, "several input sizes"),
    ],
)
def test_impossible_archs(one: Case, arch: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        one.supernet.family.from_arch(one.config, arch)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("family", "raw", "said"),
    [
        ("ofa_mbv3", {"ks_list": [3, 4]}, "odd kernel sizes"),
        ("ofa_mbv3", {"ks_list": [5, 3]}, "small to large"),
        ("ofa_mbv3", {"expand_ratio_list": [0.5, 1]}, "ends with 1"),
        ("ofa_mbv3", {"image_size": 96, "resolution": [64]}, "largest resolution is 64"),
        ("ofa_mbv3", {"depth_list": [1000]}, "more than"),
        ("ofa_mbv3", {"arch": {"ks": [3], "e": [3], "d": [2] * 5}}, "needs 20 values"),
        ("ofa_mbv3", {"width_mult": 1e9}, "less than or equal"),
        ("ofa_resnet50d", {"arch": {"d": [9] * 5, "e": [0.2] * 18, "w": [0] * 6}}, "deeper"),
        ("ofa_resnet50d", {"arch": {"d": [0] * 5, "e": [0.2] * 18, "w": [3] * 6}}, "index beyond"),
        ("ofa_resnet50d", {"width_mult": 1}, 'Did you mean "width_mult_list"'),
    ],
)
def test_impossible_settings(family: str, raw: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        family_config(get_family(family), raw)


def test_plain_names_are_not_read(one: Case) -> None:
    with pytest.raises(UserError, match="set it to ofa"):
        one.supernet.family.recognise({}, {})
