from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from elastic_export.errors import CheckFailed
from elastic_export.quantize.bridge import insert_quantizers, run_calibration
from elastic_export.quantize.calibrate import model_digest
from elastic_export.quantize.fake import check_pattern_int8, fake_quantize, int8_weights
from elastic_export.quantize.record import quantize_int8
from elastic_export.sparsity.patterns import pattern_mask


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def _hidden_in_integers(net: nn.Module, record, x: Tensor, asymmetric: bool) -> np.ndarray:
    """The layer ``hidden`` as a device computes it: integers, then one scale."""
    site, weight = record.site("hidden", "input"), record.site("hidden", "weight")
    codes = quantize_int8(net.hidden.weight.detach().numpy(), weight).astype(np.int64)
    if asymmetric:
        scale, zero = site.affine_u8()
        q = np.clip(np.rint(x.numpy() / scale) + zero, 0, 255).astype(np.int64) - zero
    else:
        scale = site.scale
        q = np.clip(np.rint(x.numpy() / scale), -128, 127).astype(np.int64)
    total = (q @ codes.T).astype(np.float64)
    return total * float(scale) * weight.scale.astype(np.float64) + net.hidden.bias.detach().numpy()


@pytest.mark.parametrize("asymmetric", [False, True])
def test_a_layer_equals_integer_arithmetic(net, record, asymmetric) -> None:
    x = torch.randn(64, 32) * float(record.site("hidden", "input").amax)  # saturates, too
    with torch.no_grad():
        got = fake_quantize(net, record, asymmetric=asymmetric).hidden(x).numpy()
    expected = _hidden_in_integers(net, record, x, asymmetric)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_network_equals_modelopts_own_fake_quantization(net, record, make_split) -> None:
    x = make_split().head(24).x
    reference = copy.deepcopy(net)
    insert_quantizers(reference, record.quantized_modules(), None)
    run_calibration(reference, lambda m: m(x))
    with torch.no_grad():
        plain, ours, theirs = net(x), fake_quantize(net, record)(x), reference(x)
    assert _relative(ours, theirs) < 1e-5
    assert 1e-4 < _relative(ours, plain) < 0.05


def test_only_quantized_layers_change_and_only_in_the_copy(net, record) -> None:
    digest = model_digest(net)
    twin = fake_quantize(net, record)
    assert model_digest(net) == digest
    for name in record.modules():
        same = torch.equal(twin.get_submodule(name).weight, net.get_submodule(name).weight)
        assert same == (name not in record.quantized_modules())


def test_nothing_quantized_is_the_network_itself(net, record, make_split) -> None:
    x = make_split().x
    kept = record.with_float(dict.fromkeys(record.modules(), "For the test."))
    assert torch.equal(fake_quantize(net, kept)(x), net(x))


def test_outputs_are_quantized_where_asked(net, record, make_split) -> None:
    x = make_split().x
    kept: list[Tensor] = []
    twin = fake_quantize(net, record, asymmetric=True, outputs=["mid"])
    twin.mid.register_forward_hook(lambda _, __, out: kept.append(out))
    twin(x)
    scale, zero = record.site("mid", "output").affine_u8()
    codes = kept[0].detach() / float(scale) + zero
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert len(codes.round().unique()) <= 256


def test_scales_may_be_float16(net, record, make_split) -> None:
    x = make_split().x
    with torch.no_grad():
        half = fake_quantize(net, record, scale_dtype=np.float16)(x)
        single = fake_quantize(net, record)(x)
    assert 0 < _relative(half, single) < 0.02


def test_a_flavour_may_round_weights_its_own_way(net, record) -> None:
    seen: dict[int, np.ndarray] = {}

    def coarse(rows: np.ndarray, amax: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen[rows.shape[1]] = rows
        scale = amax / 7
        return np.rint(rows / scale[:, None]).astype(np.int8), scale

    twin = fake_quantize(net, record, weight_form=coarse)
    channels_last = net.mid.weight.detach().permute(0, 2, 3, 1).flatten(1).numpy()
    assert np.array_equal(seen[16 * 9], channels_last)
    step = record.site("mid", "weight").amax.reshape(-1, 1, 1, 1) / 7
    levels = twin.mid.weight.numpy() / step
    assert np.abs(levels - np.rint(levels)).max() < 1e-5
    assert np.abs(twin.mid.weight.numpy() - net.mid.weight.detach().numpy()).max() <= step.max() / 2


def test_a_copy_can_be_copied(net, record, make_split) -> None:
    twin = fake_quantize(net, record)
    x = make_split().x
    assert torch.equal(copy.deepcopy(twin)(x), twin(x))


def test_a_record_of_another_module_is_noticed(net, record) -> None:
    net.hidden = nn.Linear(32, 16)
    with pytest.raises(CheckFailed, match=r'32 ranges for layer "hidden".*16 output channels'):
        fake_quantize(net, record)
    del net.mid
    with pytest.raises(CheckFailed, match="no such layer"):
        int8_weights(net, record)


def test_patterns_hold_on_the_integers(net, record) -> None:
    patterns = {"mid.weight": "2:4", "hidden.weight": "2:4", "wide.weight": "2:4"}
    with pytest.raises(CheckFailed, match=r"mid\.weight"):
        check_pattern_int8(net, record, patterns)
    with torch.no_grad():
        for name in patterns:
            weight = net.get_parameter(name)
            weight.mul_(pattern_mask(weight, "2:4"))
    found = check_pattern_int8(net, record, patterns)
    assert found == {"mid.weight": "int8", "hidden.weight": "int8", "wide.weight": "float"}
    net.wide.weight.data[0] = 1.0
    with pytest.raises(CheckFailed, match=r"wide\.weight"):
        check_pattern_int8(net, record, patterns)


def test_a_pattern_is_judged_by_what_is_deployed(net, record) -> None:
    """Values that round to zero are zeros on the device."""
    with torch.no_grad():
        mask = pattern_mask(net.hidden.weight, "2:4")
        net.hidden.weight.copy_(torch.where(mask, net.hidden.weight, 1e-9))
    check_pattern_int8(net, record, {"hidden.weight": "2:4"})
