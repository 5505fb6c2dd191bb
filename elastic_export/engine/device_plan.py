"""``device.json``: what the script on the board needs to build and time a bundle's models.

The table of trtexec's arguments stays here, where it is tested; the board only looks up its own
release.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from elastic_export.config.dla import LAST_RELEASE
from elastic_export.config.targets import ResolvedTarget
from elastic_export.engine.trtexec import (
    RELEASES,
    Release,
    build_arguments,
    load_arguments,
    steady_arguments,
    timing_arguments,
)
from elastic_export.errors import UserError

__all__ = ["PLAN", "Graph", "device_plan", "trtexec_arguments"]

PLAN = "device.json"


@dataclass(frozen=True)
class Graph:
    """What a builder must be told of one model.

    Attributes:
        strongly_typed: The graph itself says every precision.
        sparse: Its weights are 2:4.
        quantized: It holds Q/DQ.
        half: A weakly typed graph may run in FP16.
        pins: Nodes of a weakly typed graph that stay in FP32.
        dla: The DLA core that runs it; None for the GPU.
    """

    strongly_typed: bool
    sparse: bool
    quantized: bool
    half: bool
    pins: Sequence[str] = ()
    dla: int | None = None

    @classmethod
    def on(
        cls, target: ResolvedTarget, precision: str, *, sparse: bool, pins: Sequence[str] = ()
    ) -> Graph:
        """Describe the file of a precision, in the form that a target gets it.

        Args:
            target: Where it runs.
            precision: ``fp32``, ``fp16`` or ``int8``.
            sparse: Its weights are 2:4.
            pins: Nodes that stay in FP32, of a weakly typed graph.
        """
        strong = target.strongly_typed
        return cls(
            strongly_typed=strong,
            sparse=sparse and target.target.sparse_2_4,
            quantized=precision == "int8",
            half=precision != "fp32",
            pins=() if strong else tuple(pins),
            dla=target.dla,
        )


def device_plan(graphs: Mapping[str, Graph]) -> bytes:
    """Write the plan of a bundle.

    Args:
        graphs: Precision to what its model is.

    Returns:
        JSON: for each precision the releases that can build it, each with trtexec's arguments for
        building (``{mib}`` stands for the workspace; None where only the Python module can do it),
        for every run of the engine (``load``) and for timing it, and with what the Python module is
        told (``api``). Releases that cannot use a DLA are left out for a model that runs there.
    """
    precisions = {p: {"releases": _releases(graph)} for p, graph in graphs.items()}
    plan = {"schema_version": 1, "precisions": precisions}
    return (json.dumps(plan, indent=1, sort_keys=True) + "\n").encode()


def trtexec_arguments(target: ResolvedTarget) -> dict[str, dict[str, list[str]]]:
    """Say how trtexec builds and times a 2:4 network for a target.

    Nodes that have to stay in FP32 depend on the network and are not among the arguments.

    Returns:
        Precision to ``build`` and ``time``; nothing for a target without TensorRT.

    Raises:
        UserError: The release of TensorRT is unknown.
    """
    if target.software.runtime != "tensorrt":
        return {}
    version = target.software.runtime_version
    return {
        precision: {
            "build": build_arguments(
                version,
                workspace="1024",
                # FP32 is the dense yardstick.
                **asdict(Graph.on(target, precision, sparse=precision != "fp32")),
            ),
            "time": timing_arguments(version, target.dla),
        }
        for precision in target.flavours
    }


def _releases(graph: Graph) -> list[dict[str, Any]]:
    found = []
    for release in RELEASES:
        typed = release.strong_flag is not None if graph.strongly_typed else release.weak
        if typed and (graph.dla is None or release.first <= LAST_RELEASE):
            found.append(_entry(release, graph))
    return found


def _entry(release: Release, graph: Graph) -> dict[str, Any]:
    weak = not graph.strongly_typed
    last = release.last if graph.dla is None else min(release.last, LAST_RELEASE)
    return {
        "first": list(release.first),
        "last": list(last),
        "build": _build(release, graph),
        "load": load_arguments(graph.dla),
        "time": [*steady_arguments(release, graph.dla), release.percentile],
        "level": "--builderOptimizationLevel={level}" if release.first >= (8, 6) else None,
        "api": {
            "strong": graph.strongly_typed,
            # INT8 without FP16 would leave every other layer in FP32.
            "fp16": weak and (graph.half or graph.quantized),
            "int8": weak and graph.quantized,
            "sparse": graph.sparse,
            "dla": graph.dla,
            "pins": list(graph.pins) if weak and (graph.half or graph.quantized) else [],
        },
    }


def _build(release: Release, graph: Graph) -> list[str] | None:
    version = ".".join(str(part) for part in release.first)
    try:
        return build_arguments(version, workspace="{mib}", **asdict(graph))
    except UserError:
        return None  # trtexec of that release cannot keep single layers in FP32
