"""From a recipe to stages to the store: the only room that knows all the others."""

from elastic_export.pipeline.flow import STAGES, PlanRow
from elastic_export.pipeline.inspecting import inspect
from elastic_export.pipeline.run import Built, build, plan
from elastic_export.pipeline.single import bench_bundle, export_one, extract_one

__all__ = [
    "STAGES",
    "Built",
    "PlanRow",
    "bench_bundle",
    "build",
    "export_one",
    "extract_one",
    "inspect",
    "plan",
]
