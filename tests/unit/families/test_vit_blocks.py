"""Blocks with choices of their own, and plain files whose blocks differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from elastic_export.elastic import Supernet, extract
from elastic_export.errors import UserError
from elastic_export.families import get_family
from elastic_export.families.registry import family_config
from elastic_export.families.vit import VitConfig

SIZES: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "num_classes": 5,
    "width": (16, 32),
    "depth": (2, 3),
    "heads": (2, 4),
    "head_dim": 8,
    "mlp_ratio": (2.0,),
    "heads_of": {"blocks.1": (1, 3)},
    "mlp_ratio_of": {"blocks.0": (0.5, 1.5, 3.0)},
}


def test_named_blocks_choose_for_themselves() -> None:
    config = VitConfig.model_validate(VitConfig(**SIZES).model_dump(mode="json"))
    net = Supernet.create(get_family("vit"), config, seed=0)
    axes = net.space.describe()
    assert axes["blocks.1.heads"] == [1, 3]
    assert axes["blocks.2.heads"] == [2, 4]
    assert axes["blocks.0.mlp_ratio"] == [0.5, 1.5, 3.0]
    rng = np.random.default_rng(0)
    for spec in [net.space.min(), net.space.max(), *(net.space.sample(rng) for _ in range(6))]:
        module = extract(net, spec).module
        x = torch.randn(1, 3, 16, 16)
        with torch.no_grad():
            assert torch.equal(module(x), net(spec, x))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads_of": {"blocks.3": (1,)}}, "names blocks.3, which is no block"),
        ({"mlp_ratio_of": {"block.1": (1,)}}, "which is no block"),
        ({"heads_of": {"blocks.1": (3, 1)}}, r"small to large \(blocks.1\)"),
        ({"heads_of": {"blocks.1": ()}}, "at least 1"),
        ({"nm": ("2:4",), "mlp_ratio_of": {"blocks.1": (0.0626,)}}, "multiples of its M"),
    ],
)
def test_impossible_choices(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        family_config(get_family("vit"), {**SIZES, **change})


def test_a_plain_file_of_a_slim_network_is_recognised() -> None:
    vit = get_family("vit")
    sizes = {**SIZES, "width": (32,), "depth": (3,), "heads": (4,)}
    net = Supernet.create(vit, VitConfig(**sizes), seed=0)
    spec = net.space.canonical({"blocks.1.heads": 1, "blocks.0.mlp_ratio": 0.5})
    state = extract(net, spec).module.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    config = vit.recognise(shapes, {"head_dim": 8})
    again = Supernet.of_state(vit, config, state)
    module = extract(again, again.space.max()).module
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(module(x), net.eval()(spec, x))
    assert vit.recognise(shapes, {"heads": 4}) == config
    assert vit.recognise(shapes, {"heads": [2, 4]}).heads == (2, 4)


@pytest.mark.parametrize(
    ("hints", "said"),
    [
        ({"heads": 5}, "no multiple"),
        ({"heads": "many"}, "no multiple"),
        ({"heads": []}, "no multiple"),
        ({"head_dim": 7}, "no multiple"),
        ({"head_dim": 0}, "no multiple"),
        ({"heads": 2, "depht": 3}, 'Did you mean "depth"'),
    ],
)
def test_hints_that_do_not_fit(hints: dict[str, Any], said: str) -> None:
    vit = get_family("vit")
    net = Supernet.create(vit, VitConfig(image_size=8, patch_size=4, width=(16,), heads=(2,)))
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    with pytest.raises(UserError, match=said):
        vit.recognise(shapes, hints)


def test_shapes_that_are_no_vits() -> None:
    vit = get_family("vit")
    net = Supernet.create(vit, VitConfig(image_size=8, patch_size=4, width=(16,), heads=(2,)))
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    for name, shape in (("pos_embed", (5,)), ("patch_embed.proj.weight", (16, 3))):
        with pytest.raises(UserError, match="which no ViT's has"):
            vit.recognise({**shapes, name: shape}, {"heads": 2})
    with pytest.raises(UserError, match="not a square grid"):
        vit.recognise({**shapes, "pos_embed": (1, 7, 16)}, {"heads": 2})
