"""Attention in the ort-cpu flavour: fused where it can be, right however it is packed."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from elastic_export.export import check_parity


def _count(path: Path, op: str) -> int:
    return sum(node.op_type == op for node in onnx.load(str(path)).graph.node)


class Packed(nn.Module):
    """Attention whose projection is packed in one of several orders."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x):
        b, n, _ = x.shape
        packed = self.qkv(x)
        if self.order == "chunk":
            parts = [p.reshape(b, n, 2, 16).transpose(1, 2) for p in packed.chunk(3, -1)]
        elif self.order == "heads first":
            parts = packed.reshape(b, n, 2, 3, 16).permute(3, 0, 2, 1, 4).unbind(0)
        elif self.order == "strided":
            parts = packed.reshape(b, n, 16, 2, 3).permute(4, 0, 3, 1, 2).unbind(0)
        else:
            parts = packed.reshape(b, n, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
        bias = torch.ones(n, n).tril() if self.order == "with bias" else None
        if self.order == "tokens as heads":
            parts = [part.transpose(1, 2) for part in parts]
        mixed = nn.functional.scaled_dot_product_attention(*parts, attn_mask=bias)
        return self.proj(mixed.transpose(1, 2).reshape(b, n, -1))


@pytest.mark.parametrize(
    ("order", "fused"),
    [
        ("chunk", 1),
        ("heads first", 1),
        ("strided", 1),
        ("with bias", 0),
        ("tokens as heads", 0),
    ],
)
def test_attention_of_any_packing(order, fused, emit_small):
    torch.manual_seed(0)
    module = Packed(order).eval()
    x = torch.randn(2, 5, 32)
    path, _, report = emit_small(module, x)
    assert report.int8 == ("qkv", "proj")
    assert _count(path, "MultiHeadAttention") == fused
    with torch.no_grad():
        check_parity(path, x.numpy(), module(x).numpy(), 0.03)
