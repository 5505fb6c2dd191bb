"""Engines built and run with TensorRT's own Python module, where there is no trtexec.

Releases before 8.5 address tensors by binding number (``execute_async_v2``), later ones by name
(``execute_async_v3``); before 8.4 the workspace is an attribute, later a memory pool.
"""

import array
import hashlib
import importlib
import json
import os
import time
from typing import Any, Dict, List, Optional, Tuple

from elastic_export.measure.board.cuda import Cuda, load_cuda
from elastic_export.measure.board.sample import FLOAT_BYTES
from elastic_export.measure.board.shell import Cannot, Teller
from elastic_export.measure.board.trtexec import WORKSPACES_MIB

__all__ = ["TensorrtModuleRunner"]


class TensorrtModuleRunner:
    """One model as an engine of this board, by the module ``tensorrt``.

    Args:
        onnx: The model.
        digest: SHA-256 of the model; the engine's file is named by it.
        release: What ``release_for`` chose; its ``api`` says what the builder may use.
        shapes: ``input`` and ``logits`` to their static shapes.
        folder: Where the engine goes.
        teller: Told that layers cannot be reported.
    """

    runtime = "tensorrt"

    def __init__(
        self,
        onnx: str,
        digest: str,
        release: Dict[str, Any],
        shapes: Dict[str, List[int]],
        folder: str,
        teller: Teller,
    ) -> None:
        self.onnx = onnx
        self.digest = digest
        self.api = release["api"]
        self.shapes = shapes
        self.folder = folder
        self.teller = teller
        self._trt: Any = None
        self._cuda: Optional[Cuda] = None
        self._context: Any = None
        self._addresses: Dict[str, int] = {}
        self._numbers: List[int] = []
        self._kept: List[Any] = []
        self._workspace_mib = WORKSPACES_MIB[0]

    def prepare(self) -> Dict[str, Any]:
        """Build the engine, or take the one that is there, and load it.

        Raises:
            Cannot: the module or CUDA is missing, or the builder refuses the model.
        """
        try:
            trt: Any = importlib.import_module("tensorrt")
        except ImportError as error:
            raise Cannot(
                "There is neither trtexec nor the Python module tensorrt ({}).".format(error),
                "Install TensorRT with JetPack, or give the path of trtexec with --trtexec.",
            )
        self._trt = trt
        self._cuda = load_cuda()
        begin = time.time()
        how = hashlib.sha256(json.dumps(self.api, sort_keys=True).encode()).hexdigest()
        name = "{}-{}.trt{}.module.engine".format(self.digest[:16], how[:8], trt.__version__)
        path = os.path.join(self.folder, name)
        logger = trt.Logger(trt.Logger.ERROR)
        reused = os.path.isfile(path)
        if not reused:
            os.makedirs(self.folder, exist_ok=True)
            plan = self._build(trt, logger)
            with open(path + ".part", "wb") as file:
                file.write(plan)
            os.replace(path + ".part", path)
        with open(path, "rb") as file:
            data = file.read()
        runtime = trt.Runtime(logger)
        if self.api.get("dla") is not None:
            runtime.DLA_core = self.api["dla"]
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            os.remove(path)
            raise Cannot("TensorRT cannot load the engine it built.", "Run again.")
        self._context = engine.create_execution_context()
        self._kept = [logger, runtime, engine]
        self._bind(engine)
        return {
            "seconds": round(time.time() - begin, 1),
            "workspace_mb": self._workspace_mib,
            "retries": 0 if reused else WORKSPACES_MIB.index(self._workspace_mib),
            "engine_bytes": len(data),
            "reused": reused,
        }

    def sample(self, seconds: float, warmup_ms: int) -> Tuple[List[float], List[float]]:
        """Time it without transfers.

        Returns:
            Host time and GPU compute of each inference, in milliseconds.
        """
        self._repeat(warmup_ms / 1000.0)
        return self._repeat(seconds)

    def logits(self, batches: List[bytes], classes: int) -> List[List[float]]:
        """Run whole batches and return one list of logits an image."""
        rows: List[List[float]] = []
        cuda = self._device()
        for batch in batches:
            cuda.upload(self._addresses["input"], batch)
            self._enqueue()
            cuda.wait()
            values = array.array("f")
            values.frombytes(
                cuda.download(self._addresses["logits"], _bytes_of(self.shapes["logits"]))
            )
            rows += [list(values[i : i + classes]) for i in range(0, len(values), classes)]
        return rows

    def layers(self) -> Optional[Dict[str, Any]]:
        """Nothing: layer times come from trtexec."""
        self.teller.note("layers are reported only where there is trtexec")
        return None

    def log_tail(self) -> List[str]:
        """Nothing is logged."""
        return []

    def _build(self, trt: Any, logger: Any) -> bytes:
        builder = trt.Builder(logger)
        flags = 0
        kinds = trt.NetworkDefinitionCreationFlag
        if hasattr(kinds, "EXPLICIT_BATCH"):
            flags |= 1 << int(kinds.EXPLICIT_BATCH)
        if self.api["strong"] and hasattr(kinds, "STRONGLY_TYPED"):
            flags |= 1 << int(kinds.STRONGLY_TYPED)
        network = builder.create_network(flags)
        parser = trt.OnnxParser(network, logger)
        with open(self.onnx, "rb") as file:
            model = file.read()
        if not parser.parse(model):
            first = str(parser.get_error(0)) if parser.num_errors else "no reason given"
            raise Cannot(
                "TensorRT {} does not take the model: {}".format(trt.__version__, first[:300]),
                "Export the bundle for this board's JetPack.",
            )
        for mib in WORKSPACES_MIB:
            plan = builder.build_serialized_network(
                network, self._config(trt, builder, network, mib)
            )
            if plan is not None:
                self._workspace_mib = mib
                return bytes(plan)
            self.teller.note("the build failed with {} MiB of workspace".format(mib))
        raise Cannot(
            "TensorRT could not build an engine from {}.".format(os.path.basename(self.onnx)),
            "The board may have too little memory: add swap and stop the desktop.",
        )

    def _config(self, trt: Any, builder: Any, network: Any, mib: int) -> Any:
        config = builder.create_builder_config()
        size = mib << 20
        if hasattr(config, "set_memory_pool_limit"):
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
        else:
            config.max_workspace_size = size
        for wanted, flag in (("fp16", "FP16"), ("int8", "INT8"), ("sparse", "SPARSE_WEIGHTS")):
            if self.api.get(wanted) and hasattr(trt.BuilderFlag, flag):
                config.set_flag(getattr(trt.BuilderFlag, flag))
        if self.api.get("dla") is not None:
            config.default_device_type = trt.DeviceType.DLA
            config.DLA_core = self.api["dla"]
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
        self._pin(trt, network, config)
        return config

    def _pin(self, trt: Any, network: Any, config: Any) -> None:
        """Keep the layers in FP32 whose values overflow FP16 (a decomposed LayerNorm's)."""
        names = set(self.api.get("pins") or [])
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
                if self.api.get("dla") is not None:  # which has no FP32
                    config.set_device_type(layer, trt.DeviceType.GPU)

    def _bind(self, engine: Any) -> None:
        cuda = self._device()
        for name, shape in self.shapes.items():
            self._addresses[name] = cuda.allocate(_bytes_of(shape))
        if hasattr(self._context, "set_tensor_address"):
            for name, address in self._addresses.items():
                self._context.set_tensor_address(name, address)
            self._numbers = []
        else:
            names = [engine.get_binding_name(i) for i in range(engine.num_bindings)]
            self._numbers = [self._addresses[name] for name in names]

    def _enqueue(self) -> None:
        stream = self._device().stream.value or 0
        if self._numbers:
            good = self._context.execute_async_v2(self._numbers, stream)
        else:
            good = self._context.execute_async_v3(stream)
        if not good:
            raise Cannot("TensorRT could not run the engine.", "Look at the board's log (dmesg).")

    def _repeat(self, seconds: float) -> Tuple[List[float], List[float]]:
        cuda, clock = self._device(), time.perf_counter
        host: List[float] = []
        gpu: List[float] = []
        stop = clock() + seconds
        while True:
            begin = clock()
            cuda.begin()
            self._enqueue()
            gpu.append(cuda.end())
            now = clock()
            host.append(1000.0 * (now - begin))
            if now >= stop and len(host) >= 3:
                return host, gpu

    def _device(self) -> Cuda:
        if self._cuda is None:
            raise Cannot("The engine is not loaded.", "Report this: it is a bug.")
        return self._cuda


def _bytes_of(shape: List[int]) -> int:
    size = FLOAT_BYTES
    for length in shape:
        size *= length
    return size
