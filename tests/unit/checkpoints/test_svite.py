"""SViTE: masks against weights, exact slimming of heads and neurons, token selection, refusals."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from elastic_export.checkpoints import import_supernet
from elastic_export.checkpoints.reader import Imported
from elastic_export.elastic import extract
from elastic_export.errors import UserError

WIDTH, HIDDEN, DEPTH = 24, 40, 3
LIVE_HEADS = [(2, 0), (1,), ()]
LIVE_NEURONS = [range(3, 20), range(40), (7,)]


def _model(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    net = VisionTransformer(
        16,
        4,
        num_classes=5,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=3,
        mlp_ratio=HIDDEN / WIDTH,
        qkv_bias=bias,
    ).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return net


def _structured(net: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Masks of whole heads and neurons, which are applied; another number in each block."""
    atten, other = {}, {}
    with torch.no_grad():
        for i, block in enumerate(net.blocks):
            size = WIDTH // 3
            qkv = torch.zeros(3, 3, size, WIDTH)
            qkv[:, list(LIVE_HEADS[i])] = 1
            into = torch.zeros(HIDDEN, WIDTH)
            into[list(LIVE_NEURONS[i])] = 1
            name = f"module.blocks.{i}"
            atten[f"{name}.attn.qkv.weight_mask"] = qkv.reshape(3 * WIDTH, WIDTH)
            other[f"{name}.mlp.fc1.weight_mask"] = into
            other[f"{name}.mlp.fc2.weight_mask"] = into.t().contiguous()
            block.attn.qkv.weight.mul_(qkv.reshape(3 * WIDTH, WIDTH))
            block.mlp.fc1.weight.mul_(into)
            block.mlp.fc2.weight.mul_(into.t())
    return atten, other


def _content(net: nn.Module, **parts: Any) -> dict[str, Any]:
    state = dict(net.state_dict())
    state["gumbel.weight"], state["gumbel.bias"] = torch.randn(1, WIDTH), torch.zeros(1)
    args = {"model": "x", "atten_head": 3, "token_selection": False, "token_number": 197}
    parts["args"] = argparse.Namespace(**{**args, **parts.get("args", {})})
    empty: dict[str, Any] = {"mask": {}, "other_mask": {}, "atten_mask": {}, "fired_mask": {}}
    ema = {name: tensor + 0.1 for name, tensor in state.items()}
    return {"model": state, "model_ema": ema, "optimizer": {}, "mask_step": 4, **empty, **parts}


def _unstructured() -> tuple[nn.Module, dict[str, Any]]:
    net, masks = _model(), {}
    with torch.no_grad():
        for i, (name, parameter) in enumerate(net.named_parameters()):
            if parameter.dim() in (2, 4):
                mask = (torch.rand_like(parameter) < 0.5).float()
                parameter.mul_(mask)
                masks[f"module.{name}_{i}"] = mask
    return net, _content(net, mask=masks, args={"pruning_type": "unstructure", "density": 0.5})


def _slim(bias: bool = True) -> tuple[nn.Module, dict[str, Any]]:
    net = _model(bias)
    atten, other = _structured(net)
    return net, _content(
        net, atten_mask=atten, other_mask=other, args={"pruning_type": "structure_new"}
    )


def _read(content: dict[str, Any], tmp_path: Path, **config: Any) -> Imported:
    torch.save(content, tmp_path / "checkpoint.pth")
    return import_supernet(tmp_path / "checkpoint.pth", config=config)


def _error(found: Imported, spec: str, net: nn.Module) -> float:
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    module = extract(found.supernet, found.supernet.spec(spec)).module.double()
    with torch.no_grad():
        wanted = net.double()(x)
        return float((module(x) - wanted).abs().max() / wanted.abs().max())


def test_an_unstructured_network_stays_as_it_is(tmp_path: Path) -> None:
    net, content = _unstructured()
    found = _read(content, tmp_path, heads=[3])
    assert found.format == "svite"
    assert _error(found, "max", net) < 1e-12
    assert any("14 masks keep 0." in note and "was told 0.5" in note for note in found.notes)
    assert found.sparsity["patch_embed.proj.weight"] == pytest.approx(0.5, abs=0.05)
    assert found.ignored["gumbel.weight"]
    assert found.ignored["model_ema"]
    assert found.used == "model"


@pytest.mark.parametrize("bias", [True, False])
def test_slimming_is_exact_with_other_sizes_in_each_block(bias: bool, tmp_path: Path) -> None:
    net, content = _slim(bias)
    found = _read(content, tmp_path)
    space = found.supernet.space.describe()
    assert [space[f"blocks.{i}.heads"] for i in range(3)] == [[2, 3], [1, 3], [1, 3]]
    assert space["blocks.1.mlp_ratio"] == [pytest.approx(HIDDEN / WIDTH)]
    for spec in ("slim", "max", "min"):
        assert _error(found, spec, net) < 1e-6  # one float32 rounding of the folded bias
    slim = extract(found.supernet, found.supernet.spec("slim")).module
    assert slim.blocks[0].attn.proj.weight.shape == (WIDTH, 2 * WIDTH // 3)
    assert slim.blocks[2].mlp.fc1.weight.shape == (1, WIDTH)
    costs = found.supernet.costs([found.supernet.spec(s) for s in ("slim", "max")])
    assert costs.macs[0] < costs.macs[1]
    assert any("4 of 9 heads and 58 of 120 neurons" in note for note in found.notes)


def test_a_file_of_weights_alone_is_slimmed_by_its_values(tmp_path: Path) -> None:
    net, content = _slim()
    found = _read(content["model"], tmp_path, heads=[3])
    assert found.format == "svite"
    assert _error(found, "slim", net) < 1e-6
    dense = _content(_model())["model"]
    assert _read(dense, tmp_path, heads=[3]).supernet.config.specs == {}


def test_masks_that_disagree_with_the_weights(tmp_path: Path) -> None:
    for change, said in (
        (lambda c: c["model"]["blocks.0.attn.qkv.weight"].add_(1), "where its mask is 0"),
        (
            lambda c: c["atten_mask"]["module.blocks.0.attn.qkv.weight_mask"].mul_(2),
            "other than 0 and 1",
        ),
        (lambda c: c["atten_mask"].update({"module.x.weight_mask": torch.ones(2)}), "no such"),
        (
            lambda c: c["other_mask"].update(
                {"module.blocks.1.mlp.fc1.weight_mask": torch.ones(2)}
            ),
            "has the shape",
        ),
        (
            lambda c: (
                c["other_mask"]["module.blocks.0.mlp.fc1.weight_mask"][4].zero_()
                + c["model"]["blocks.0.mlp.fc1.weight"][4].zero_()
            ),
            "parts of neurons",
        ),
        (lambda c: c.update(atten_mask=torch.ones(2)), "no masks by name"),
        (lambda c: c["model"].pop("blocks.1.mlp.fc1.bias"), "missing"),
    ):
        _, content = _slim()
        change(content)
        with pytest.raises(UserError, match=said):
            _read(content, tmp_path)


def test_heads_must_be_known_and_right(tmp_path: Path) -> None:
    _, content = _slim()
    with pytest.raises(UserError, match="pruned with 3 heads"):
        _read(content, tmp_path, heads=[6])
    _, wrong = _slim()
    wrong["args"].atten_head = 2
    with pytest.raises(UserError, match="removes parts of its 2 heads"):
        _read(wrong, tmp_path)
    _, plain = _unstructured()
    with pytest.raises(UserError, match="number of heads is not stored"):
        _read(plain, tmp_path)


def test_the_moving_average_is_refused(tmp_path: Path) -> None:
    _, content = _unstructured()
    with pytest.raises(UserError, match="model_ema is dense"):
        _read(content, tmp_path, heads=[3], weights="model_ema")
    with pytest.raises(UserError, match="does not hold"):
        _read(content, tmp_path, heads=[3], weights="swa")
    del content["model"]
    torch.save(content, tmp_path / "e.pth")
    with pytest.raises(UserError, match="model_ema is dense"):
        import_supernet(tmp_path / "e.pth", config={"heads": [3]}, format="svite")


def test_tokens_are_selected_where_asked_or_trained_so(tmp_path: Path) -> None:
    _, content = _unstructured()
    found = _read(content, tmp_path, heads=[3], token_keep=6)
    state = found.supernet.state_dict()
    assert torch.equal(state["token_score.weight"], content["model"]["gumbel.weight"])
    content["args"].token_selection, content["args"].token_number = True, 9
    told = _read(content, tmp_path, heads=[3])
    assert told.supernet.config.token_keep == 9
    assert any("trained with token selection" in note for note in told.notes)
    plain = _read(content, tmp_path, heads=[3], token_keep=None)
    assert "token_score.weight" not in plain.supernet.state_dict()
    dropped = _read(content, tmp_path, heads=[3], token_form="gather").supernet
    assert (
        dropped.costs([dropped.space.max()]).macs
        < told.supernet.costs([told.supernet.space.max()]).macs
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: [m.pop("gumbel.weight"), m.pop("gumbel.bias")], "has no token selector"),
        (
            lambda m: m.update(
                {f"blocks.0.attn.gumbel.{k}": m.pop(f"gumbel.{k}") for k in ("weight", "bias")}
            ),
            "selector in each block",
        ),
    ],
)
def test_selectors_that_are_not_there(
    change: Callable[[dict[str, Tensor]], Any], said: str, tmp_path: Path
) -> None:
    _, content = _unstructured()
    change(content["model"])
    with pytest.raises(UserError, match=said):
        _read(content, tmp_path, heads=[3], token_keep=6)
