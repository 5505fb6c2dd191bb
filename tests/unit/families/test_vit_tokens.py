"""Token selection: the zeroing form by an independent reference, the dropping form by its costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from elastic_export.elastic import Supernet, extract
from elastic_export.errors import UserError
from elastic_export.export import export_fp32
from elastic_export.families import get_family
from elastic_export.families.registry import family_config
from elastic_export.families.vit import VitConfig

SIZES: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "num_classes": 5,
    "width": (16, 32),
    "depth": (2,),
    "heads": (2, 4),
    "head_dim": 8,
    "mlp_ratio": (2.0,),
}


def _net(**changes: Any) -> Supernet:
    net = Supernet.create(get_family("vit"), VitConfig(**{**SIZES, **changes}), seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return net.eval()


def _masked(state: dict[str, Tensor], x: Tensor, keep: int) -> Tensor:
    """timm's network, whose tokens beyond the best are multiplied by zero before the blocks."""
    net = VisionTransformer(16, 4, num_classes=5, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2)
    net.load_state_dict({k: v for k, v in state.items() if not k.startswith("token_score")})
    tokens = torch.cat([net.cls_token.expand(len(x), -1, -1), net.patch_embed(x)], 1)
    tokens = tokens + net.pos_embed
    scores = tokens @ state["token_score.weight"][0] + state["token_score.bias"]
    for image, row in enumerate(scores):
        dropped = row.argsort(descending=True)[keep:]
        tokens[image, dropped[dropped > 0]] = 0.0
    return net.eval().head(net.norm(net.blocks(tokens))[:, 0])


def test_zeroed_tokens_equal_the_reference() -> None:
    x = torch.randn(4, 3, 16, 16)
    for keep in (2, 5, 17):
        net = _net(token_keep=keep)
        with torch.no_grad():
            got = extract(net, net.space.max()).module(x)
            wanted = _masked(net.state_dict(), x, keep)
        assert torch.allclose(got, wanted, atol=1e-5)


def test_dropped_tokens_cost_less_and_all_tokens_change_nothing() -> None:
    zero, gather = _net(token_keep=6), _net(token_keep=6, token_form="gather")
    spec = gather.space.max()
    macs = [int(net.costs([net.space.max()]).macs[0]) for net in (zero, gather)]
    width, hidden = 32, 64
    block = 4 * width * width + 2 * hidden * width
    assert macs[0] - macs[1] == 2 * ((17 - 6) * block + 2 * width * (17 * 17 - 6 * 6))
    extract(gather, spec), extract(gather, gather.space.min())
    x = torch.randn(2, 3, 16, 16)
    every = _net(token_keep=17, token_form="gather")
    state = {k: v for k, v in every.state_dict().items() if not k.startswith("token_score")}
    plain = Supernet.of_state(get_family("vit"), VitConfig(**SIZES), state).eval()
    with torch.no_grad():
        assert torch.allclose(every(spec, x), plain(spec, x), atol=1e-5)


def test_tokens_that_are_no_patches_are_always_kept() -> None:
    net = _net(token_keep=5, token_form="gather", distilled=True, reg_tokens=2)
    with torch.no_grad():
        dict(net.named_parameters())["cls_token"].sub_(100.0)
        x = torch.randn(1, 3, 16, 16)
        before = net(net.space.max(), x)
        dict(net.named_parameters())["dist_token"][0, 0, :4] += 1.0
        assert not torch.allclose(before, net(net.space.max(), x))


@pytest.mark.parametrize("form", ["zero", "gather"])
def test_the_scores_learn(form: str) -> None:
    net = _net(token_keep=5, token_form=form)
    net.train()(net.space.max(), torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert dict(net.named_parameters())["token_score.weight"].grad.abs().max() > 0


@pytest.mark.parametrize("form", ["zero", "gather"])
def test_it_exports_with_static_shapes(form: str, tmp_path: Path) -> None:
    net = _net(token_keep=5, token_form=form)
    module, x = extract(net, net.space.max()).module, torch.randn(1, 3, 16, 16)
    path = export_fp32(module, x, tmp_path / "net.onnx").path
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(got), module(x), atol=1e-5)


@pytest.mark.parametrize("keep", [1, 18, 0])
def test_impossible_numbers(keep: int) -> None:
    with pytest.raises(UserError, match=r"token_keep.*(more than 1 and at most 17|greater than 0)"):
        family_config(get_family("vit"), {**SIZES, "token_keep": keep})
