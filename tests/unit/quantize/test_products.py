"""Ranges of skip connections and attention products, against tensors taken by hand."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from elastic_export.errors import UserError
from elastic_export.quantize.policy import quantizable_layers
from elastic_export.quantize.products import ProductHooks
from elastic_export.quantize.record import PRODUCT_ROLES


def measure(module: nn.Module, *batches: Tensor, histogram: bool = False) -> ProductHooks:
    hooks = ProductHooks(module.eval(), quantizable_layers(module), histogram=histogram)
    with torch.no_grad(), hooks:
        for x in batches:
            module(x)
    return hooks


def bounds(x: Tensor) -> tuple[float, float]:
    return float(x.min()), float(x.max())


class Attention(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.qkv = form, nn.Linear(16, 48)
        self.register_buffer("bias", torch.randn(2, 5, 5))

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            part.reshape(len(x), 5, 2, 8).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        if self.form == "fused":
            return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        if self.form == "query":
            return (((0.3 * q) @ k.mT) + self.bias).softmax(dim=-1) @ v
        if self.form == "scores":
            scores = torch.matmul(q, k.transpose(2, 3)) / 3.0 + self.bias
            return torch.matmul(torch.softmax(scores, 3), v)
        probs = nn.functional.softmax(torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT), dim=-1)
        return torch.bmm(nn.functional.dropout(probs, 0.5, self.training), v.flatten(0, 1))


@pytest.mark.parametrize("form", ["fused", "query", "scores", "batched"])
@pytest.mark.parametrize("histogram", [False, True])
def test_operands_of_attention(form: str, histogram: bool) -> None:
    torch.manual_seed(0)
    module, batches = nn.Sequential(Attention(form)), [torch.randn(2, 5, 16) for _ in range(3)]
    hooks = measure(module, *batches, histogram=histogram)
    assert list(hooks.ranges) == [("0", role) for role in ("bmm_a", "bmm_b", "value", "probs")]
    with torch.no_grad():
        wanted = [torch.cat(parts) for parts in zip(*map(module[0].parts, batches), strict=True)]
    for role, tensor in zip(("bmm_a", "bmm_b", "value"), wanted, strict=True):
        found = hooks.ranges["0", role]
        assert found.bounds == pytest.approx(bounds(tensor), rel=1e-6)
        assert (found.histogram is not None) == histogram
    assert hooks.ranges["0", "probs"].bounds == (0.0, 1.0)
    assert hooks.ranges["0", "probs"].histogram is None


def test_watching_changes_nothing() -> None:
    torch.manual_seed(0)
    module, x = timm.create_model("test_vit", num_classes=10).eval(), torch.randn(2, 3, 160, 160)
    hooks = ProductHooks(module, quantizable_layers(module), histogram=False)
    with torch.no_grad():
        before = module(x)
        with hooks:
            assert torch.equal(module(x), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


@pytest.mark.parametrize("fused", [True, False])
def test_a_network_of_timm(fused: bool) -> None:
    torch.manual_seed(0)
    timm.layers.set_fused_attn(fused)
    try:
        module = timm.create_model("test_vit", num_classes=10).eval()
    finally:
        timm.layers.set_fused_attn(True)
    hooks = measure(module, torch.randn(2, 3, 160, 160))
    blocks = [f"blocks.{index}" for index in range(6)]
    skips = {(f"{b}.{part}", "skip") for b in blocks for part in ("attn.proj", "mlp.fc2")}
    products = {(f"{block}.attn", role) for block in blocks for role in PRODUCT_ROLES}
    assert set(hooks.ranges) == skips | products
    assert {name for name, count in hooks.positions.items() if count == 1} == {"head"}
    assert hooks.positions["blocks.0.mlp.fc1"] == 101


class Shortcuts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.c, self.d = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.e, self.f, self.g = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.still = nn.Sequential(nn.Identity(), nn.Dropout(0.5))
        self.gamma, self.table = (
            nn.Parameter(torch.ones(4, 1, 1)),
            nn.Parameter(torch.ones(1, 4, 2, 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        one = x + self.still(self.a(x))
        two = self.b(one) + self.c(one)  # both operands are outputs of layers
        two += self.d(two).relu()  # not direct
        three = two + self.e(two) * self.gamma  # scaled: not direct
        four = self.f(three) + self.table  # not a residual addition
        return self.g(four).add_(four.mean((2, 3), keepdim=True)) + three.mean()


def test_skips_are_what_is_added_to_the_output_of_a_layer() -> None:
    torch.manual_seed(0)
    module, x = Shortcuts().eval(), torch.randn(1, 4, 2, 2)
    hooks = measure(module, x)
    assert list(hooks.ranges) == [("a", "skip"), ("b", "skip"), ("c", "skip")]
    with torch.no_grad():
        one = x + module.a(x)
        assert hooks.ranges["a", "skip"].bounds == bounds(x)
        assert hooks.ranges["b", "skip"].bounds == pytest.approx(bounds(module.c(one)))
        assert hooks.ranges["c", "skip"].bounds == pytest.approx(bounds(module.b(one)))


def test_in_place_work_behind_an_addition_does_not_spoil_it() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            out = self.conv(x)
            out += x
            return self.act(out)

    module, x = InPlace(), torch.randn(2, 4, 3, 3)
    assert measure(module, x).ranges["conv", "skip"].bounds == bounds(x)


def test_infinite_products_are_named() -> None:
    module = nn.Sequential(Attention("fused"))
    module[0].qkv.bias.data[17] = float("inf")
    with pytest.raises(UserError, match='infinite values in the key of attention "0"'):
        measure(module, torch.randn(1, 5, 16))


def test_other_products_are_no_attention() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mixed = (x @ x.mT).relu() @ x
            pooled = x.mean(-1, keepdim=True).softmax(1).mT @ x
            return mixed + pooled

    assert measure(Gate(), torch.randn(1, 5, 16)).ranges == {}
