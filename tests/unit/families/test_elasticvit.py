"""ElasticViT against an independent implementation, on sizes no fixture has."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from reference_elasticvit import logits

from elastic_export.config.transform import Transform
from elastic_export.elastic import Supernet, extract, has_batchnorm, recalibrate
from elastic_export.elastic.fold import fold_batchnorm
from elastic_export.errors import UserError
from elastic_export.export import export_fp32
from elastic_export.families import get_family
from elastic_export.families.elasticvit import (
    ConvStage,
    ElasticVitConfig,
    TokenStage,
    from_arch,
)
from elastic_export.families.published import published
from elastic_export.families.registry import family_config
from elastic_export.space import Spec

FAMILY = get_family("elasticvit")

SMALL = ElasticVitConfig(
    resolution=(40, 50, 68),
    image_size=68,
    in_chans=1,
    num_classes=5,
    stem_depth=(1, 2),
    stem_channels=(8, 16),
    stages=(
        ConvStage(depth=(1, 2), channels=(8, 16), ratio=(1,), kernel=(3,), downsample=False),
        ConvStage(depth=(1, 2), channels=(8, 16, 24), ratio=(1, 2), kernel=(3, 5), se=True),
        TokenStage(depth=(1, 2), channels=(16, 24), v_scale=(1.0, 1.5), qk_scale=(0.5, 1.0)),
        TokenStage(depth=(1,), channels=(16, 20, 32), mlp_ratio=(1.5, 2.0), downsample=False),
        TokenStage(depth=(1, 2), channels=(24, 40), v_scale=(0.5, 2.0)),
    ),
    head_dim=8,
    head_expand=3,
    head_hidden=20,
    dropout=0.0,
)
"""Three sizes that become odd on the way, a stage without expansion, widths between heads."""


def arch_of(config: ElasticVitConfig, spec: Spec) -> list[Any]:
    """The system's notation, from the choices."""
    names = ["stem", *(f"stages.{s}" for s in range(len(config.stages)))]
    depths = [int(spec[f"{name}.depth"]) for name in names]
    blocks = [(name, b) for name, depth in zip(names, depths, strict=True) for b in range(depth)]
    convs = [f"{name}.{b}" for name, b in blocks if f"{name}.{b}.kernel" in spec]
    tokens = [f"{name}.{b}" for name, b in blocks if f"{name}.{b}.mlp_ratio" in spec]
    return [
        spec["resolution"],
        [spec[f"{name}.channels"] for name in names],
        depths,
        [spec.get(f"{at}.ratio", 1) for at in convs],
        [spec[f"{at}.kernel"] for at in convs],
        [spec[f"{at}.mlp_ratio"] for at in tokens],
        [1] * len(tokens),
        [1] * len(tokens),
        [spec[f"{at}.qk_scale"] for at in tokens],
        [spec[f"{at}.v_scale"] for at in tokens],
    ]


@pytest.fixture(scope="module")
def net() -> Supernet:
    supernet = Supernet.create(FAMILY, SMALL, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, tensor in supernet.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.2)
    supernet.to("cpu", torch.float64)
    return supernet


def specs(supernet: Supernet, n: int = 8) -> list[Spec]:
    space, rng = supernet.space, np.random.default_rng(5)
    return [space.min(), space.max(), *(space.sample(rng) for _ in range(n))]


def images(spec: Mapping[str, Any], n: int = 2) -> torch.Tensor:
    size = int(spec["resolution"])
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, SMALL.in_chans, size, size, generator=generator).double()


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_extracted_equals_the_system_sliced_by_hand(net: Supernet) -> None:
    for spec in specs(net, 8):
        x = images(spec)
        with torch.no_grad():
            wanted = logits(SMALL, net.state_dict(), arch_of(SMALL, spec), x, [])
            module = extract(net, spec).module
            assert error(module(x), wanted) <= 1e-10, spec
            assert torch.equal(net.eval()(spec, x), module(x))


def test_the_archs_of_the_system_go_round(net: Supernet) -> None:
    for spec in specs(net):
        genes = from_arch(SMALL, tuple(arch_of(SMALL, spec)))
        assert net.space.canonical(genes) == spec
        assert genes == dict(spec)


def test_gradients_land_in_the_declared_support_alone(net: Supernet) -> None:
    for spec in specs(net, 4):
        for parameter in net.parameters():
            parameter.grad = None
        net.train()(spec, images(spec)).square().sum().backward()
        support: dict[str, torch.Tensor] = {}
        for rule in net.activate(spec).rules.values():
            for source, mask in rule.support(net.store.tensors).items():
                support[source] = support.get(source, torch.zeros_like(mask)) | mask
        for name, parameter in net.named_parameters():
            inside = support.get(name, torch.zeros_like(parameter, dtype=torch.bool))
            if parameter.grad is None:
                assert not inside.any(), name
            else:
                assert (parameter.grad[~inside] == 0).all(), name
                assert name.endswith(("conv1.bias", "pre_head_0.bias")) or parameter.grad.any()
        net.eval()


def test_folding_keeps_the_function_and_leaves_no_batchnorm(net: Supernet) -> None:
    for spec in specs(net, 2):
        module, x = extract(net, spec).module, images(spec)
        with torch.no_grad():
            before = module(x)
            fold_batchnorm(module, FAMILY.fold_pairs(module))
            assert error(module(x), before) <= 1e-10
        assert not has_batchnorm(module)
        assert FAMILY.fold_pairs(module) == []


def test_one_image_keeps_its_batch_axis_and_changes_nothing(net: Supernet) -> None:
    spec = net.space.max()
    module, x = extract(net, spec).module, images(spec, 3)
    with torch.no_grad():
        assert module(x[:1]).shape == (1, 5)
        assert torch.allclose(module(x[:1]), module(x)[:1])


def test_calibration_counts_tokens_like_images(net: Supernet) -> None:
    module = extract(net, net.space.min()).module
    seen: list[torch.Tensor] = []
    module.pre_head_0.register_forward_hook(lambda m, i, out: seen.append(out.mean(0)))
    recalibrate(module, [images(net.space.min(), n) for n in (2, 3)])
    assert torch.allclose(module.pre_head_norm_0.running_mean, torch.stack(seen).mean(0))


def test_descendants_export_to_onnx(net: Supernet, tmp_path: Path) -> None:
    for i, spec in enumerate(specs(net, 1)):
        module = extract(net, spec).module.float()
        fold_batchnorm(module, FAMILY.fold_pairs(module))
        x = images(spec, 1).float()
        path = export_fp32(module, x, tmp_path / f"{i}.onnx").path
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        with torch.no_grad():
            assert error(torch.from_numpy(found), module(x)) <= 1e-4


def test_layout_covers_what_is_stored_and_its_groups_have_one_size(net: Supernet) -> None:
    layout = FAMILY.layout(SMALL)
    sizes: dict[str, set[int]] = {}
    assert layout.keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        assert len(layout[name]) == tensor.dim()
        if "_conv" in name and ".0." in name:
            continue  # A first block stores columns for its own stage's width.
        for dim, size in zip(layout[name], tensor.shape, strict=True):
            if dim is not None:
                sizes.setdefault(dim.group, set()).add(size)
    assert {group for group, found in sizes.items() if len(found) > 1} == set()


def test_the_defaults_are_the_published_supernet() -> None:
    config = ElasticVitConfig()
    stored = FAMILY.stored(config)
    assert sum(p.numel() for p in stored.parameters()) == 40_488_174
    assert ElasticVitConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.sides(176) == (44, 22, 11, 11, 6, 3)
    named = FAMILY.named_specs(config)
    assert list(named) == list(published("elasticvit"))
    assert named["elastic_L1.5"]["stages.5.1.mlp_ratio"] == 5
    assert published("no such family") == {}


def test_a_config_may_name_specs_and_small_spaces_have_no_published_ones() -> None:
    config = SMALL.model_copy(update={"specs": {"mine": {"resolution": 40}}})
    assert FAMILY.named_specs(config) == {"mine": {"resolution": 40}}


def test_the_resize_of_the_network_becomes_the_last_step_of_an_image() -> None:
    config = ElasticVitConfig()
    space, given = FAMILY.space(config), Transform(size=224, resize=256)
    small = FAMILY.preprocess(config, space.min(), given)
    assert (small.size, small.resize, small.final_size, small.input_size) == (224, 256, 128, 128)
    same = FAMILY.preprocess(config, space.canonical({"resolution": 224}), given)
    assert same == given
    assert FAMILY.input_shape(config, space.min()) == (3, 128, 128)
    assert FAMILY.input_shape(config) == (3, 256, 256)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stem_channels": (8, 24)}, "must not decrease"),
        ({"stages": SMALL.stages[2:]}, "kind C and then some of kind T, not TTT"),
        ({"stages": SMALL.stages[::-1]}, "kind C and then some of kind T, not TTTCC"),
        ({"head_dim": 20}, "fewer than head_dim"),
        ({"resolution": (40, 50), "image_size": 68}, "not the largest resolution"),
        ({"resolution": (40, 59), "image_size": 59}, "table of relative positions holds"),
        ({"stem_kernel": (2, 5)}, "odd sizes"),
        ({"resolution": (50, 40)}, "small to large"),
        ({"stages": [{"kind": "X"}]}, "stages"),
        ({"resolutions": (40,)}, 'Did you mean "resolution"'),
    ],
)
def test_what_cannot_be_built_is_refused(change: dict[str, Any], said: str) -> None:
    raw = SMALL.model_dump(mode="json")
    if "resolution" in change and "image_size" not in change:
        del raw["image_size"]
    with pytest.raises(UserError, match=said):
        family_config(FAMILY, {**raw, **change})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (0, 41, "resolution cannot be 41"),
        (1, [16, 16, 24, 24, 32], "5 values in channels, where this supernet needs 6"),
        (1, 16, "16 in channels"),
        (2, [1, 0, 1, 1, 1, 1], "0 in depths"),
        (2, [1, 1, 3, 1, 1, 1], "values in conv_ratio, where this supernet needs 5"),
        (3, [2, 1, 1], "conv_ratio other than 1 in the stem"),
        (4, [3, 3, 7], r"stages\.1\.0\.kernel cannot be 7"),
        (5, [2, 2], "2 values in mlp_ratio"),
        (7, [7, 1, 1], "attention in windows"),
        (9, [1, 5, 0.5], "v_scale cannot be 5"),
    ],
)
def test_an_arch_that_does_not_fit_is_refused(field: int, value: Any, said: str) -> None:
    arch = arch_of(SMALL, FAMILY.space(SMALL).min())
    arch[field] = value
    with pytest.raises(UserError, match=said):
        from_arch(SMALL, arch)


def test_an_arch_needs_ten_entries() -> None:
    with pytest.raises(UserError, match="3 entries where 10 are needed"):
        from_arch(SMALL, (1, 2, 3))
    with pytest.raises(UserError, match="not an arch of ElasticViT"):
        from_arch(SMALL, "elastic_S1")


def test_timm_names_are_refused() -> None:
    with pytest.raises(UserError, match="set it to elasticvit"):
        FAMILY.recognise({}, {})
