"""A projection without its dead heads computes what it computed with them."""

from __future__ import annotations

import pytest
import torch

from elastic_export.elastic.rules_bias import DeadHeads

WIDTH, INNER, KEPT = 6, 8, 4


def _tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"b": (WIDTH,), "w": (WIDTH, INNER), "qkv": (3 * INNER,)}
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def test_the_constant_of_dead_heads_goes_into_the_bias() -> None:
    tensors = _tensors()
    live = torch.randn(5, KEPT, dtype=torch.float64)
    dead = tensors["qkv"][2 * INNER + KEPT :].expand(5, -1)
    wanted = torch.cat([live, dead], dim=1) @ tensors["w"].T + tensors["b"]
    folded = DeadHeads("b", "w", "qkv", WIDTH, KEPT).read(tensors)
    torch.testing.assert_close(live @ tensors["w"][:, :KEPT].T + folded, wanted)


def test_gradients_land_in_the_support_alone() -> None:
    tensors = {name: tensor.requires_grad_() for name, tensor in _tensors().items()}
    rule = DeadHeads("b", "w", "qkv", WIDTH - 2, KEPT)
    rule.read(tensors).square().sum().backward()
    for name, mask in rule.support(tensors).items():
        assert tensors[name].grad is not None
        assert torch.equal(tensors[name].grad != 0, mask)
    with pytest.raises(TypeError, match="cannot be written back"):
        rule.write_back(tensors, torch.zeros(WIDTH))
