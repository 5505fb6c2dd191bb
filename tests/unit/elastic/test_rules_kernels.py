"""The kernel chain: its product, where gradients land, and that it cannot be written back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from elastic_export.elastic.rules_kernels import KernelMap

CHAIN = (("m75", 5), ("m53", 3))


def _tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "w": torch.randn(6, 1, 7, 7, generator=generator, dtype=torch.float64),
        "m75": torch.randn(25, 25, generator=generator, dtype=torch.float64),
        "m53": torch.randn(9, 9, generator=generator, dtype=torch.float64),
    }


@pytest.mark.parametrize("steps", [CHAIN[:1], CHAIN], ids=["7to5", "7to3"])
def test_each_step_crops_the_centre_and_multiplies(steps: tuple[tuple[str, int], ...]) -> None:
    tensors = _tensors()
    got = KernelMap("w", 4, steps).read(tensors)
    for channel in range(4):
        kernel = tensors["w"][channel, 0]
        for matrix, size in steps:
            lost = (len(kernel) - size) // 2
            taps = [kernel[lost + i, lost + j] for i in range(size) for j in range(size)]
            rows = [sum(a * b for a, b in zip(row, taps, strict=True)) for row in tensors[matrix]]
            kernel = torch.stack(rows).reshape(size, size)
        assert torch.allclose(got[channel, 0], kernel, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [CHAIN[:1], CHAIN], ids=["7to5", "7to3"])
def test_gradients_fill_exactly_the_support(steps: tuple[tuple[str, int], ...]) -> None:
    live = {name: tensor.requires_grad_() for name, tensor in _tensors().items()}
    rule = KernelMap("w", 4, steps)
    rule.read(live).square().sum().backward()
    support = rule.support(live)
    assert set(support) == set(rule.sources)
    for name, mask in support.items():
        assert torch.equal(live[name].grad != 0, mask), name


def test_a_crop_alone_is_what_identities_give() -> None:
    tensors = _tensors() | {"m75": torch.eye(25), "m53": torch.eye(9)}
    assert torch.equal(KernelMap("w", 6, CHAIN).read(tensors), tensors["w"][..., 2:5, 2:5])


def test_the_dtype_of_the_kernel_stays() -> None:
    tensors = {name: tensor.float() for name, tensor in _tensors().items()}
    assert KernelMap("w", 2, CHAIN).read(tensors).dtype == torch.float32


def test_it_cannot_be_written_back() -> None:
    rule = KernelMap("w", 2, CHAIN)
    with pytest.raises(TypeError, match="cannot be written back"):
        rule.write_back(_tensors(), torch.zeros(2, 1, 3, 3))
