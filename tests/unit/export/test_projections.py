"""Packed projections taken apart, and tokens moved as bytes, in the ort-cpu flavour."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from elastic_export.export import check_parity, fused_ops
from elastic_export.export.movement import destinations, trace


class Windows(nn.Module):
    """Attention with a bias in windows of a rolled map, as in Swin: 8 x 8 pixels of 32 channels."""

    def __init__(self, shift: int, window: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.shift, self.window, self.heads = shift, window, heads
        self.norm = nn.LayerNorm(32)
        self.qkv, self.proj, self.fc = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 16)
        self.bias = nn.Parameter(torch.randn(heads, window**2, window**2))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        side = self.window
        y = self.norm(x)
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        y = y.reshape(b, h // side, side, w // side, side, c).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(-1, side**2, c)
        packed = self.qkv(y).reshape(len(y), side**2, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = packed.unbind(0)
        scores = query * 0.25 @ key.transpose(-2, -1) + self.bias
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(len(y), side**2, c)
        y = self.proj(mixed).reshape(b, h // side, w // side, side, side, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        return self.fc(x + y)


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_move_as_bytes(shift, emit_small):
    torch.manual_seed(0)
    module, x = Windows(shift).eval(), torch.randn(1, 8, 8, 32)
    path, _, report = emit_small(module, x)
    assert any("cut apart" in note for note in report.notes)
    assert any("moved as bytes" in note for note in report.notes)
    graph = onnx.load(str(path)).graph
    found = Counter(node.op_type for node in graph.node)
    assert found["MatMulIntegerToFloat"] == 5, "query, key and value are three products"
    assert found["Gather"] == 2, "into windows and back, each in one step"
    assert not {"Slice", "Split", "Concat"} & set(found)
    kinds = {
        i.name: i for i in onnx.shape_inference.infer_shapes(onnx.load(str(path))).graph.value_info
    }
    for node in graph.node:
        if node.op_type == "Gather":
            assert kinds[node.output[0]].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert not {"Split", "Slice", "MatMulInteger"} & set(fused_ops(path))
    with torch.no_grad():
        check_parity(path, x.numpy(), module(x).numpy(), 0.05)


class Cut(nn.Module):
    """A packed projection of which parts go different ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.packed, self.last = nn.Linear(32, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.packed(x)
        if self.way == "map":
            a, b = y.split((16, 32), -1)
            b = b.transpose(1, 2).reshape(len(x), 2, 16, 4, 4).sum((1,)).flatten(2).transpose(1, 2)
        elif self.way == "overlap":
            a, b = y[..., :16], y[..., 8:24]
        elif self.way == "rows":
            a, b = y[:, ::2, :16].repeat(1, 2, 1), y[..., 16:32]
        else:
            a, b = y[..., :16] + y.mean(), y[..., 16:32]
        return self.last(a.relu() * b.sigmoid())


@pytest.mark.parametrize(
    ("way", "products"), [("map", 3), ("overlap", 2), ("rows", 2), ("read whole", 2)]
)
def test_only_disjoint_channels_of_all_rows_are_taken_apart(way, products, emit_small):
    torch.manual_seed(0)
    module, x = Cut(way).eval(), torch.randn(1, 16, 32)
    path, _, _ = emit_small(module, x)
    assert fused_ops(path)["MatMulIntegerToFloat"] == products
    with torch.no_grad():
        check_parity(path, x.numpy(), module(x).numpy(), 0.05)


def _value(shape: tuple[int, ...], name: str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def test_a_roll_is_a_move_of_one_value():
    x = _value((2, 6, 3), "x")
    sizes = ir.Value(name="sizes", const_value=ir.tensor([2, 4], name="sizes"))
    split = ir.Node(
        "",
        "Split",
        [x, sizes],
        [ir.AttrInt64("axis", 1)],
        outputs=[_value((2, 2, 3), "a"), _value((2, 4, 3), "b")],
    )
    rolled = ir.Node(
        "",
        "Concat",
        [split.outputs[1], split.outputs[0]],
        [ir.AttrInt64("axis", 1)],
        outputs=[_value((2, 6, 3), "rolled")],
    )
    read = ir.Node("", "Relu", rolled.outputs, outputs=[_value((2, 6, 3), "y")])
    found = trace(rolled.outputs[0])
    assert found is not None
    assert found.root is x
    wanted = np.roll(np.arange(36).reshape(2, 6, 3), -2, axis=1)
    np.testing.assert_array_equal(found.places, wanted)
    assert destinations(x) == [rolled.outputs[0]]
    both = ir.Node(
        "",
        "Concat",
        [read.outputs[0], x],
        [ir.AttrInt64("axis", 1)],
        outputs=[_value((2, 12, 3), "both")],
    )
    other = trace(both.outputs[0])
    assert other is not None
    assert other.root is both.outputs[0], "parts of two values are no move of one"
