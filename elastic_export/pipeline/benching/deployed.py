"""Whether this machine runs a bundle as it is deployed, and what to deploy by what was measured."""

from __future__ import annotations

from collections.abc import Mapping

from elastic_export.engine.adapters.releases import TITLES
from elastic_export.engine.builder import EngineBuilder, device_sm, installed
from elastic_export.engine.bundle import Bundle
from elastic_export.engine.bundle_options import options_for
from elastic_export.errors import UserError
from elastic_export.measure.compare import choose
from elastic_export.measure.protocol import Timing
from elastic_export.pipeline.subjects import sm_of

__all__ = ["choice", "why_not_here"]


def why_not_here(bundle: Bundle) -> str:
    """Say why this machine cannot run a bundle as its target does; empty where it can.

    Raises:
        CheckFailed: The bundle's plan is not one.
    """
    runtime = bundle.manifest.runtime.name
    if runtime == "onnxruntime":
        return ""
    if installed(runtime) is None:
        return f"{TITLES[runtime]} is not installed here"
    here, wanted = device_sm(), sm_of(bundle)
    if here is None:
        return "no GPU is seen here"
    if here != wanted:
        return f"the GPU here is sm_{here}{f', not sm_{wanted}' if wanted else ''}"
    try:
        builder = EngineBuilder(runtime)
        for precision in bundle.manifest.models:
            options_for(bundle, precision, builder)
    except UserError as error:
        return error.what.removesuffix(".")
    return ""


def choice(timings: Mapping[str, Timing], *, gpu: bool) -> tuple[str | None, str]:
    """Choose a precision by speed: FP16 stays on a GPU and FP32 on the CPU unless one is faster.

    Args:
        timings: Precision to timing, of the deployed runtime alone.
        gpu: Whether that runs on a GPU, where FP16 costs no accuracy.

    Returns:
        The precision, or None without a baseline, and the reason as a full sentence.
    """
    usual = ("fp16", "fp32") if gpu else ("fp32",)
    baseline = next((name for name in usual if name in timings), None)
    if baseline is None:
        return None, f"there is no {usual[0]} figure that the others could be compared with."
    return choose(timings, baseline=baseline)
