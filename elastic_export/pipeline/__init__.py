"""From a recipe to stages to the store: the only room that knows all the others.

What is named here is loaded when it is first used: looking at a checkpoint takes a fraction of the
memory and time that exporting one does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elastic_export.pipeline.benching.here import bench_here
    from elastic_export.pipeline.compiling import CompileRequest, compile_here
    from elastic_export.pipeline.estimating import estimate_latency, fit_board
    from elastic_export.pipeline.extracting import extract_one
    from elastic_export.pipeline.flow import STAGES, PlanRow
    from elastic_export.pipeline.inspecting import inspect
    from elastic_export.pipeline.remote import bench_on, probe_board
    from elastic_export.pipeline.run import Built, build, plan
    from elastic_export.pipeline.single import export_one

__all__ = [
    "STAGES",
    "Built",
    "CompileRequest",
    "PlanRow",
    "bench_here",
    "bench_on",
    "build",
    "compile_here",
    "estimate_latency",
    "export_one",
    "extract_one",
    "fit_board",
    "inspect",
    "plan",
    "probe_board",
]

_MODULES = {
    "benching.here": ("bench_here",),
    "compiling": ("CompileRequest", "compile_here"),
    "estimating": ("estimate_latency", "fit_board"),
    "extracting": ("extract_one",),
    "flow": ("STAGES", "PlanRow"),
    "inspecting": ("inspect",),
    "remote": ("bench_on", "probe_board"),
    "run": ("Built", "build", "plan"),
    "single": ("export_one",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
