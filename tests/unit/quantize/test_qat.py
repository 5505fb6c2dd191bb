"""Quantization-aware training on real digits, where calibration alone visibly loses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.config.recipe import DataConfig, FinetuneConfig
from elastic_export.data import Dataset, load_dataset
from elastic_export.data.evaluate import top1
from elastic_export.errors import CheckFailed
from elastic_export.quantize.calibrate import calibrate
from elastic_export.quantize.fake import check_pattern_int8, fake_quantize, int8_weights
from elastic_export.quantize.qat import Tuned, qat
from elastic_export.quantize.record import QuantizationRecord
from elastic_export.sparsity import make_masks
from elastic_export.train import finetune

torch.set_num_threads(1)

RECIPE = CalibrationRecipe(name="test", images=256, batch_size=256)
STEPS = FinetuneConfig(steps=150, lr=2e-3, batch_size=64)
OUTLIERS = 4


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, stride=2, padding=1)
        self.fc1, self.fc2 = nn.Linear(512, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu().flatten(1)
        return self.head(self.fc2(self.fc1(x).relu()).relu())


@dataclass
class Case:
    data: Dataset
    net: Digits
    record: QuantizationRecord
    masks: dict[str, Tensor]
    patterns: dict[str, str]

    def accuracy(self, module: nn.Module, record: QuantizationRecord | None = None) -> float:
        if record is not None:
            module = fake_quantize(module, record, asymmetric=True)
        return top1(module, self.data.search)


def _stretch(net: Digits, factor: float) -> None:
    """Make a few channels of the hidden values large; in float the network stays what it is."""
    with torch.no_grad():
        net.fc1.weight[:OUTLIERS] *= factor
        net.fc1.bias[:OUTLIERS] *= factor
        net.fc2.weight[:, :OUTLIERS] /= factor


def _ranges(data: Dataset, net: nn.Module) -> QuantizationRecord:
    return calibrate(net, data.train.head(RECIPE.images), RECIPE).placed("ort-cpu")


@pytest.fixture(scope="module")
def case() -> Case:
    """A network with 2:4 weights, in which four channels stretch the range of all 64."""
    torch.manual_seed(0)
    data, net = load_dataset(DataConfig(dataset="digits"), seed=0), Digits()
    finetune(net, data.train, STEPS.model_copy(update={"steps": 300}), seed=0)
    masks = make_masks(net, "2:4", ("stem", "head"))
    finetune(net, data.train, STEPS, seed=1, masks=masks)
    _stretch(net, 400.0)
    net.eval()
    return Case(data, net, _ranges(data, net), masks, dict.fromkeys(masks, "2:4"))


def _tuned(case: Case, **changes: object) -> Tuned:
    teacher = case.net
    return qat(
        case.net,
        case.record,
        case.data.train,
        STEPS.model_copy(update=changes),
        recalibrate=lambda net: _ranges(case.data, net),
        seed=3,
        masks=case.masks,
        teacher=teacher,
    )


@pytest.fixture(scope="module")
def tuned(case: Case) -> Tuned:
    return _tuned(case)


def test_it_regains_most_of_what_calibration_loses(case: Case, tuned: Tuned) -> None:
    whole, lost = case.accuracy(case.net), case.accuracy(case.net, case.record)
    regained = case.accuracy(tuned.module, tuned.record)
    assert whole > 90
    assert lost < whole - 30
    assert regained > whole - 0.15 * (whole - lost)


def test_the_record_has_the_ranges_it_was_trained_with(case: Case, tuned: Tuned) -> None:
    """Fresh input ranges would undo the training; those of the weights follow the weights."""
    fresh = _ranges(case.data, tuned.module)
    assert tuned.record.calibrator == "max+qat"
    assert tuned.record.model_digest == fresh.model_digest
    for (name, role), site in tuned.record.sites.items():
        expected = case.record if role == "input" else fresh
        assert site == expected.site(name, role)
    regained = case.accuracy(tuned.module, tuned.record)
    assert regained > case.accuracy(tuned.module, fresh) + 3


def test_zeros_stay_and_the_pattern_holds_on_the_integers(case: Case, tuned: Tuned) -> None:
    found = check_pattern_int8(tuned.module, tuned.record, case.patterns)
    assert set(found.values()) == {"int8"}
    integers = int8_weights(tuned.module, tuned.record)
    for name, mask in case.masks.items():
        assert not tuned.module.get_parameter(name)[~mask].any()
        assert not integers[name.removesuffix(".weight")][~mask].any()


def test_the_given_module_is_untouched_and_the_result_is_plain(case: Case, tuned: Tuned) -> None:
    assert "forward" not in vars(tuned.module.get_submodule("fc1"))
    assert tuned.module.state_dict().keys() == case.net.state_dict().keys()
    assert not tuned.module.training
    assert _ranges(case.data, case.net).digest == case.record.digest
    assert tuned.record.model_digest != case.record.model_digest
    x = case.data.search.head(8)
    images = next(iter(x.batches(8)))[0]
    with torch.no_grad():  # without the roundings it computes in float again
        assert not torch.equal(
            tuned.module(images), fake_quantize(tuned.module, tuned.record)(images)
        )


def test_the_same_seed_gives_the_same_bits(case: Case) -> None:
    first, second = _tuned(case, steps=4), _tuned(case, steps=4)
    assert first.record.digest == second.record.digest


def test_what_it_trains_with_is_what_is_deployed(case: Case) -> None:
    """At a rate of zero the rounded network in training computes the fake-quantized logits."""
    seen: list[Tensor] = []
    hook = case.net.head.register_forward_hook(lambda _m, _a, out: seen.append(out.detach()))
    images: list[Tensor] = []

    def teacher(x: Tensor) -> Tensor:
        images.append(x)
        return x.new_zeros(len(x), 10)

    try:
        qat(
            case.net,
            case.record,
            case.data.train,
            STEPS.model_copy(update={"steps": 1, "lr": 1e-12}),
            recalibrate=lambda _: case.record,
            seed=3,
            teacher=teacher,
        )
    finally:
        hook.remove()
    with torch.no_grad():
        expected = fake_quantize(case.net, case.record, asymmetric=True)(images[0])
    assert torch.allclose(seen[0], expected, rtol=1e-3, atol=2e-2 * float(expected.abs().max()))


def test_a_record_of_another_module_is_refused(case: Case) -> None:
    sites = {
        ("other", role): replace(site, module="other")
        for (name, role), site in case.record.sites.items()
        if name == "fc1"
    }
    foreign = replace(case.record, sites=sites)
    with pytest.raises(CheckFailed, match='"other"'):
        qat(
            case.net,
            foreign,
            case.data.train,
            STEPS,
            recalibrate=lambda _: foreign,
            seed=0,
        )
