"""Tables and masks of windows against timm's, and constants that follow the store."""

from __future__ import annotations

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer

from elastic_export.elastic.rules_windows import (
    ConstantLike,
    relative_position_index,
    shifted_window_mask,
)


def test_the_index_of_a_small_window() -> None:
    assert relative_position_index(2).tolist() == [
        [4, 3, 1, 0],
        [5, 4, 2, 1],
        [7, 6, 4, 3],
        [8, 7, 5, 4],
    ]


@pytest.mark.parametrize(("side", "window"), [(6, 3), (8, 4), (14, 7), (10, 2)])
def test_masks_and_indices_are_timms(side: int, window: int) -> None:
    net = SwinTransformer(
        img_size=side, patch_size=1, window_size=window, depths=(2,), num_heads=(1,), embed_dim=4
    )
    block = net.layers[0].blocks[1]
    assert torch.equal(block.attn.relative_position_index, relative_position_index(window))
    assert torch.equal(block.attn_mask, shifted_window_mask(side, window, window // 2))


def test_a_constant_has_the_dtype_of_its_neighbor() -> None:
    rule = ConstantLike(torch.tensor([0.0, -100.0]), "w")
    store = {"w": torch.ones(3, dtype=torch.float64)}
    assert rule.read(store).dtype == torch.float64
    assert rule.sources == ()
    assert rule.support(store) == {}
    with pytest.raises(TypeError, match="cannot be written back"):
        rule.write_back(store, torch.zeros(2))
