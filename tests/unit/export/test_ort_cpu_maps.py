"""The ort-cpu flavour between convolutions: on codes where it pays, and right either way."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from elastic_export.export import check_parity, emit, fused_ops, run_onnx
from elastic_export.export.ort_cpu import convolutions
from elastic_export.export.ort_cpu.maps import activated, hard_swish_affine
from elastic_export.export.reference import rounded_like


class Gated(nn.Module):
    """Squeeze and excitation between two convolutions."""

    def __init__(self, gate: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)
        self.down, self.up = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 32, 1)
        self.act, self.gate = act, gate

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.before(x))
        squeezed = torch.relu(self.down(y.mean((2, 3), keepdim=True)))
        return self.after(y * self.gate(self.up(squeezed)))


def between(*parts: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(16, 32, 3), *parts, nn.Conv2d(32, 16, 1)).eval()


CASES = {
    "hard swish": (lambda: between(nn.Hardswish()), {"QLinearMul": 1, "QLinearConv": 2}),
    "SiLU": (
        lambda: between(nn.SiLU()),
        {"QLinearMul": 1, "QLinearSigmoid": 1, "QLinearConv": 2},
    ),
    "average pool": (lambda: between(nn.AvgPool2d(2)), {"QLinearConv": 3}),
    "padded pool": (lambda: between(nn.AvgPool2d(3, 2, padding=1)), {"QLinearConv": 3}),
    "mean": (
        lambda: between(nn.AdaptiveAvgPool2d(1)),
        {"QLinearGlobalAveragePool": 1, "QLinearConv": 2},
    ),
    "hard gate": (
        lambda: Gated(nn.Hardsigmoid(), nn.Hardswish()).eval(),
        {"QLinearMul": 2, "QLinearGlobalAveragePool": 1, "QLinearConv": 4},
    ),
    "soft gate": (
        lambda: Gated(nn.Sigmoid(), nn.SiLU()).eval(),
        {"QLinearMul": 2, "QLinearGlobalAveragePool": 1, "QLinearConv": 4},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_maps_work_on_codes(case, emit_small, monkeypatch):
    """As many integer operators as told, and the same numbers as through floats."""
    make, wanted = CASES[case]
    torch.manual_seed(1)
    module, x = make(), 3 * torch.randn(2, 16, 14, 14)
    path, record, report = emit_small(module, x)
    found = fused_ops(path)
    assert {op: found.get(op, 0) for op in wanted} == wanted
    assert any("work on integers" in note for note in report.notes)
    with torch.no_grad():
        check_parity(path, x.numpy(), module(x).numpy(), 0.06)
    on_codes = run_onnx(path, x.numpy())
    monkeypatch.setattr(convolutions, "on_codes", lambda *_: False)
    path, _, report = emit_small(module, x)
    assert not any("work on integers" in note for note in report.notes)
    step = max(float(site.affine_u8()[0]) for site in record.sites.values() if not site.axis)
    assert np.abs(run_onnx(path, x.numpy()) - on_codes).mean() <= step


@settings(max_examples=50, deadline=None)
@given(st.floats(-10, 500))
def test_codes_of_hard_swish_begin_at_minus_three(high):
    affine = hard_swish_affine(high)
    lowest = -float(affine.scale) * affine.zero_point
    assert abs(lowest + 3) < 1e-5
    assert lowest + 255 * float(affine.scale) >= min(high, 500) - 1e-4
    assert 1 <= affine.zero_point <= 254


@pytest.mark.parametrize(("kind", "act"), [("hard_swish", nn.Hardswish()), ("silu", nn.SiLU())])
def test_ranges_behind_activations(kind, act):
    x = torch.linspace(-5, 4, 100_000)
    low, high = activated(kind, -5, 4)
    np.testing.assert_allclose([low, high], [act(x).min(), act(x).max()], atol=1e-4)


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
        nn.AvgPool2d(3, 2, ceil_mode=True),
    ],
)
def test_pools_with_uneven_windows_are_left_alone(pool, emit_small):
    x = torch.randn(1, 16, 16, 16)
    module = nn.Sequential(nn.Conv2d(16, 32, 1), pool, nn.Conv2d(32, 16, 1)).eval()
    path, _, _ = emit_small(module, x)
    assert fused_ops(path)["QLinearConv"] == 2
    with torch.no_grad():
        check_parity(path, x.numpy(), module(x).numpy(), 0.05)


STEMS = [(7, 2, 3, 32), (3, 2, 1, 32), (4, 4, 0, 32)]


@pytest.mark.parametrize(("kernel", "stride", "pad", "size"), STEMS)
def test_a_stem_over_blocks_is_exact(kernel, stride, pad, size, emit_small):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 24, kernel, stride, pad)).eval()
    x = torch.rand(2, 3, size, size)
    path, record, report = emit_small(module, x)
    assert any("blocks of pixels" in note for note in report.notes)
    graph = onnx.load(str(path)).graph
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    assert "SpaceToDepth" in Counter(node.op_type for node in graph.node)
    out, width, *taps = stored["0.weight"].shape
    assert width == 3 * stride**2
    # Blocks put apart again: the kernel as it was, in integers, with zeros around it.
    blocks = stored["0.weight"].reshape(out, stride, stride, 3, *taps).transpose(0, 3, 4, 1, 5, 2)
    wide = blocks.reshape(out, 3, taps[0] * stride, taps[1] * stride)
    start = -pad % stride
    inside = wide[:, :, start : start + kernel, start : start + kernel]
    assert np.abs(wide).sum(dtype=int) == np.abs(inside).sum(dtype=int)
    scale, zero = record.site("0", "input").affine_u8()
    codes = np.clip(np.rint(x.numpy() / scale) + zero, 0, 255) - zero
    total = nn.functional.conv2d(
        torch.tensor(codes).double(), torch.tensor(inside).double(), stride=stride, padding=pad
    ).numpy()
    factor = (scale * stored["0.weight.scale"]).astype(np.float64)[:, None, None]
    total = (total + stored["0.bias.int32"][:, None, None]) * factor
    step, middle = record.site("0", "output").affine_u8()
    levels = np.clip(np.rint(total / step) + middle, 0, 255)
    difference = run_onnx(path, x.numpy()) - (levels - middle) * step
    assert np.abs(difference).max() <= 1.01 * step, "at most one step from rounding"
    assert (np.abs(difference) > 0.5 * step).mean() < 0.01


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv2d(3, 24, 16, 16), 32),
        (nn.Conv2d(3, 24, 3, 1, 1), 32),
        (nn.Conv2d(3, 24, 3, 2, 1), 33),
        (nn.Conv2d(3, 24, 3, 2, 2, dilation=2), 32),
        (nn.Conv2d(4, 24, 3, 2, 1), 32),
    ],
)
def test_other_first_convolutions_stay_as_they_are(layer, size, emit_small):
    x = torch.rand(1, layer.in_channels, size, size)
    path, _, report = emit_small(nn.Sequential(layer).eval(), x)
    assert not any("blocks of pixels" in note for note in report.notes)
    assert fused_ops(path)["QLinearConv"] == 1


class Normed(nn.Module):
    """A norm over tokens and channels, scaled per channel, in front of a linear layer."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(32)), nn.Parameter(torch.randn(32))
        self.scale, self.fc = scale, nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        full = torch.full(tuple(x.shape[1:]), self.scale)
        normed = nn.functional.layer_norm(x, x.shape[1:], full if self.scale != 1 else None)
        return self.fc(normed * self.weight + self.bias)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_norm_takes_in_what_scales_it(scale, emit_small):
    torch.manual_seed(0)
    module, x = Normed(scale).eval(), torch.randn(2, 9, 32)
    path, _, report = emit_small(module, x)
    plain = scale == 1
    assert any("norms take in" in note for note in report.notes) == plain
    found = fused_ops(path)
    assert bool({"Mul", "Add", "Expand"} & set(found)) != plain
    with torch.no_grad():
        check_parity(path, x.numpy(), module(x).numpy(), 0.02)


@pytest.mark.parametrize("name", ["swin", "elasticvit"])
def test_families_equal_their_rounded_networks(name, request, tmp_path):
    """Everything at once, on the families' own networks."""
    case = request.getfixturevalue(name)
    path = tmp_path / "family.onnx"
    report = emit("ort-cpu", case.exported.path, case.exported.table, case.record, path)
    assert not report.kept_float
    found = fused_ops(path)
    assert not {"Conv", "Gemm", "Split", "QLinearAveragePool"} & set(found)
    reference = rounded_like(case.module, case.record, "ort-cpu")
    with torch.no_grad():
        check_parity(path, case.images.numpy(), reference(case.images).numpy(), 0.1)
    if name == "elasticvit":
        assert found["QLinearMul"] > 0
        assert found["QLinearGlobalAveragePool"] > 0
