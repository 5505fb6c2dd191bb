"""Biases that are gathered from a table made for a larger map."""

from __future__ import annotations

import pytest
import torch

from elastic_export.elastic.rules_tables import TableGather

TABLE = {"t": torch.arange(5 * 5 * 4, dtype=torch.float64).reshape(25, 4) + 1}
"""A table for a 3 x 3 map and four heads."""


def test_each_pair_reads_the_row_of_its_offset() -> None:
    bias = TableGather("t", stored=3, side=2, heads=3).read(TABLE)
    assert bias.shape == (3, 4, 4)
    for i in range(4):
        for j in range(4):
            down, right = i // 2 - j // 2, i % 2 - j % 2
            row = (down + 2) * 5 + right + 2
            assert torch.equal(bias[:, i, j], TABLE["t"][row, :3])


def test_gradients_fill_exactly_the_support() -> None:
    rule = TableGather("t", stored=3, side=2, heads=2)
    live = {"t": TABLE["t"].clone().requires_grad_()}
    rule.read(live).sum().backward()
    support = rule.support(live)["t"]
    assert live["t"].grad is not None
    assert torch.equal(live["t"].grad != 0, support)
    # A 2 x 2 map has nine offsets; the offset of a position to itself stands four times.
    assert int(support.sum()) == 9 * 2
    assert float(live["t"].grad.max()) == 4


def test_the_whole_map_reads_every_row() -> None:
    rule = TableGather("t", stored=3, side=3, heads=4)
    assert rule.sources == ("t",)
    assert rule.support(TABLE)["t"].all()
    assert not rule.is_view


def test_it_cannot_be_written_back_nor_reach_beyond_the_table() -> None:
    rule = TableGather("t", stored=3, side=2, heads=1)
    with pytest.raises(TypeError, match="cannot be written back"):
        rule.write_back(TABLE, torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="holds no bias for side 4"):
        TableGather("t", stored=3, side=4, heads=1)
