"""N:M masks along the reduction axis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from elastic_export.errors import CheckFailed, UserError
from elastic_export.sparsity import (
    check_patterns,
    check_skip,
    make_masks,
    measured_density,
    pattern_holds,
    pattern_mask,
)


@given(
    n=st.integers(1, 8),
    m=st.sampled_from([4, 8, 16]),
    groups=st.integers(1, 4),
    seed=st.integers(0, 2**16),
    conv=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_each_group_keeps_its_n_largest(n: int, m: int, groups: int, seed: int, conv: bool) -> None:
    n = min(n, m)
    generator = torch.Generator().manual_seed(seed)
    shape = (3, groups * m, 2, 2) if conv else (3, groups * m)
    weight = torch.randn(shape, generator=generator)
    mask = pattern_mask(weight, f"{n}:{m}")
    grouped = weight.abs().movedim(1, -1).reshape(-1, m)
    kept = mask.movedim(1, -1).reshape(-1, m)
    assert (kept.sum(-1) == n).all()
    lowest = torch.where(kept, grouped, torch.inf).min(-1).values
    highest = torch.where(kept, -torch.inf, grouped).max(-1).values
    assert (lowest >= highest).all()
    assert pattern_holds(weight * mask, f"{n}:{m}")
    assert pattern_holds(weight, f"{n}:{m}") == (n == m)


def test_ties_keep_exactly_n() -> None:
    assert pattern_mask(torch.ones(1, 8), "2:4").tolist() == [[True, True, False, False] * 2]


def test_sparser_masks_are_nested_in_denser_ones() -> None:
    weight = torch.randn(16, 64)
    assert (pattern_mask(weight, "2:4") | ~pattern_mask(weight, "1:4")).all()


def test_the_pattern_lies_along_the_reduction_axis_and_not_across_it() -> None:
    weight = torch.randn(8, 8)
    sparse = weight * pattern_mask(weight, "2:4")
    assert not pattern_holds(sparse.t().contiguous(), "2:4")
    assert pattern_holds(sparse.t().contiguous(), "2:4", dim=0)


def test_a_reduction_axis_that_is_no_multiple_holds_no_pattern() -> None:
    assert not pattern_holds(torch.zeros(4, 6), "2:4")
    with pytest.raises(ValueError, match="not a multiple of 4"):
        pattern_mask(torch.zeros(4, 6), "2:4")


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 8), nn.Linear(8, 2))


def test_masks_of_a_module_skip_by_name_or_parent() -> None:
    net = _net()
    assert set(make_masks(net, "2:4", ["3"])) == {"0.weight", "2.weight"}
    nested = nn.ModuleDict({"layer1": _net(), "head": nn.Linear(8, 2)})
    assert set(make_masks(nested, "2:4", ["layer1", "nothing*"])) == {"head.weight"}


def test_masks_of_a_module_name_the_layer_that_cannot_have_the_pattern() -> None:
    with pytest.raises(UserError, match="1 has 6 inputs"):
        make_masks(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2)), "2:4")
    with pytest.raises(UserError, match="Every layer is skipped"):
        make_masks(_net(), "2:4", ["*"])


def test_the_layer_that_reads_the_image_stays_dense() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    assert set(make_masks(net, "2:4")) == {"1.weight"}


def test_a_skip_pattern_that_matches_nothing_is_named() -> None:
    net = nn.ModuleDict({"patch_embed": _net(), "head": nn.Linear(8, 2)})
    check_skip(net, ["patch*", "patch_embed.0"])
    with pytest.raises(UserError, match='"patch_embd", which matches no module') as caught:
        check_skip(net, ["patch_embd"])
    assert caught.value.fix == 'Did you mean "patch_embed"?'


def test_grouped_convolutions_stay_dense() -> None:
    assert set(make_masks(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 2)), "2:4")) == {
        "1.weight"
    }


def test_the_check_finds_a_broken_group() -> None:
    net = _net()
    masks = make_masks(net, "2:4")
    with torch.no_grad():
        for name, mask in masks.items():
            net.get_parameter(name).mul_(mask)
    patterns = dict.fromkeys(masks, "2:4")
    check_patterns(net.state_dict(), patterns)
    assert measured_density(net.get_parameter("2.weight")) == 0.5
    with torch.no_grad():
        net[2].weight.view(-1)[:4] = 1.0
    with pytest.raises(CheckFailed, match=r"2\.weight should be 2:4"):
        check_patterns(net.state_dict(), patterns)
    with pytest.raises(CheckFailed, match="no such weight"):
        check_patterns(net.state_dict(), {"9.weight": "2:4"})
