from __future__ import annotations

import builtins
import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from elastic_export.data.splits import ArraySplit
from elastic_export.errors import UserError
from elastic_export.quantize.bridge import load_modelopt
from elastic_export.quantize.calibrate import calibrate, model_digest
from elastic_export.quantize.policy import quantizable_layers
from elastic_export.quantize.record import QuantizationRecord
from tests.unit.quantize.recipes import METHODS, tiny_vit
from tests.unit.quantize.recipes import recipe as _recipe


def _seen(net: nn.Module, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The input and output of a layer, by hooks of this test."""
    kept: list[tuple[Tensor, Tensor]] = []
    layer = net.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, args, out: kept.append((args[0], out)))
    with torch.no_grad():
        net(x)
    handle.remove()
    return kept[0]


def test_ranges_are_those_of_the_activations(net, make_split) -> None:
    split = make_split()
    record = calibrate(net, split, _recipe())
    for name, layer in quantizable_layers(net).items():
        ins, outs = _seen(net, split.head(24).x, name)
        for role, values in (
            ("input", ins),
            ("output", outs),
            ("weight", layer.weight.detach()),
        ):
            site = record.site(name, role)
            assert site.min == pytest.approx(float(values.min()), rel=1e-5, abs=1e-6)
            assert site.max == pytest.approx(float(values.max()), rel=1e-5, abs=1e-6)
            assert float(site.amax.max()) == pytest.approx(float(values.abs().max()), rel=1e-5)
        weight = record.site(name, "weight")
        exact = layer.weight.detach().flatten(1).abs().amax(1).numpy()
        assert weight.axis == 0
        assert np.array_equal(weight.amax, exact)
        assert record.site(name, "input").amax.shape == ()


def test_percentile_is_right_and_clips_min_and_max(net, make_split) -> None:
    split = make_split()
    record = calibrate(net, split, _recipe("percentile"))
    for name in ("mid", "hidden", "head"):
        for role, values in zip(
            ("input", "output"), _seen(net, split.head(24).x, name), strict=True
        ):
            site = record.site(name, role)
            largest = float(values.abs().max())
            exact = float(np.percentile(values.abs().numpy(), 99.0, method="inverted_cdf"))
            assert float(site.amax) == pytest.approx(exact, abs=largest / 1000)
            assert site.min == pytest.approx(max(float(values.min()), -float(site.amax)), rel=1e-5)
            assert site.max == pytest.approx(min(float(values.max()), float(site.amax)), rel=1e-5)
    assert record.calibrator == "percentile-99"


@pytest.mark.parametrize("method", METHODS)
def test_same_module_and_images_give_the_same_bits(net, make_split, method, tmp_path: Path) -> None:
    first = calibrate(net, make_split(), _recipe(method))
    second = calibrate(copy.deepcopy(net), make_split(), _recipe(method))
    assert first == second
    first.save(tmp_path / "1")
    second.save(tmp_path / "2")
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()


def test_the_module_is_not_touched(net, make_split, capfd: pytest.CaptureFixture[str]) -> None:
    before, digest = repr(net), model_digest(net)
    net.train()
    calibrate(net, make_split(), _recipe())
    assert repr(net) == before
    assert model_digest(net) == digest
    assert net.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert capfd.readouterr() == ("", "")


def test_policy_and_its_reasons(net, make_split) -> None:
    record = calibrate(net, make_split(), _recipe(skip=("mi*",)))
    reasons = {name: record.site(name, "weight").reason for name in record.modules()}
    assert record.quantized_modules() == ["hidden"]
    assert record.site("wide", "weight").rules == {"narrow", "gemv"}
    assert "3 input channels" in reasons["stem"]
    assert '"mi*"' in reasons["mid"]
    assert "grouped convolution with 1 input" in reasons["depthwise"]
    assert "8 output features" in reasons["narrow"]
    assert "8 input features" in reasons["wide"]
    assert "classifier" in reasons["head"]
    assert all(reason.endswith(".") for reason in reasons.values() if reason)


def test_a_skip_pattern_covers_what_lies_in_a_module() -> None:
    net = tiny_vit()
    split = _digits_like(net)
    record = calibrate(net, split, _recipe(skip=("blocks.0", "blocks.1.mlp.fc?")))
    assert record.quantized_modules() == ["blocks.1.attn.qkv", "blocks.1.attn.proj"]


def _digits_like(net: nn.Module, n: int = 24) -> ArraySplit:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return ArraySplit("calibration", x, torch.arange(n) % 10, 10)


def test_a_vit_quantizes_its_blocks_alone() -> None:
    net = tiny_vit()
    record = calibrate(net, _digits_like(net), _recipe())
    assert len(record.quantized_modules()) == 8
    assert record.modules()[0] == "patch_embed.proj"
    assert record.images == 24
    assert record.data_digest == _digits_like(net).head(24).digest
    assert record.model_digest == model_digest(net)


def test_attentions_and_skip_connections_are_measured_in_the_same_pass() -> None:
    net, kept = tiny_vit(), {}
    attn = net.blocks[1].attn
    attn.qkv.register_forward_hook(lambda _, __, out: kept.update(qkv=out))
    net.blocks[1].norm2.register_forward_pre_hook(lambda _, args: kept.update(sum=args[0]))
    attn.proj.register_forward_hook(lambda _, __, out: kept.update(proj=out))
    split = _digits_like(net)
    record = calibrate(net, split, _recipe(batch_size=24))
    with torch.no_grad():
        net(split.head(24).x)
    query, key, value = kept["qkv"].chunk(3, dim=-1)
    skip = kept["sum"] - kept["proj"]
    seen = {"bmm_a": query, "bmm_b": key, "value": value}
    assert record.attentions() == ["blocks.0.attn", "blocks.1.attn"]
    for role, x in seen.items():
        site = record.site("blocks.1.attn", role)
        assert float(site.amax) == pytest.approx(float(x.abs().max()), rel=1e-5)
        assert (site.policy, site.rule) == ("float", "attention")
    assert record.site("blocks.1.attn", "probs").max == 1.0
    found = record.site("blocks.1.attn.proj", "skip")
    assert (found.min, found.max) == pytest.approx((float(skip.min()), float(skip.max())), abs=1e-5)
    assert found.policy == "int8"


def test_a_skip_pattern_covers_an_attention() -> None:
    net = tiny_vit()
    record = calibrate(net, _digits_like(net), _recipe(skip=("blocks.0",)))
    assert record.placed("ort-cpu", attention="int8").int8_attentions() == ["blocks.1.attn"]
    assert '"blocks.0"' in record.site("blocks.0.attn", "value").reason


def test_a_dead_attention_stays_in_floating_point_and_says_why() -> None:
    net = tiny_vit()
    with torch.no_grad():
        net.blocks[0].attn.qkv.weight[:32] = 0.0
        net.blocks[0].attn.qkv.bias[:32] = 0.0
    record = calibrate(net, _digits_like(net), _recipe())
    placed = record.placed("ort-cpu", attention="int8")
    assert placed.int8_attentions() == ["blocks.1.attn"]
    assert placed.site("blocks.0.attn", "value").reason.startswith("Its query is zero")
    assert "blocks.0.attn.qkv" in placed.quantized_modules()


def test_a_dead_layer_stays_in_floating_point_and_says_why(net, make_split) -> None:
    with torch.no_grad():
        net.mid.weight.zero_()
        net.mid.bias.fill_(-1.0)
    record = calibrate(net, make_split(), _recipe())
    assert record.site("mid", "weight").reason == "Its weight is zero on every calibration image."
    assert "input is zero" not in record.site("hidden", "input").reason
    assert record.quantized_modules() == ["hidden"]
    assert "mid" not in record.placed("ort-cpu").quantized_modules()


def test_a_network_of_dead_layers_is_an_error(make_split) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1)).eval()
    with torch.no_grad():
        net[0].bias.fill_(-100.0)
        net[2].bias.zero_()
        net[0].weight.zero_()
    with pytest.raises(UserError, match='all of them are dead; of "0": Its weight is zero'):
        calibrate(net, make_split(), _recipe())


def test_a_layer_that_is_not_called_says_so(net, make_split) -> None:
    net.spare = nn.Linear(32, 32)
    record = calibrate(net, make_split(), _recipe())
    assert record.site("spare", "input").reason == "It was not called on the calibration images."


def test_images_of_nothing_but_zeros(net, make_split) -> None:
    for layer in quantizable_layers(net).values():
        nn.init.zeros_(layer.bias)
    with pytest.raises(UserError, match='from "stem" on saw nothing but zeros'):
        calibrate(net, make_split(scale=0.0), _recipe())


def test_a_layer_with_a_mind_of_its_own_is_left_alone(make_split) -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    net = nn.Sequential(nn.Conv2d(3, 16, 3), Standardised(16, 16, 3), nn.Conv2d(16, 16, 3)).eval()
    record = calibrate(net, make_split(), _recipe())
    assert record.quantized_modules() == ["2"]
    assert "Standardised" in record.site("1", "weight").reason
    assert float(record.site("1", "input").amax) > 0


def test_without_modelopt(net, make_split, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("modelopt"):
            raise ImportError("No module named 'modelopt'")
        return real(name, *args, **kwargs)

    load_modelopt.cache_clear()
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match="pip install nvidia-modelopt"):
        calibrate(net, make_split(), _recipe())


def test_progress_is_told_of_every_batch(net, make_split) -> None:
    class Told:
        total = done = 0
        finished = False

        def start(self, label: str, total: int) -> None:
            self.total = total

        def advance(self, steps: int = 1, note: str = "") -> None:
            self.done += steps

        def finish(self) -> None:
            self.finished = True

    told = Told()
    calibrate(net, make_split(), _recipe(), progress=told)
    assert told.total == told.done == 4
    assert told.finished


def test_the_digest_sees_names_shapes_and_bits() -> None:
    layer = nn.Linear(4, 4)
    digest = model_digest(layer)
    assert digest == model_digest(copy.deepcopy(layer))
    assert digest != model_digest(nn.Sequential(layer))
    layer.weight.data[0, 0] = torch.nextafter(layer.weight.data[0, 0], torch.tensor(9.0))
    assert digest != model_digest(layer)
    assert model_digest(nn.BatchNorm2d(3))  # holds a zero-dimensional integer


_FRESH = """
import sys, torch
from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.data.splits import ArraySplit
from elastic_export.quantize.calibrate import calibrate
from elastic_export.quantize.fake import fake_quantize
assert "modelopt" not in sys.modules, "imported too early"
split = ArraySplit("calibration", torch.randn(4, 3, 8, 8), torch.zeros(4), 1)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 16, 3)).eval()
fake_quantize(net, calibrate(net, split, CalibrationRecipe(name="t", images=4)))
assert "modelopt" in sys.modules
"""


def test_modelopt_is_imported_late_and_in_silence() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", _FRESH], capture_output=True, text=True, cwd=root, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_records_of_all_methods_differ_as_they_should(net, make_split) -> None:
    def amax(method: str) -> float:
        record: QuantizationRecord = calibrate(net, make_split(), _recipe(method))
        return float(record.site("hidden", "input").amax)

    assert amax("percentile") < amax("max")
    assert amax("entropy") <= amax("max")
