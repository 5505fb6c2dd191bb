"""What ElasticViT's stem and stages put out, where a fixture tells it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from case import read_fixture
from folders import cases
from safetensors.torch import load_file
from torch import Tensor, nn

from elastic_export.checkpoints import import_supernet
from elastic_export.elastic import extract


def _watched(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    parts = {"conv_stem": module.stem}
    parts |= {f"stage{s}": stage for s, stage in enumerate(module.stages)}
    for name, part in parts.items():
        part.register_forward_hook(lambda m, i, out, name=name: seen.__setitem__(name, out))
    with torch.no_grad():
        module(x)
    return seen


def test_stem_and_stages_put_out_what_the_system_does(folder: Path) -> None:
    fixture = read_fixture(folder)
    tapped = {key.split(".tap.")[0] for key in fixture["tensors"] if ".tap." in key}
    if fixture["family"] != "elasticvit" or not tapped:
        pytest.skip("the fixture holds no outputs of ElasticViT's stages")
    tensors = load_file(folder / "expected.safetensors")
    for name in tapped:
        case = next(c for c in cases(folder) if c.name == name)
        supernet = import_supernet(case.source, config=case.config).supernet
        module = extract(supernet, supernet.spec(case.spec)).module
        seen = _watched(module, tensors[case.input][:1])
        for key in [key for key in tensors if key.startswith(f"{name}.tap.")]:
            found, wanted = seen[key.split(".tap.")[1]], tensors[key]
            assert found.shape == wanted.shape, key
            assert float((found - wanted).abs().max() / wanted.abs().max()) <= 1e-4, key
