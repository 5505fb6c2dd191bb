"""Folding BatchNorm into what is before it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from elastic_export.elastic.fold import fold_batchnorm
from elastic_export.errors import UserError


def _random(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5 if name.endswith("var") else -1.0, 1.5)
    return module.double().eval()


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_takes_its_batchnorm(bias: bool) -> None:
    net = _random(nn.Sequential(nn.Linear(5, 7, bias=bias), nn.BatchNorm1d(7), nn.ReLU()))
    x = torch.randn(4, 5, dtype=torch.float64)
    with torch.no_grad():
        before = net(x)
        fold_batchnorm(net, [("0", "1")])
        assert torch.allclose(net(x), before, atol=1e-12)
    assert isinstance(net[0], nn.Linear)
    assert isinstance(net[1], nn.Identity)


def test_a_convolution_takes_its_batchnorm() -> None:
    net = _random(nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)))
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        before = net(x)
        assert torch.allclose(fold_batchnorm(net, [("0", "1")])(x), before, atol=1e-12)


def test_a_skeleton_folds_to_the_skeleton_of_the_folded() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7))
    fold_batchnorm(net, [("0", "1")])
    assert {name: tuple(t.shape) for name, t in net.state_dict().items()} == {
        "0.weight": (7, 5),
        "0.bias": (7,),
    }


def test_layers_that_do_not_go_together_are_refused() -> None:
    net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm2d(7))
    with pytest.raises(UserError, match="0 and 1 are not a convolution or a linear layer"):
        fold_batchnorm(net, [("0", "1")])
