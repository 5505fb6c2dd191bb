"""The placement rules: data that is checked, and verdicts that name them."""

from __future__ import annotations

from importlib.resources import files

import pytest
from torch import nn

from elastic_export.config.target import Flavour
from elastic_export.errors import UserError
from elastic_export.quantize.placement import ATTENTION, in_force, placement_rules, read_rules
from elastic_export.quantize.policy import Verdict, attention_verdict, judge

TEXT = files("elastic_export.quantize").joinpath("placement.yaml").read_text(encoding="utf-8")


def test_every_int8_flavour_has_its_rules() -> None:
    rules = placement_rules()
    flavours = [name for section in rules.sections.values() for name in section.flavours]
    assert sorted(flavours) == sorted(set(Flavour.__args__) - {"plain"})
    for rule in rules.rules.values():
        assert len(rule.source) > 10
        assert rule.reason.endswith(".")


def test_tensorrt_keeps_float_what_its_kernels_are_slow_at() -> None:
    """ModelOpt for ONNX: K or N below 16, matrix-vector products, convolutions of few channels."""
    expected = {"classifier", "gemv", "first_conv", "narrow", "grouped", ATTENTION}
    for flavour in ("trt-weak", "trt-strong", "ort-trt"):
        assert in_force(flavour) == expected
    assert "gemv" not in in_force("ort-cpu")
    rules = placement_rules().rules
    assert rules["narrow"].below == rules["grouped"].below == 16


def test_an_unknown_flavour() -> None:
    with pytest.raises(UserError, match=r'no INT8 flavour "trt-weka"\. Did you mean "trt-weak"'):
        in_force("trt-weka")


@pytest.mark.parametrize(
    ("name", "layer", "positions", "rule", "reason"),
    [
        ("blocks.0.mlp.fc1", nn.Linear(16, 16), 197, "", ""),
        ("head", nn.Linear(64, 100), 1, "classifier,gemv", "classifier"),
        ("head.fc", nn.Linear(64, 10), None, "classifier,narrow", "classifier"),
        ("overhead", nn.Linear(64, 100), 4, "", ""),
        ("se.reduce", nn.Conv2d(64, 16, 1), 1, "gemv", "one position"),
        ("stem", nn.Conv2d(3, 32, 3), 900, "first_conv", "3 input channels"),
        ("stem", nn.Conv2d(1, 8, 3), 900, "first_conv,narrow", "1 input channels"),
        ("conv", nn.Conv2d(8, 32, 3), 900, "narrow", "8 input channels, fewer than 16"),
        ("conv", nn.Conv2d(16, 15, 3), 900, "narrow", "15 output channels, fewer than 16"),
        ("fc", nn.Linear(3, 32), 9, "classifier,narrow", "classifier"),
        ("mlp", nn.Linear(3, 32), 9, "narrow", "3 input features, fewer than 16"),
        ("dw", nn.Conv2d(32, 32, 3, groups=32), 9, "grouped", "1 input channel(s) per group"),
        ("conv", nn.Conv2d(32, 32, 3, groups=2), 9, "", ""),
        ("conv", nn.Conv2d(30, 32, 3, groups=2), 9, "grouped", "15 input channel(s) per group"),
    ],
)
def test_verdicts_name_all_rules_and_explain_one(name, layer, positions, rule, reason) -> None:
    verdict = judge(name, layer, positions=positions)
    assert verdict.rule == rule
    assert reason in verdict.reason
    assert bool(verdict.reason) == bool(rule)


def test_hard_reasons_name_no_rule() -> None:
    class Standardised(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):  # type: ignore[no-untyped-def]
            return super()._conv_forward(x, weight - weight.mean(), bias)

    skipped = judge("head", nn.Linear(64, 10), ["head"])
    assert skipped == Verdict('The calibration recipe skips it (pattern "head").')
    inside = judge("blocks.3.attn.qkv", nn.Linear(64, 192), ["blocks.3"])
    assert (bool(inside.reason), inside.rule) == (True, "")
    special = judge("stem", Standardised(3, 16, 3))
    assert "Standardised computes more" in special.reason
    assert special.rule == ""


def test_attention_has_one_rule() -> None:
    assert attention_verdict().rule == ATTENTION
    assert attention_verdict().reason


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("    below: 16\n    reason: It has", "    reason: It has", 'needs "below"'),
        ("      grouped: true\n", "", 'differ in "grouped"'),
        ("      gemv: false", "      gevm: false", "differ in"),
        ("kind: group", "kind: groups", "kind"),
        ("most: 4", "most: 0", "most"),
        ("kind: products", "kind: names\n    layers: [attn]", "products"),
        ("rules:\n", "rulez:\n", "rulez"),
        ("sections:\n", "sections: [\n", "not valid YAML"),
    ],
)
def test_mistakes_in_the_file_are_named(old: str, new: str, problem: str) -> None:
    assert TEXT.count(old) >= 1
    with pytest.raises(UserError, match="placement") as caught:
        read_rules(TEXT.replace(old, new, 1))
    assert problem in str(caught.value)


def test_a_section_is_switched_by_one_line() -> None:
    at = TEXT.index("onnxruntime-cpu:")
    changed = read_rules(TEXT[:at] + TEXT[at:].replace("narrow: true", "narrow: false", 1))
    assert not changed.sections["onnxruntime-cpu"].in_force["narrow"]
    assert changed.sections["tensorrt"] == placement_rules().sections["tensorrt"]
