"""A stand-in for TensorRT's Python module, with the names that a release has and no others.

It is not TensorRT. Its "engine" is the ONNX file, which ONNX Runtime executes on the addresses it
is given, so that logits are real. STAND_IN_VERSION chooses the release, STAND_IN_LOG takes what the
builder was asked for.
"""

import ctypes
import json
import os

import numpy
import onnx
import onnxruntime

__version__ = os.environ.get("STAND_IN_VERSION", "10.3.0")
_NUMBERS = tuple(int(part) for part in __version__.split(".")[:2])
_asked = {"flags": [], "network": [], "workspace": None, "pinned": []}
_asked.update(device="GPU", core=None, loaded=None, on_gpu=[])

float32 = "float32"


class Logger:
    """Takes a severity, as the real one."""

    ERROR = 1

    def __init__(self, severity):
        self.severity = severity


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


class _Config:
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


class Builder:
    """Builds an engine."""

    def __init__(self, logger):
        pass

    def create_network(self, flags):
        """Begin a network."""
        _asked["network"].append(flags)
        return _Network()

    def create_builder_config(self):
        """Begin a configuration."""
        return _Config()

    def build_serialized_network(self, network, config):
        """Return the plan; nothing where the workspace is more than the board has."""
        if _asked["workspace"][1] > int(os.environ.get("STAND_IN_MOST_MIB", "4096")) << 20:
            return None
        _log()
        return __version__.encode() + b"\n" + network.model


class _Context:
    def __init__(self, model):
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.places = {}
        ports = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.shapes = {port.name: port.shape for port in ports}
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
        return True


class _Engine:
    def __init__(self, model):
        self.model = model
        if _NUMBERS < (10, 0):
            context = _Context(model)
            self.num_bindings = len(context.shapes)
            self.get_binding_name = list(context.shapes).__getitem__

    def create_execution_context(self):
        """Make what runs."""
        return _Context(self.model)


def _log():
    if "STAND_IN_LOG" in os.environ:
        with open(os.environ["STAND_IN_LOG"], "w") as file:
            json.dump(_asked, file)


class Runtime:
    """Loads engines."""

    DLA_core = 0

    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, data):
        """Return the engine, or nothing where another version made it."""
        _asked["loaded"] = self.DLA_core
        _log()
        version, _, model = data.partition(b"\n")
        return _Engine(model) if version.decode() == __version__ else None
