"""Whether this machine runs a bundle as it is deployed."""

from __future__ import annotations

from elastic_export.engine.adapters.releases import TITLES
from elastic_export.engine.builder import EngineBuilder, device_sm, installed
from elastic_export.engine.bundle import Bundle
from elastic_export.engine.bundle_options import options_for
from elastic_export.errors import UserError
from elastic_export.pipeline.subjects import sm_of

__all__ = ["why_not_here"]


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
