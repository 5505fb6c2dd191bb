"""Stand-ins for the ``tensorrt`` modules that this machine cannot have.

Each has exactly the names that its release documents, of those a build touches: a name it lacks is
an AttributeError, as it would be on the board. They parse real ONNX files and hand back, as an
"engine", JSON that tells what they were asked for. Sources: the bindings (``pyCore.cpp``,
``pyOnnx.cpp``, ``pyGraph.cpp``) and Python API pages of each release, and the migration guide
to 11. Log lines and inspector JSON have the formats recorded in github.com/NVIDIA/TensorRT issues
4056 and 4020 and in the guide to the inspector of 11.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import importlib.machinery
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

VERSIONS = ("8.2.1.8", "8.5.2.2", "8.6.2.3", "10.3.0", "10.16.1", "11.1.0")
REFUSED = "FooBar"
FAILS = "a node the builder fails at"
DEVICE = "GPU-A"

_FLAGS_8 = ["FP16", "INT8", "DEBUG", "GPU_FALLBACK", "STRICT_TYPES", "REFIT", "TF32"]
_FLAGS_8 += ["SPARSE_WEIGHTS", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"]
_FLAGS_10 = [name for name in _FLAGS_8 if name != "STRICT_TYPES"] + ["BF16", "FP8", "INT4"]
_FLAGS_11 = ["DEBUG", "GPU_FALLBACK", "REFIT", "TF32", "SPARSE_WEIGHTS", "STRICT_NANS"]


class _Logger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None: ...


class _Monitor:
    def __init__(self) -> None: ...


def importable(version: str) -> types.ModuleType:
    """Make the module of one release as ``import tensorrt`` would find it."""
    module = types.ModuleType("tensorrt")
    module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    vars(module).update(vars(stand_in(version, computes=True)))
    return module


def stand_in(version: str, *, computes: bool = False) -> Any:
    """Make the module of one release.

    Args:
        version: Of TensorRT.
        computes: Its engines hold the ONNX file, which ONNX Runtime executes on the addresses they
            are given, so that logits are real; others double a (1, 4) input.
    """
    number = tuple(int(part) for part in version.split(".")[:2])
    trt = types.SimpleNamespace(__version__=version, ILogger=_Logger, float32="float32")
    trt.nptype = {"float32": np.float32, "float16": np.float16}.__getitem__
    creation = {
        8: ["EXPLICIT_BATCH", "EXPLICIT_PRECISION"],
        10: ["EXPLICIT_BATCH", "STRONGLY_TYPED"],
    }
    trt.NetworkDefinitionCreationFlag = _enum("Creation", creation.get(number[0], []))
    flags = {8: _FLAGS_8, 10: _FLAGS_10, 11: _FLAGS_11}[number[0]]
    trt.BuilderFlag = _enum("BuilderFlag", flags)
    trt.ProfilingVerbosity = _enum("Verbosity", ["LAYER_NAMES_ONLY", "DETAILED", "NONE"])
    trt.LayerInformationFormat = _enum("Format", ["ONELINE", "JSON"])
    trt.TensorIOMode = _enum("Mode", ["NONE", "INPUT", "OUTPUT"])
    trt.DeviceType = _enum("DeviceType", ["GPU", "DLA"])
    if number >= (8, 4):
        trt.MemoryPoolType = _enum("Pool", ["WORKSPACE", "DLA_MANAGED_SRAM"])
    if number >= (8, 6):
        levels = ["NONE", "AMPERE_PLUS"]
        levels += ["SAME_COMPUTE_CAPABILITY"] if number >= (10, 16) else []
        trt.HardwareCompatibilityLevel = _enum("Hardware", levels)
    if number >= (10, 16):
        trt.IProgressMonitor = _Monitor
    trt.computes = computes
    trt.Builder = lambda log: _builder(trt, number, log)
    trt.OnnxParser = lambda network, log: _parser(number, network, log)
    trt.Runtime = lambda log: _runtime(trt, number)
    return trt


def _runtime(trt: Any, number: tuple[int, int]) -> Any:
    """Loads for core 0 of a DLA unless it is told another."""
    runtime = types.SimpleNamespace(DLA_core=0)

    def load(data: bytes) -> Any:
        told = json.loads(bytes(data))
        built_for = told["dla"] if told["device"] == "DLA" else 0
        return _engine(trt, number, told) if runtime.DLA_core == built_for else None

    runtime.deserialize_cuda_engine = load
    return runtime


def _enum(name: str, members: list[str]) -> Any:
    return enum.IntEnum(name, {member: index for index, member in enumerate(members)})


def _layer(number: tuple[int, int], name: str, operator: str) -> Any:
    class Layer:
        __slots__ = ("kind", "name", "num_outputs", "types", *(["precision"] * (number < (11, 0))))

        def __init__(self) -> None:
            self.name, self.kind, self.num_outputs, self.types = name, operator, 1, {}

    def set_output_type(self: Any, index: int, kind: str) -> None:
        self.types[index] = kind

    if number < (11, 0):
        Layer.set_output_type = set_output_type  # type: ignore[attr-defined]
    return Layer()


def _parser(number: tuple[int, int], network: Any, log: Any) -> Any:
    errors: list[Any] = []

    def parse_from_file(path: str) -> bool:
        network.model = Path(path).read_bytes()
        for index, node in enumerate(onnx.load(path).graph.node):
            network.layers.append(_layer(number, node.name, node.op_type))
            if node.op_type == REFUSED:
                error = types.SimpleNamespace(
                    desc=lambda: "Plugin not found", node=lambda i=index: i
                )
                if number >= (10, 0):
                    error.node_name = lambda n=node: n.name
                    error.node_operator = lambda n=node: n.op_type
                errors.append(error)
        parser.num_errors = len(errors)
        return not errors

    parser = types.SimpleNamespace(
        parse_from_file=parse_from_file, num_errors=0, get_error=errors.__getitem__
    )
    return parser


class Cache:
    """Timings of one device and version: names of kernels."""

    def __init__(self, version: str, device: str, names: set[str]) -> None:
        self.version, self.device, self.names = version, device, names

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        self.names |= other.names
        return True

    def serialize(self) -> bytes:
        return f"{self.version}|{self.device}|{','.join(sorted(self.names))}".encode()


def _config(number: tuple[int, int], version: str) -> Any:
    slots = ["profiling_verbosity", "set", "cache", "pools"]
    slots += ["default_device_type", "DLA_core", "devices"]
    slots += ["max_workspace_size"] if number < (10, 0) else []
    slots += ["builder_optimization_level"] if number >= (8, 6) else []
    slots += ["hardware_compatibility_level"] if number >= (8, 6) else []
    slots += ["progress_monitor"] if number >= (10, 16) else []

    class Config:
        __slots__ = tuple(slots)

        def __init__(self) -> None:
            self.set, self.pools, self.cache, self.devices = [], {}, None, {}

        def set_device_type(self, layer: Any, device: Any) -> None:
            self.devices[layer.name] = device.name

        def set_flag(self, flag: Any) -> None:
            self.set.append(flag.name)

        def create_timing_cache(self, data: bytes) -> Cache | None:
            if not data:
                return Cache(version, DEVICE, set())
            parts = data.decode("utf-8", "replace").split("|")
            if len(parts) != 3:
                return None
            return Cache(parts[0], parts[1], set(parts[2].split(",")))

        def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
            self.cache = cache
            return (cache.version, cache.device) == (version, DEVICE)

        def get_timing_cache(self) -> Cache | None:
            return self.cache

    def set_memory_pool_limit(self: Any, pool: Any, size: int) -> None:
        self.pools[pool.name] = size

    if number >= (8, 4):
        Config.set_memory_pool_limit = set_memory_pool_limit  # type: ignore[attr-defined]
    return Config()


def _builder(trt: Any, number: tuple[int, int], log: Any) -> Any:
    def create_network(flags: int = 0) -> Any:
        layers: list[Any] = []

        class Network:
            num_layers = property(lambda self: len(layers))

            def get_layer(self, index: int) -> Any:
                return layers[index]

        network = Network()
        network.layers, network.creation = layers, flags  # type: ignore[attr-defined]
        return network

    def build(network: Any, config: Any) -> bytes | None:
        severity = trt.ILogger.Severity
        log.log(severity.INFO, "[MemUsageChange] Init CUDA")
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            monitor.phase_start("Building Engine", None, 2)
            monitor.phase_start("Tactic Selection", "Building Engine", 9)
            going = all(monitor.step_complete("Building Engine", step) for step in range(2))
            monitor.phase_finish("Tactic Selection")
            monitor.phase_finish("Building Engine")
            if not going:
                return None
        names = [layer.name for layer in network.layers]
        if FAILS in names:
            log.log(severity.ERROR, f"10: Could not find any implementation for node {{{FAILS}}}.")
            return None
        if "SPARSE_WEIGHTS" in config.set:
            products = [x.name for x in network.layers if x.kind == "MatMul"]
            head = "(Sparsity) Layers eligible for sparse math: "
            log.log(severity.VERBOSE, head + ", ".join(products))
            head = "(Sparsity) TRT inference plan picked sparse implementation for layers: "
            log.log(severity.VERBOSE, head + products[0])
        if config.cache is not None:
            config.cache.names |= set(names)
        return _plan(network, config, computes=trt.computes)

    return types.SimpleNamespace(
        create_network=create_network,
        create_builder_config=lambda: _config(number, trt.__version__),
        build_serialized_network=build,
    )


def _plan(network: Any, config: Any, *, computes: bool) -> bytes:
    told = {
        "creation": network.creation,
        "flags": config.set,
        "pools": config.pools,
        "verbosity": config.profiling_verbosity.name,
        "device": getattr(getattr(config, "default_device_type", None), "name", "GPU"),
        "dla": getattr(config, "DLA_core", None),
        "devices": config.devices,
        "workspace": getattr(config, "max_workspace_size", None),
        "level": getattr(config, "builder_optimization_level", None),
        "hardware": getattr(getattr(config, "hardware_compatibility_level", None), "name", None),
        "pinned": [
            x.name for x in network.layers if getattr(x, "precision", "") == "float32" and x.types
        ],
    }
    if computes:
        told["model"] = base64.b64encode(network.model).decode()
    return json.dumps(told).encode()


def inspected(number: tuple[int, int]) -> dict[str, Any]:
    """What the inspector says of an engine, in the form of a release."""
    channels = "Thirty-two wide channel vectorized row major Int8 format"
    if number < (11, 0):
        int8: dict[str, Any] = {"Name": "a", "Format/Datatype": channels}
        half: dict[str, Any] = {
            "Name": "b",
            "Format/Datatype": "Row major linear FP16 format (kLINEAR)",
        }
    else:
        int8 = {"Name": "a", "Format": channels, "DataType": "Int8"}
        half = {"Name": "b", "Format": "Row major linear format (kLINEAR)", "DataType": "Half"}
    kernel = "sm80_xmma_fprop_{}int8int8_tilesize64x64x64_r3s3_u1v1_scalebias_relu"
    convolution = {"LayerType": "CaskConvolution", "Inputs": [int8], "Outputs": [int8]}
    return {
        "Layers": [
            {
                "Name": "conv1",
                **convolution,
                "HasSparseWeights": 1,
                "TacticName": kernel.format("sparse_"),
            },
            {
                "Name": "conv2",
                **convolution,
                "HasSparseWeights": 1,
                "TacticName": kernel.format(""),
            },
            {
                "Name": "attention",
                "LayerType": "Myelin",
                "Inputs": [half],
                "Outputs": [half],
                "TacticName": "_gemm_mha_v2_0x1234",
            },
        ],
        "Bindings" if number < (11, 0) else "I/O Tensors": [],
    }


def _engine(trt: Any, number: tuple[int, int], told: dict[str, Any]) -> Any:
    """An engine that doubles its (1, 4) input, or computes; only its release's calls work."""
    kind = "float32"
    names, shapes, run = _computing(told) if "model" in told else _doubling()
    inspector = types.SimpleNamespace(
        get_engine_information=lambda form: json.dumps(inspected(number))
    )
    engine = types.SimpleNamespace(create_engine_inspector=lambda: inspector)
    context = types.SimpleNamespace()
    engine.create_execution_context = lambda: context
    if number >= (8, 5):
        addresses: dict[str, int] = {}
        engine.num_io_tensors, engine.get_tensor_name = 2, names.__getitem__
        modes = dict(zip(names, [trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT], strict=True))
        engine.get_tensor_mode = modes.__getitem__
        engine.get_tensor_shape = dict(zip(names, shapes, strict=True)).__getitem__
        engine.get_tensor_dtype = lambda name: kind
        context.set_tensor_address = addresses.__setitem__
        context.execute_async_v3 = lambda stream: run(*(addresses[name] for name in names))
    if number < (10, 0):
        engine.num_bindings, engine.get_binding_name = 2, names.__getitem__
        engine.binding_is_input = [True, False].__getitem__
        engine.get_binding_shape = shapes.__getitem__
        engine.get_binding_dtype = lambda index: kind
        context.execute_async_v2 = lambda bindings, stream: run(*bindings)
    return engine


def _doubling() -> tuple[list[str], list[tuple[int, ...]], Any]:
    return ["input", "logits"], [(1, 4), (1, 4)], _double


def _computing(told: dict[str, Any]) -> tuple[list[str], list[tuple[int, ...]], Any]:
    """Names and shapes of input and output, and what computes from address to address."""
    model = base64.b64decode(told["model"])
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (source,), (sink, *_) = session.get_inputs(), session.get_outputs()

    def run(given: int, answer: int) -> bool:
        image = np.empty(source.shape, np.float32)
        ctypes.memmove(image.ctypes.data, given, image.nbytes)
        (logits,) = session.run([sink.name], {source.name: image})
        ctypes.memmove(answer, logits.ctypes.data, logits.nbytes)
        return True

    return [source.name, sink.name], [tuple(source.shape), tuple(sink.shape)], run


def _double(source: int, sink: int) -> bool:
    given = (ctypes.c_float * 4).from_address(source)
    answer = (ctypes.c_float * 4).from_address(sink)
    for index in range(4):
        answer[index] = 2 * given[index]
    return True


def plan_of(engine: Path) -> dict[str, Any]:
    """What a stand-in's engine says it was asked for."""
    return json.loads(engine.read_text())
