"""Milliseconds of each layer, from ONNX Runtime's own profiler on the file that is deployed.

ONNX Runtime fuses and renames nodes. How a profile's names lead back to the file's nodes, as seen
in profiles of ONNX Runtime 1.2x on ViT, Swin and ResNet, FP32 and INT8:

- a fusion adds a suffix behind a slash: ``blocks.0.mlp.fc1/MatMulAddFusion``,
  ``relu_2.dq/duplicated``;
- a layout change makes names unique by ``_token_`` and a number: ``layer1.0.conv1_token_42``;
- a convolution in blocked layout is called after its output, that of the activation fused into it:
  ``relu_3_nchwc``;
- the rounding in front of a layer is a QuantizeLinear of the file. It is the layer's own cost: it
  falls to the layers that read its result, in equal parts.

What leads back to no layer (attention products, norms, layout changes) is counted as unattributed,
never guessed at.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from elastic_export.engine.runners import session_options
from elastic_export.errors import UserError
from elastic_export.export.files import load_proto

__all__ = ["LayerTimes", "layer_times", "saved_ms"]

WARM_UP = 3
RUNS = 15

_KERNEL = "_kernel_time"
_WEIGHTED = frozenset(
    {
        "Conv",
        "ConvInteger",
        "FusedConv",
        "FusedGemm",
        "Gemm",
        "MatMulIntegerToFloat",
        "QGemm",
        "QLinearConv",
    }
)
"""Operators that have a weight in every network of ours, so that each should lead to a layer."""
_PRODUCTS = _WEIGHTED | {"DynamicQuantizeMatMul", "FusedMatMul", "MatMul", "QLinearMatMul"}
_FUSED_BEHIND = frozenset(
    {"Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "QuickGelu", "Relu", "Sigmoid", "Tanh"}
)
_SAME_CODES = frozenset({"DequantizeLinear", "Flatten", "Gather", "Reshape", "Transpose"})


@dataclass(frozen=True)
class LayerTimes:
    """Where a run's time goes; every figure the median over runs, in milliseconds.

    Args:
        ms: Layer to its time: its product and the rounding of its input.
        total_ms: All operators of one run.
        unattributed: Share of ``total_ms`` that belongs to no layer.
        lost: Names, as the profile has them, of operators with a weight that led to no layer;
            ``ms`` lacks their time.
    """

    ms: dict[str, float]
    total_ms: float
    unattributed: float
    lost: tuple[str, ...]


def layer_times(
    path: Path, names: Collection[str], *, threads: int = 1, runs: int = RUNS
) -> LayerTimes:
    """Profile one file on random input.

    Args:
        path: An ONNX file whose layer nodes carry their module names.
        names: The modules to look for.
        threads: Threads inside one operator.
        runs: Runs that count, after a few that warm up.

    Raises:
        UserError: ONNX Runtime cannot load the file.
    """
    return _profiled({"only": path}, names, threads, runs)["only"]


def saved_ms(
    fp32: Path, int8: Path, names: Collection[str], *, threads: int = 1, runs: int = RUNS
) -> tuple[dict[str, float], dict[str, LayerTimes]]:
    """Milliseconds that each layer saves in INT8, below zero where it is slower.

    Both files run in turns, so that drift hits both alike.

    Returns:
        Layer to milliseconds, for the layers found in both profiles; and both profiles under
        ``fp32`` and ``int8``.

    Raises:
        UserError: ONNX Runtime cannot load a file.
    """
    times = _profiled({"fp32": fp32, "int8": int8}, names, threads, runs)
    before, after = times["fp32"].ms, times["int8"].ms
    return {name: before[name] - after[name] for name in before if name in after}, times


def _profiled(
    paths: Mapping[str, Path], names: Collection[str], threads: int, runs: int
) -> dict[str, LayerTimes]:
    with tempfile.TemporaryDirectory(prefix="layer-times-") as folder:
        sessions = {key: _session(path, Path(folder) / key, threads) for key, path in paths.items()}
        inputs = {key: _random_input(session) for key, session in sessions.items()}
        for _ in range(WARM_UP + runs):
            for key, session in sessions.items():
                session.run(None, inputs[key])
        return {
            key: _read(Path(session.end_profiling()), _Owners(paths[key], names))
            for key, session in sessions.items()
        }


def _session(path: Path, prefix: Path, threads: int) -> ort.InferenceSession:
    options = session_options(threads)
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no base below Exception
        raise UserError(
            f"ONNX Runtime {ort.__version__} cannot load {path} to profile it.",
            "Export it again for this version.",
        ) from error


def _random_input(session: ort.InferenceSession) -> dict[str, np.ndarray]:
    (node,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in node.shape]
    values = np.random.default_rng(0).standard_normal(shape)
    return {node.name: values.astype(np.float16 if "float16" in node.type else np.float32)}


class _Owners:
    """Which layers an operator of a profile belongs to, by the file's own nodes."""

    def __init__(self, path: Path, names: Collection[str]) -> None:
        graph = load_proto(path).graph
        self._names = set(names)
        self._nodes = {node.name: node for node in graph.node}
        self._makers = {output: node for node in graph.node for output in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for value in node.input:
                self._readers[value].append(node)

    def of(self, event: str, op: str) -> tuple[str, ...]:
        """Names of the layers, empty where the operator belongs to none."""
        base = re.sub(r"(_token_\d+)+$", "", event.partition("/")[0])
        if op == "QuantizeLinear":
            node = self._nodes.get(base)
            return () if node is None else self._rounded_for(node)
        if op not in _PRODUCTS:
            return ()
        if base.endswith("_nchwc"):
            base = self._convolution_behind(base.removesuffix("_nchwc"))
        owner = self._layer(base)
        return () if owner is None else (owner,)

    def _layer(self, node: str) -> str | None:
        """A layer's node has its name; one that was split has a part's name behind a dot."""
        if node in self._names:
            return node
        parent = node.rpartition(".")[0]
        return parent if parent in self._names else None

    def _convolution_behind(self, value: str) -> str:
        node = self._makers.get(value)
        while node is not None and node.op_type in _FUSED_BEHIND:
            node = self._makers.get(node.input[0])
        return node.name if node is not None and node.op_type == "Conv" else ""

    def _rounded_for(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """Layers that read a rounded tensor; none where anything else reads it too."""
        found: dict[str, None] = {}
        for reader in (r for value in node.output for r in self._readers[value]):
            if reader.op_type in _SAME_CODES:
                owners = self._rounded_for(reader)
            else:
                owner = self._layer(reader.name) if reader.op_type in _PRODUCTS else None
                owners = () if owner is None else (owner,)
            if not owners:
                return ()
            found |= dict.fromkeys(owners)
        return tuple(found)


def _read(profile: Path, owners: _Owners) -> LayerTimes:
    events: list[dict[str, Any]] = json.loads(profile.read_text())
    starts = sorted(e["ts"] for e in events if e["name"] == "model_run")[WARM_UP:]
    kernels = [e for e in events if e["cat"] == "Node" and e["name"].endswith(_KERNEL)]
    per_run: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(starts)))
    total, lost = np.zeros(len(starts)), dict[str, None]()
    for event in kernels:
        run = int(np.searchsorted(starts, event["ts"], side="right")) - 1
        if run < 0:
            continue
        name, op, ms = event["name"].removesuffix(_KERNEL), event["args"]["op_name"], event["dur"]
        total[run] += ms / 1e3
        found = owners.of(name, op)
        for owner in found:
            per_run[owner][run] += ms / 1e3 / len(found)
        if not found and op in _WEIGHTED:
            lost[name] = None
    whole = float(np.median(total))
    ms_of = {name: float(np.median(times)) for name, times in per_run.items()}
    shares = sum(per_run.values(), np.zeros(len(starts))) / np.maximum(total, 1e-12)
    return LayerTimes(ms_of, whole, 1 - statistics.median(shares.tolist()), tuple(lost))
