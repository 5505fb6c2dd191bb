"""ELSA's counters give the figures its README and file names state."""

from __future__ import annotations

import pytest

from elastic_export.families.counters.elsa import (
    deit_flops,
    elsa_params,
    removed_of_group,
    swin_flops,
)
from elastic_export.families.swin import SwinConfig, SwinStage
from elastic_export.families.vit import VitConfig


def _swin(width: int) -> SwinConfig:
    depths = (2, 2, 18, 2)
    stages = (SwinStage(depth=(d,), heads=((width << s) // 32,)) for s, d in enumerate(depths))
    return SwinConfig(width=(width,), stages=tuple(stages))


@pytest.mark.parametrize(
    ("width", "pattern", "wanted"),
    [
        (384, "dense", 4.60),
        (384, "2:4", 2.51),
        (384, "1:4", 1.46),
        (768, "dense", 17.57),
        (768, "2:4", 9.20),
        (768, "1:4", 5.02),
    ],
)
def test_deit(width: int, pattern: str, wanted: float) -> None:
    config = VitConfig(width=(width,), heads=(width // 64,))
    names = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    spec = {f"blocks.{i}.{name}.nm": pattern for i in range(12) for name in names}
    assert round(deit_flops(config, spec) / 1e9, 2) == wanted


@pytest.mark.parametrize(
    ("width", "pattern", "wanted"),
    [
        (96, "dense", 8.75),
        (96, "2:4", 4.58),
        (96, "1:4", 2.50),
        (128, "dense", 15.44),
        (128, "2:4", 8.04),
        (128, "1:4", 4.34),
    ],
)
def test_swin(width: int, pattern: str, wanted: float) -> None:
    config = _swin(width)
    names = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    spec = {f"layers.{s}.blocks.{b}.{n}.nm": pattern for s, b in config.places() for n in names}
    assert round(swin_flops(config, spec) / 1e9, 2) == wanted


def test_masked_parameters_do_not_count() -> None:
    shapes = {"a.weight": (8, 20), "a.bias": (8,), "b.weight": (4, 8)}
    assert elsa_params(shapes, {"a.nm": "1:4", "b.nm": "dense", "depth": 3}) == 40 + 8 + 32
    assert elsa_params(shapes, {"a.nm": "4:5"}) == 160 + 8 + 32
    assert (removed_of_group("2:4"), removed_of_group("4:5")) == ((2, 4), (0, 5))
