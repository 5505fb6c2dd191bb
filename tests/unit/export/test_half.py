"""What FP16 cannot hold is found before a file is written in it; LayerNorm does not overflow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from elastic_export.errors import CheckFailed
from elastic_export.export import (
    check_activations,
    check_half_range,
    check_opset,
    check_parity,
    clipped_shares,
    emit,
    emit_fp16,
    export_fp32,
    run_onnx,
)
from elastic_export.export.files import load_model, save_model
from elastic_export.export.half import HALF_MAX, to_half
from elastic_export.export.lowering import lower
from elastic_export.quantize.record import PRODUCT_ROLES


@pytest.fixture(scope="module")
def loud(request, folder):
    """A ViT whose LayerNorms read values of up to 10,000: their squares are beyond FP16."""
    torch.manual_seed(1)
    module = request.getfixturevalue("new_vit")()
    with torch.no_grad():
        module.pos_embed *= 3000
    images = torch.randn(2, 3, 32, 32)
    exported = export_fp32(module, images[:1], folder / "loud.onnx")
    with torch.no_grad():
        logits = module(images).numpy()
    return exported, images.numpy(), logits


@pytest.fixture(scope="module", name="new_vit")
def new_vit_fixture(tiny):
    kind = type(tiny.module)
    return lambda: kind().eval()


@pytest.mark.parametrize(
    ("opset", "without"), [(20, ()), (17, ()), (17, ("LayerNormalization",)), (13, ())]
)
def test_layernorm_of_large_values(opset, without, loud, tmp_path):
    """With the operator, and with Casts around its parts where the runtime has no such operator."""
    exported, images, logits = loud
    found = check_half_range(exported.path, images)
    assert 1e3 < found["largest"] < 1.5e4
    assert found["largest"] ** 2 > HALF_MAX
    assert found["headroom"] == pytest.approx(HALF_MAX / found["largest"])
    path = tmp_path / "half.onnx"
    emit_fp16(exported.path, path, opset=opset, without=without)
    check_opset(path, opset)
    check_activations(path, images)
    check_parity(path, images, logits, 2e-3)
    if opset == 13 or without:
        # Step by step in FP16, as a runtime does that fuses nothing.
        model = ReferenceEvaluator(onnx.load(str(path)))
        strict = np.concatenate([model.run(None, {"input": image[None]})[0] for image in images])
        assert np.abs(strict - logits).max() < 2e-3 * np.abs(logits).max()


def test_layernorm_written_plainly_in_fp16_overflows(loud, tmp_path):
    """What the files above avoid: the same parts in FP16 are wrong by as much as the logits."""
    exported, images, logits = loud
    model = load_model(exported.path)
    lower(model, 13)
    to_half(model)
    save_model(model, tmp_path / "naive.onnx")
    naive = ReferenceEvaluator(onnx.load(str(tmp_path / "naive.onnx")))
    with np.errstate(over="ignore", invalid="ignore"):
        (got,) = naive.run(None, {"input": images[:1]})
    error = np.abs(got - logits[:1]).max() / np.abs(logits).max()
    assert not error < 0.5


class Loud(nn.Module):
    """A residual network whose second layer makes values beyond FP16 on bright images only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)
        nn.init.constant_(self.first.weight, 30.0)
        nn.init.constant_(self.second.weight, 30.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = x + self.second(x)
        return self.head(x.mean(dim=(2, 3)))


def test_activations_beyond_fp16_are_named(tmp_path):
    torch.manual_seed(0)
    module = Loud().eval()
    dim, bright = torch.rand(1, 3, 4, 4), 4 * torch.ones(1, 3, 4, 4)
    path = export_fp32(module, dim, tmp_path / "loud.onnx").path
    found = check_half_range(path, dim.numpy())
    assert found["largest_at"].startswith("Add ")
    assert found["largest_at"].endswith('behind "second"')
    assert list(found["near"]), "two bits from the end"
    pattern = r'loud\.onnx does not fit into FP16: Conv "second" reaches 8\S+, and FP16 ends at 655'
    with pytest.raises(CheckFailed, match=pattern) as caught:
        check_half_range(path, bright.numpy())
    assert "Use FP32" in str(caught.value)
    emit_fp16(path, tmp_path / "half.onnx")
    with pytest.raises(CheckFailed, match="computes a value that is") as caught:
        check_activations(tmp_path / "half.onnx", bright.numpy())
    assert '"second"' in str(caught.value)
    assert check_activations(path, bright.numpy())["largest"] > HALF_MAX


def test_constants_that_fp16_holds_badly_or_not_at_all(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)).eval()
    images = torch.rand(1, 3, 4, 4)
    with torch.no_grad():
        module[1].weight *= 1e-6
        path = export_fp32(module, images, tmp_path / "small.onnx").path
        found = check_half_range(path, images.numpy())
        assert set(found["subnormal"]) == {"1.weight"}
        assert 1e-3 < found["subnormal"]["1.weight"] < 1
        module[1].weight *= 1e-6
        path = export_fp32(module, images, tmp_path / "none.onnx").path
        with pytest.raises(CheckFailed, match=r'"1\.weight" holds nothing larger than .*to zero'):
            check_half_range(path, images.numpy())
        module[1].weight[0, 0] = 1e6
        path = export_fp32(module, images, tmp_path / "large.onnx").path
        with pytest.raises(CheckFailed, match=r'"1\.weight" holds 1e\+06, and FP16 ends at 65504'):
            check_half_range(path, images.numpy())
        with pytest.raises(CheckFailed, match=r'"1\.weight" holds 1e\+06'):
            emit_fp16(path, tmp_path / "no.onnx")
    assert not (tmp_path / "no.onnx").exists()


class Masked(nn.Module):
    """Attention with a mask of minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.register_buffer("keep", torch.eye(8))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        scores = query @ key.transpose(-1, -2)
        return scores.masked_fill(self.keep == 0, float("-inf")).softmax(-1) @ value


def test_masks_are_no_overflow(tmp_path):
    x = torch.randn(1, 8, 16)
    path = export_fp32(Masked().eval(), x, tmp_path / "mask.onnx").path
    assert check_half_range(path, x.numpy())["largest"] < 100
    emit_fp16(path, tmp_path / "half.onnx")
    assert np.isfinite(run_onnx(tmp_path / "half.onnx", x.numpy())).all()


@pytest.mark.parametrize("network", ["tiny", "resnet"])
def test_fp16_and_strong_int8_fit(network, request, tmp_path):
    case = request.getfixturevalue(network)
    images = case.images.numpy()
    found = check_half_range(case.exported.path, images)
    assert found["headroom"] > 100
    assert not found["near"]
    emit("trt-strong", case.exported.path, case.exported.table, case.record, tmp_path / "s.onnx")
    ours = check_activations(tmp_path / "s.onnx", images)
    assert ours["largest"] == pytest.approx(found["largest"], rel=0.05)


def test_clipped_values_are_counted_per_site(tiny):
    table, images, path = tiny.exported.table, tiny.images.numpy(), tiny.exported.path
    own = clipped_shares(path, table, tiny.record, "trt-weak", images, attention="int8")
    placed = tiny.record.placed("trt-weak", attention="int8")
    operands = {(f"blocks.{block}", role) for block in (0, 1) for role in PRODUCT_ROLES}
    assert set(own) == {(name, "input") for name in placed.quantized_modules()} | operands
    assert max(own.values()) == 0, "the ranges of these very images"
    key = ("blocks.1.fc1", "input")
    site = tiny.record.site(*key)
    halved = replace(site, amax=np.float32(site.amax / 2), min=site.min / 2, max=site.max / 2)
    narrow = replace(tiny.record, sites={**tiny.record.sites, key: halved})
    seen: list[np.ndarray] = []
    layer = tiny.module.get_submodule("blocks.1.fc1")
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].numpy()))
    with torch.no_grad():
        tiny.module(tiny.images)
    handle.remove()
    bounds = {
        "trt-weak": (-halved.amax * (1 + 0.5 / 127), halved.amax * (1 + 0.5 / 127)),
        "ort-cpu": (halved.min, halved.max),
    }
    for flavour, (low, high) in bounds.items():
        found = clipped_shares(path, table, narrow, flavour, images)
        exact = float(((seen[0] < low) | (seen[0] > high)).mean())
        assert found.pop(key) == pytest.approx(exact, abs=2e-3)
        assert exact > 0.01
        assert max(found.values()) == 0
