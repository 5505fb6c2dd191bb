"""A stand-in for TensorRT's Python module, with the names that a release has and no others.

It is not TensorRT. Its "engine" is the ONNX file, which ONNX Runtime executes on the addresses it
is given, so that logits are real. STAND_IN_VERSION chooses the release, STAND_IN_LOG takes what the
builder was asked for; STAND_IN_FAIL is ``killed`` (the kernel kills a build with more than 200 MiB
of workspace), ``refused`` (the builder has no kernel for a layer), ``slow`` (it builds for a
minute) or ``large`` (an engine of 64 MiB).
"""

import ctypes
import json
import os
import signal
import sys
import time

import numpy
import onnx
import onnxruntime

__version__ = os.environ.get("STAND_IN_VERSION", "10.3.0")
_NUMBERS = tuple(int(part) for part in __version__.split(".")[:2])
_asked = {"flags": [], "network": [], "workspace": None, "pinned": [], "timings": None}
_asked.update(device="GPU", core=None, loaded=None, on_gpu=[])
_FAIL = os.environ.get("STAND_IN_FAIL", "")

float32 = "float32"


class Logger:
    """Takes a severity, as the real one, and writes to the process's output."""

    ERROR = 1
    VERBOSE = 4

    def __init__(self, severity):
        self.severity = severity

    def say(self, severity, text):
        """Write a line, where it is severe enough."""
        if severity <= self.severity:
            sys.stdout.write(f"[10/01/2026-12:00:00] [TRT] [{'IEWIV'[severity]}] {text}\n")
            sys.stdout.flush()


class ProfilingVerbosity:
    """How much an engine tells of its layers."""

    LAYER_NAMES_ONLY = "names"
    DETAILED = "detailed"


class LayerInformationFormat:
    """How an inspector writes."""

    JSON = "json"


class IProfiler:
    """What is told the time of each layer; the constructor must be called."""

    def __init__(self):
        self.constructed = True


class NetworkDefinitionCreationFlag:
    """Which kinds of network there are."""

    EXPLICIT_BATCH = 0


if _NUMBERS >= (10, 0):
    NetworkDefinitionCreationFlag.STRONGLY_TYPED = 1


class BuilderFlag:
    """What the builder may use."""

    SPARSE_WEIGHTS = "SPARSE_WEIGHTS"
    GPU_FALLBACK = "GPU_FALLBACK"


if _NUMBERS < (11, 0):
    BuilderFlag.FP16, BuilderFlag.INT8 = "FP16", "INT8"
    BuilderFlag.OBEY_PRECISION_CONSTRAINTS = "OBEY_PRECISION_CONSTRAINTS"


class DeviceType:
    """Where a layer runs."""

    GPU, DLA = "GPU", "DLA"


class MemoryPoolType:
    """Kinds of scratch memory, from 8.4 on."""

    WORKSPACE = "WORKSPACE"


class _Layer:
    def __init__(self, name):
        self.name = name

    def __setattr__(self, name, value):
        if name == "precision":
            _asked["pinned"].append([self.name, value])
        object.__setattr__(self, name, value)

    def set_output_type(self, index, kind):
        """Keep what it hands on in a type."""


class _Network:
    def __init__(self):
        self.model = b""
        self.layers = []

    @property
    def num_layers(self):
        """How many layers there are."""
        return len(self.layers)

    def get_layer(self, index):
        """Return one."""
        return self.layers[index]


class OnnxParser:
    """Reads a model into a network."""

    num_errors = 1

    def __init__(self, network, logger):
        self.network = network

    def parse(self, model):
        """Take the bytes of a model; false where they are none."""
        try:
            graph = onnx.load_from_string(model).graph
        except Exception:
            return False
        self.network.model = model
        self.network.layers = [_Layer(node.name) for node in graph.node]
        return bool(graph.node)

    def get_error(self, index):
        """Say what was wrong."""
        return "In node -1: the model is damaged"


class _TimingCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        """Return the bytes of the file."""
        return self.data + b"+built"


class _Config:
    profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY

    def __init__(self):
        if _NUMBERS >= (8, 4):
            self.set_memory_pool_limit = lambda pool, size: _asked.update(workspace=[pool, size])

    def __setattr__(self, name, value):
        if name == "max_workspace_size":
            if _NUMBERS >= (8, 4):
                raise AttributeError(name)
            _asked["workspace"] = ["max_workspace_size", value]
        names = {"default_device_type": "device", "DLA_core": "core"}
        if name in names:
            _asked[names[name]] = value
        object.__setattr__(self, name, value)

    def set_flag(self, flag):
        """Allow something."""
        _asked["flags"].append(flag)

    def set_device_type(self, layer, device):
        """Run one layer elsewhere."""
        _asked["on_gpu"].append([layer.name, device])

    def create_timing_cache(self, data):
        """Read a timing cache; none where the bytes are of something else."""
        return _TimingCache(data) if data.startswith(b"+built") or not data else None

    def set_timing_cache(self, cache, ignore_mismatch):
        """Use it."""
        self.cache = cache
        _asked["timings"] = len(cache.data)
        return True

    def get_timing_cache(self):
        """Return it."""
        return self.cache


class Builder:
    """Builds an engine."""

    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        """Begin a network."""
        _asked["network"].append(flags)
        return _Network()

    def create_builder_config(self):
        """Begin a configuration."""
        return _Config()

    def build_serialized_network(self, network, config):
        """Return the plan; nothing where the workspace is more than the board has."""
        size = _asked["workspace"][1]
        if size > int(os.environ.get("STAND_IN_MOST_MIB", "4096")) << 20:
            self.logger.say(1, "1: [cudaResources] OutOfMemory (no further information)")
            return None
        if _FAIL == "killed" and size > 200 << 20:
            os.kill(os.getpid(), signal.SIGKILL)
        if _FAIL == "refused":
            self.logger.say(1, "10: Could not find any implementation for node head.")
            return None
        if _FAIL == "slow":
            time.sleep(60)
        self.logger.say(4, "(Sparsity) Layers eligible for sparse math: fc1, fc2")
        self.logger.say(
            4, "(Sparsity) TRT inference plan picked sparse implementation for layers: fc1"
        )
        _log(_asked)
        head = f"{__version__} {config.profiling_verbosity}\n"
        return head.encode() + network.model + bytes(64 << 20 if _FAIL == "large" else 0)


class _Context:
    profiler = None

    def __init__(self, model):
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.places = {}
        ports = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.shapes = {port.name: port.shape for port in ports}
        if _NUMBERS >= (8, 2):
            self.enqueue_emits_profile = True
        if _NUMBERS >= (8, 5):
            self.set_tensor_address = self.places.__setitem__
            self.execute_async_v3 = lambda stream: self._run(self.places)
        if _NUMBERS < (10, 0):
            names = list(self.shapes)
            self.execute_async_v2 = lambda numbers, stream: self._run(
                dict(zip(names, numbers, strict=True))
            )

    def _run(self, places):
        (source,) = self.session.get_inputs()
        image = numpy.empty(source.shape, dtype=numpy.float32)
        ctypes.memmove(image.ctypes.data, places[source.name], image.nbytes)
        (logits,) = self.session.run(None, {source.name: image})
        (sink,) = self.session.get_outputs()
        ctypes.memmove(places[sink.name], logits.ctypes.data, logits.nbytes)
        if self.profiler is not None and self.enqueue_emits_profile and self.profiler.constructed:
            for number, layer in enumerate(_LAYERS):
                self.profiler.report_layer_time(layer["Name"], 3.0 - number)
        return True


_KIND = "Format/Datatype"
_LAYERS = [
    {"Name": "fc1", "LayerType": "gemm", "Inputs": [{_KIND: "Int8"}], "TacticName": "sparse_i8"},
    {"Name": "_gemm_mha_v2", "LayerType": "kgen", "Inputs": [{_KIND: "Half"}], "TacticName": ""},
    {"Name": "fc2", "LayerType": "gemm", "Inputs": [{_KIND: "Half"}], "TacticName": "f16"},
]


class _Inspector:
    def __init__(self, verbosity):
        self.verbosity = verbosity

    def get_engine_information(self, form):
        """Describe the layers, by name alone unless the engine was built to tell more."""
        detailed = self.verbosity == ProfilingVerbosity.DETAILED
        layers = _LAYERS if detailed else [layer["Name"] for layer in _LAYERS]
        return json.dumps({"Layers": layers, "Bindings": ["input", "logits"]})


class _Engine:
    def __init__(self, model, verbosity):
        self.model = model
        self.verbosity = verbosity
        if _NUMBERS < (10, 0):
            context = _Context(model)
            self.num_bindings = len(context.shapes)
            self.get_binding_name = list(context.shapes).__getitem__

    def create_execution_context(self):
        """Make what runs."""
        return _Context(self.model)

    def create_engine_inspector(self):
        """Make what describes it."""
        return _Inspector(self.verbosity)


def _log(news):
    """Add to the file that tells what was asked for."""
    path = os.environ.get("STAND_IN_LOG")
    if path:
        known = {}
        if os.path.exists(path):
            with open(path) as file:
                known = json.load(file)
        with open(path, "w") as file:
            json.dump(dict(known, **news), file)


class Runtime:
    """Loads engines."""

    DLA_core = 0

    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, data):
        """Return the engine, or nothing where another version made it."""
        # Builds are of another process: what its builder was asked for stays in the file.
        _log({"loaded": self.DLA_core})
        head, _, model = data.partition(b"\n")
        version, _, verbosity = head.decode("utf-8", "replace").partition(" ")
        return _Engine(model, verbosity) if version == __version__ else None
