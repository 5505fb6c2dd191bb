"""The builder of TensorRT's Python module, in a process of its own.

The module's own logger writes to the process's output, which becomes the build's log: nothing of
Python is called from inside the builder, where an exception could not be passed on. Before 8.4 the
workspace is an attribute, later a memory pool; inspector and verbosity came with 8.2.
"""

import importlib
import json
import os
import sys
from typing import Any, Dict, List

__all__ = ["BUILD", "build_with_module", "module_command"]

BUILD = "build-engine"
"""The script's command that does it; not one for people."""


def module_command(
    onnx: str, draft: str, timings: str, api: Dict[str, Any], mib: int, level: Any
) -> List[str]:
    """Return the command line that builds an engine.

    Args:
        onnx: The model.
        draft: Where the engine goes.
        timings: The timing cache, read and written.
        api: What the plan says the builder may use.
        mib: Of workspace.
        level: Of effort, None for the builder's own.
    """
    asked = {"onnx": onnx, "draft": draft, "timings": timings, "api": api, "mib": mib}
    asked["level"] = level
    return [sys.executable, os.path.abspath(__file__), BUILD, json.dumps(asked)]


def build_with_module(text: str) -> int:
    """Build what ``module_command`` asked for; errors go to the log. Returns the exit code."""
    asked = json.loads(text)
    trt: Any = importlib.import_module("tensorrt")
    logger = trt.Logger(trt.Logger.VERBOSE)
    builder = trt.Builder(logger)
    network, parser = _network(trt, builder, logger, asked["api"])
    with open(asked["onnx"], "rb") as file:
        model = file.read()
    if not parser.parse(model):
        reason = str(parser.get_error(0)) if parser.num_errors else "no reason given"
        return _failed("TensorRT {} does not take the model: {}".format(trt.__version__, reason))
    config = _config(trt, builder, network, asked)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return 1
    try:
        with open(asked["draft"], "wb") as file:
            file.write(bytes(plan))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return _failed("the engine cannot be written: {}".format(error))
    _keep_timings(config, asked["timings"])
    return 0


def _failed(reason: str) -> int:
    sys.stdout.write("[E] {}\n".format(reason))
    return 1


def _network(trt: Any, builder: Any, logger: Any, api: Dict[str, Any]) -> Any:
    flags = 0
    kinds = trt.NetworkDefinitionCreationFlag
    if hasattr(kinds, "EXPLICIT_BATCH"):
        flags |= 1 << int(kinds.EXPLICIT_BATCH)
    if api["strong"] and hasattr(kinds, "STRONGLY_TYPED"):
        flags |= 1 << int(kinds.STRONGLY_TYPED)
    network = builder.create_network(flags)
    return network, trt.OnnxParser(network, logger)


def _config(trt: Any, builder: Any, network: Any, asked: Dict[str, Any]) -> Any:
    config, api = builder.create_builder_config(), asked["api"]
    size = asked["mib"] << 20
    if hasattr(config, "set_memory_pool_limit"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
    else:
        config.max_workspace_size = size
    for wanted, flag in (("fp16", "FP16"), ("int8", "INT8"), ("sparse", "SPARSE_WEIGHTS")):
        if api.get(wanted) and hasattr(trt.BuilderFlag, flag):
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if hasattr(trt, "ProfilingVerbosity") and hasattr(trt.ProfilingVerbosity, "DETAILED"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if asked["level"] is not None and hasattr(config, "builder_optimization_level"):
        config.builder_optimization_level = asked["level"]
    dla = api.get("dla")
    if dla is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = dla
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    _pin(trt, network, config, set(api.get("pins") or []), dla is not None)
    _take_timings(config, asked["timings"])
    return config


def _pin(trt: Any, network: Any, config: Any, names: Any, on_gpu: bool) -> None:
    """Keep the layers in FP32 whose values overflow FP16 (a decomposed LayerNorm's).

    A DLA has no FP32, so beside one they go to the GPU.
    """
    if not names:
        return
    for flag in ("OBEY_PRECISION_CONSTRAINTS", "STRICT_TYPES"):
        if hasattr(trt.BuilderFlag, flag):
            config.set_flag(getattr(trt.BuilderFlag, flag))
            break
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.name in names:
            layer.precision = trt.float32
            layer.set_output_type(0, trt.float32)
            if on_gpu:
                config.set_device_type(layer, trt.DeviceType.GPU)


def _take_timings(config: Any, path: str) -> None:
    """Begin with the timings of earlier builds; damaged ones cost time and nothing else."""
    data = b""
    if os.path.isfile(path):
        with open(path, "rb") as file:
            data = file.read()
    if not _take(config, data):
        _take(config, b"")


def _take(config: Any, data: bytes) -> bool:
    try:
        cache = config.create_timing_cache(data)
        return cache is not None and bool(config.set_timing_cache(cache, False))
    except (RuntimeError, TypeError, ValueError):
        return False


def _keep_timings(config: Any, path: str) -> None:
    draft = "{}.{}.part".format(path, os.getpid())
    try:
        cache = config.get_timing_cache()
        if cache is not None:
            with open(draft, "wb") as file:
                file.write(bytes(cache.serialize()))
            os.replace(draft, path)
    except OSError:
        if os.path.exists(draft):
            os.remove(draft)
