"""Every flavour runs in ONNX Runtime as the torch network it stands for; TensorRT-RTX builds it.

The TensorRT flavours are emulated: their own files run on ONNX Runtime's CPU kernels. TensorRT-RTX
knows strong typing alone, so ``trt-weak`` is built there as the FP32 network with Q/DQ that it is.
Accepted by the builder says nothing of kernels: those are chosen on the device.
"""

from __future__ import annotations

import pytest

from elastic_export.engine import tensorrt_rtx
from elastic_export.errors import CheckFailed
from elastic_export.export import check_activations, check_finite, check_opset, check_parity
from tests.unit.export.flavours.listing import NETWORKS

TOLERANCE = {"plain": 1e-4, "fp16": 2e-2}
INT8_TOLERANCE = 1e-1
"""The bounds of the export stage (docs/architecture.md), relative to the largest logit."""

FORMS = (
    *("plain", "fp16", "ort-cpu", "ort-trt", "trt-strong"),
    *("trt-weak", "trt-weak@17", "trt-weak@13"),
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("network", NETWORKS)
def test_onnx_runtime_computes_what_torch_does(network, form, written):
    one = written(network, form)
    images = one.case.images.numpy()
    check_opset(one.path, one.opset)
    check_finite(one.path)
    check_activations(one.path, images)
    named = {"module": one.reference(), "table": one.case.exported.table}
    tolerance = TOLERANCE.get(form, INT8_TOLERANCE)
    found = check_parity(one.path, images, one.logits(), tolerance, **named)
    if form not in TOLERANCE:
        against_float = check_parity(one.path, images, one.case.logits, 0.25)
        assert against_float["relative_error"] > 1e-4, "an INT8 network that equals FP32 is none"
        assert found["relative_error"] < against_float["relative_error"]


BUILT = ("plain", "fp16", "trt-strong", "trt-weak", "trt-weak@13")
LARGE = ("swin", "elasticvit")
"""Each of their engines takes one to four seconds, so half of them are built in the slow run."""


@pytest.mark.parametrize(
    ("network", "sm"),
    [
        pytest.param(network, sm, marks=pytest.mark.slow if sm == 80 and network in LARGE else [])
        for network in NETWORKS
        for sm in (80, 86)
    ],
)
@pytest.mark.parametrize("form", BUILT)
def test_tensorrt_rtx_accepts_and_builds_it(network, form, sm, written, tmp_path):
    if tensorrt_rtx.available() is None:
        pytest.skip("install the extra rtx to build engines")
    report = tensorrt_rtx.build(written(network, form).path, tmp_path / "engine", sm=sm)
    assert report.status == "accepted"
    assert report.sm == sm
    assert report.bytes == (tmp_path / "engine").stat().st_size > 0


@pytest.mark.parametrize("network", NETWORKS)
def test_tensorrt_rtx_refuses_what_is_for_onnx_runtime(network, written, tmp_path):
    """The oracle tells flavours apart: its answers above mean something."""
    if tensorrt_rtx.available() is None:
        pytest.skip("install the extra rtx to build engines")
    with pytest.raises(CheckFailed, match="refuses"):
        tensorrt_rtx.build(written(network, "ort-cpu").path, tmp_path / "engine", sm=86)
    assert not (tmp_path / "engine").exists()
