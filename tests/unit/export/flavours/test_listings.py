"""Each flavour node by node, held against the listings in this folder.

A listing says what was intended when it was last looked at; what must hold whatever the listing
says is in `test_invariants`. After an intended change of an emitter, write the listings again and
read the difference before it is committed:

    UPDATE_LISTINGS=1 pytest tests/unit/export/flavours/test_listings.py && git diff --stat

Names that torch's exporter gives depend on its version, so the listings name theirs.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import pytest
import torch

from tests.unit.export.flavours.listing import NETWORKS, listing

HERE = Path(__file__).parent
UPDATE = "UPDATE_LISTINGS"
TORCH = ".".join(torch.__version__.split(".")[:2])
FORMS = ("plain", "fp16", "ort-cpu", "trt-strong", "trt-weak", "trt-weak@17", "trt-weak@13")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_graph_is_the_one_that_was_looked_at(network, form, written):
    found = f"torch {TORCH}\n{listing(written(network, form).path)}"
    kept = HERE / f"{network}.{form.replace('@', '.opset')}.txt"
    if os.environ.get(UPDATE):
        kept.write_text(found)
        return
    wanted = kept.read_text()
    if wanted.partition("\n")[0] != found.partition("\n")[0]:
        pytest.skip(f"{kept.name} was written with {wanted.partition(chr(10))[0]}, not {TORCH}")
    lines = difflib.unified_diff(
        wanted.splitlines(), found.splitlines(), kept.name, "as written now", lineterm="", n=0
    )
    assert wanted == found, "\n".join(
        [f"If this is intended, run the test with {UPDATE}=1.", *list(lines)[:60]]
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_onnx_runtimes_tensorrt_provider_gets_the_weak_form(network, written):
    assert listing(written(network, "ort-trt").path) == listing(written(network, "trt-weak").path)


def test_a_changed_graph_is_seen(written):
    """Opsets, types, names, attributes and order all show."""
    forms = [listing(written("family_vit", form).path) for form in FORMS]
    assert len(set(forms)) == len(FORMS)
    lines = listing(written("family_vit", "trt-strong").path).splitlines()
    layer = next(line for line in lines if line.startswith("MatMul blocks.0.mlp.fc1 "))
    assert layer.endswith("(layer_norm_1.dq, blocks.0.mlp.fc1.weight.dq) -> f16[1,17,64]")
    weight = next(line for line in lines if line.startswith("DequantizeLinear blocks.0.mlp.fc1."))
    assert weight.endswith(
        "(blocks.0.mlp.fc1.weight:i8[32,64], blocks.0.mlp.fc1.weight.scale:f16[64]) {axis=1}"
        " -> f16[32,64]"
    )
