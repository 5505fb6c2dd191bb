"""Allocators: what they remove in all, what they promise of each layer, and their masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elastic_export.errors import UserError
from elastic_export.sparsity.allocation import METHODS, allocate, magnitude_mask, masks_of

SIZES = st.lists(st.tuples(st.integers(4, 40), st.integers(4, 40)), min_size=2, max_size=6)


def _layers(sizes: list[tuple[int, int]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        str(i): torch.randn(size, generator=generator) * (i + 1) for i, size in enumerate(sizes)
    }


@given(sizes=SIZES, sparsity=st.floats(0.0, 0.75), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_sum_is_what_was_asked_for(
    method: str, sizes: list[tuple[int, int]], sparsity: float, seed: int
) -> None:
    layers = _layers(sizes, seed)
    shares = allocate(method, layers, sparsity)
    masks = masks_of(layers, shares)
    total = sum(weight.numel() for weight in layers.values())
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert abs(removed - sparsity * total) <= 2 * len(layers)
    for name, weight in layers.items():
        gone = weight.abs()[~masks[name]]
        kept = weight.abs()[masks[name]]
        assert int((~masks[name]).sum()) == round(shares[name] * weight.numel())
        if len(gone) and len(kept):
            assert gone.max() <= kept.min()


@given(sizes=SIZES, seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_lamp_keeps_something_of_every_layer(sizes: list[tuple[int, int]], seed: int) -> None:
    layers = _layers(sizes, seed)
    total = sum(weight.numel() for weight in layers.values())
    masks = masks_of(layers, allocate("lamp", layers, 1.0 - 2 * len(layers) / total))
    assert all(bool(mask.any()) for mask in masks.values())


def _deit_small() -> dict[str, Tensor]:
    shapes = {"qkv": (1152, 384), "proj": (384, 384), "fc1": (1536, 384), "fc2": (384, 1536)}
    return {
        f"{i}.{name}": torch.empty(shape, device="meta")
        for i in range(12)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("sparsity", "kept"),
    [
        (0.5, (0.500, 0.750, 0.469, 0.469)),
        (0.65, (0.350, 0.525, 0.328, 0.328)),
        (0.8, (0.200, 0.300, 0.1875, 0.1875)),
        (0.3, (0.705, 1.0, 0.661, 0.661)),
    ],
)
def test_erk_of_deit_small(sparsity: float, kept: tuple[float, ...]) -> None:
    """Densities computed by hand from (n_in + n_out) / (n_in n_out), arXiv 1911.11134."""
    shares = allocate("erk", _deit_small(), sparsity)
    for name, density in zip(("qkv", "proj", "fc1", "fc2"), kept, strict=True):
        assert 1.0 - shares[f"7.{name}"] == pytest.approx(density, abs=1e-3)


def test_global_removes_the_smallest_of_all() -> None:
    layers = {"a": torch.arange(1.0, 9.0).reshape(2, 4), "b": torch.arange(5.0, 13.0).reshape(2, 4)}
    assert allocate("glob", layers, 0.5) == {"a": 0.75, "b": 0.25}


def test_unifplus_keeps_a_fifth_of_the_last_layer_and_a_first_convolution() -> None:
    layers = {"a": torch.randn(10, 10), "b": torch.randn(10, 10), "c": torch.randn(10, 10)}
    assert list(allocate("unifplus", layers, 0.9).values()) == pytest.approx([0.95, 0.95, 0.8])
    with_conv = {"stem": torch.randn(10, 10, 1, 1), **layers}
    shares = allocate("unifplus", with_conv, 0.5)
    assert shares["stem"] == 0.0
    assert shares["b"] == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="unifplus cannot remove"):
        allocate("unifplus", with_conv, 0.9)


def test_nothing_and_half_by_magnitude() -> None:
    weight = torch.tensor([[3.0, -1.0], [0.5, -4.0]])
    assert magnitude_mask(weight, 0.0).all()
    assert magnitude_mask(weight, 0.5).tolist() == [[True, False], [False, True]]


def test_what_cannot_be_allocated() -> None:
    layers = {"a": torch.randn(4, 4)}
    with pytest.raises(UserError, match=r'Did you mean "lamp"'):
        allocate("lapm", layers, 0.5)
    for sparsity in (1.0, -0.1, float("nan"), True, "0.5"):
        with pytest.raises(UserError, match="share that can be removed"):
            allocate("unif", layers, sparsity)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="nothing would be left"):
        allocate("lamp", layers, 0.999)
    with pytest.raises(UserError, match="no layer"):
        allocate("unif", {}, 0.5)
