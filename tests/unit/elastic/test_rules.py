"""Every rule kind: reads what it should, keeps gradients in its support, lands what is written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from elastic_export.elastic.rules import (
    CentreCrop,
    Constant,
    GroupPrefix,
    Index,
    Masked,
    Prefix,
    Rule,
)

SOURCE = {"w": torch.arange(12 * 8, dtype=torch.float32).reshape(12, 8) + 1}
KERNEL = {"w": torch.arange(6 * 49, dtype=torch.float32).reshape(6, 1, 7, 7) + 1}

CASES: list[tuple[Rule, dict[str, Tensor], Tensor]] = [
    (Prefix("w", (5, 3)), SOURCE, SOURCE["w"][:5, :3]),
    (Prefix("w", (12, 8)), SOURCE, SOURCE["w"]),
    (GroupPrefix("w", (6, 4), (3, 1)), SOURCE, SOURCE["w"][[0, 1, 4, 5, 8, 9], :4]),
    (Index("w", ((7, 1, 3), None)), SOURCE, SOURCE["w"][[7, 1, 3]]),
    (CentreCrop("w", 4, 3), KERNEL, KERNEL["w"][:4, :, 2:5, 2:5]),
]


def _fresh(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize(("rule", "tensors", "expected"), CASES, ids=lambda v: type(v).__name__)
def test_reads_the_elements(rule: Rule, tensors: dict[str, Tensor], expected: Tensor) -> None:
    assert torch.equal(rule.read(tensors), expected)


@pytest.mark.parametrize(("rule", "tensors", "expected"), CASES, ids=lambda v: type(v).__name__)
def test_gradients_fill_exactly_the_support(
    rule: Rule, tensors: dict[str, Tensor], expected: Tensor
) -> None:
    live = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    rule.read(live).sum().backward()
    support = rule.support(live)["w"]
    assert live["w"].grad is not None
    assert torch.equal(live["w"].grad != 0, support)
    assert int(support.sum()) == expected.numel()


@pytest.mark.parametrize(("rule", "tensors", "expected"), CASES, ids=lambda v: type(v).__name__)
def test_what_is_written_is_read_again_and_nothing_else_changes(
    rule: Rule, tensors: dict[str, Tensor], expected: Tensor
) -> None:
    live = _fresh(tensors)
    support = rule.support(live)["w"]
    rule.write_back(live, -expected)
    assert torch.equal(rule.read(live), -expected)
    assert torch.equal(live["w"][~support], tensors["w"][~support])


@pytest.mark.parametrize(("rule", "tensors", "expected"), CASES, ids=lambda v: type(v).__name__)
def test_a_view_shares_memory_and_a_copy_does_not(
    rule: Rule, tensors: dict[str, Tensor], expected: Tensor
) -> None:
    live = _fresh(tensors)
    rule.read(live).zero_()
    landed = not torch.equal(live["w"], tensors["w"])
    assert landed == rule.is_view


def test_a_mask_keeps_the_largest_of_the_slice_and_its_gradient() -> None:
    live = {"w": torch.randn(12, 8, requires_grad=True)}
    rule = Masked(GroupPrefix("w", (6, 4), (3, 1)), "2:4")
    value = rule.read(live)
    assert ((value.reshape(-1, 4) != 0).sum(-1) == 2).all()
    value.sum().backward()
    assert torch.equal(live["w"].grad != 0, rule.support(live)["w"])
    with pytest.raises(TypeError, match="masked weight"):
        rule.write_back(live, value)


def test_a_constant_needs_no_source_and_cannot_be_written() -> None:
    rule = Constant(torch.tensor([3]))
    assert rule.read({}).item() == 3
    assert rule.sources == ()
    assert rule.support({}) == {}
    with pytest.raises(TypeError, match="constant"):
        rule.write_back({}, torch.tensor([4]))


def test_an_index_that_repeats_could_not_be_written_back() -> None:
    with pytest.raises(ValueError, match="picked twice"):
        Index("w", ((1, 1), None))
