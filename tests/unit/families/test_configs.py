"""Family settings: what cannot be built is refused before anything is built."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from elastic_export.elastic import Supernet, extract
from elastic_export.errors import UserError
from elastic_export.families import get_family
from elastic_export.families.registry import family_config
from elastic_export.sparsity import pattern_holds

STAGES = [{"depth": [1], "width": [64], "expand": [0.25]}]


@pytest.mark.parametrize(
    ("family", "raw", "said"),
    [
        ("vit", {"widht": [64]}, 'Did you mean "width"?'),
        ("vit", {"width": [64, 32]}, "small to large"),
        ("vit", {"image_size": 30, "patch_size": 16}, "not a multiple of patch_size"),
        ("vit", {"width": [100], "heads": [3]}, "give head_dim"),
        ("vit", {"class_token": False}, "needs class_token"),
        ("vit", {"width": [30], "heads": [3], "nm": ["2:4"]}, "multiples of its M"),
        ("vit", {"nm": ["dense", "2:4"]}, "sparse to dense"),
        ("vit", {"depth": []}, "at least 1"),
        ("resnet", {"stages": STAGES, "stem": [32, 64]}, "stem must list its widths"),
        ("resnet", {"stages": [{"depth": [2, 1], "width": [8], "expand": [1]}]}, "small to large"),
        ("resnet", {"stages": STAGES, "stem": [33], "stem_type": "deep"}, "even widths"),
    ],
)
def test_impossible_settings(family: str, raw: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        family_config(get_family(family), raw)


def _sparse_net() -> Supernet:
    raw = {
        "image_size": 8,
        "patch_size": 2,
        "in_chans": 1,
        "num_classes": 10,
        "width": [16, 32],
        "depth": [1, 2],
        "heads": [2, 4],
        "mlp_ratio": [2, 4],
        "nm": ["1:4", "2:4", "dense"],
        "specs": {"tiny": {"depth": 1, "width": 16, "nm": "2:4"}},
    }
    family = get_family("vit")
    return Supernet.create(family, family_config(family, raw), seed=0)


def test_nm_is_an_axis_of_every_linear_layer() -> None:
    net = _sparse_net()
    rng = np.random.default_rng(0)
    for spec in [net.space.min(), *(net.space.sample(rng) for _ in range(10))]:
        one = extract(net, spec)
        x = torch.randn(2, 1, 8, 8)
        with torch.no_grad():
            assert torch.equal(one.module(x), net(spec, x))
        for name, tensor in one.module.named_parameters():
            if name in one.patterns:
                assert pattern_holds(tensor, one.patterns[name])
                assert (tensor == 0).float().mean() >= 0.5
            elif name.endswith("weight") and tensor.dim() == 2:
                assert (tensor != 0).all()


def test_sparse_layers_cost_less_in_both_conventions() -> None:
    net = _sparse_net()
    dense, half, quarter = (net.space.canonical({"nm": p}) for p in ("dense", "2:4", "1:4"))
    costs = net.costs([dense, half, quarter])
    assert costs.macs[0] == costs.macs[1] == costs.macs[2] == costs.algorithmic_macs[0]
    tokens, linear = 17, 2 * (3 * 32 * 32 + 32 * 32 + 2 * 32 * 128)
    assert costs.macs[0] - costs.algorithmic_macs[1] == tokens * linear // 2
    assert costs.macs[0] - costs.algorithmic_macs[2] == tokens * linear * 3 // 4
    assert (costs.hardware_macs[1:] == costs.algorithmic_macs[1]).all()


def test_specs_by_name() -> None:
    net = _sparse_net()
    assert net.spec("tiny") == net.space.canonical({"depth": 1, "width": 16, "nm": "2:4"})
    assert net.spec("min") == net.space.min()
    with pytest.raises(UserError, match=r'Did you mean "tiny"\?'):
        net.spec("tinny")


def test_a_weight_that_is_not_a_number_stops_extraction() -> None:
    from elastic_export.errors import CheckFailed

    net = _sparse_net()
    with torch.no_grad():
        dict(net.named_parameters())["blocks.0.mlp.fc1.weight"][0, 0] = float("nan")
    with pytest.raises(CheckFailed, match=r"blocks\.0\.mlp\.fc1\.weight"):
        extract(net, net.space.max())
