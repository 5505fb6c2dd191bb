"""Engines run with TensorRT's own Python module, where there is no trtexec.

Releases before 8.5 address tensors by binding number (``execute_async_v2``), later ones by name
(``execute_async_v3``).
"""

import array
import hashlib
import importlib
import json
import time
from typing import Any, Dict, List, Optional

from elastic_export.measure.board.cuda import Cuda, load_cuda
from elastic_export.measure.board.dla import count_dla_layers
from elastic_export.measure.board.engines import EngineFile, build_engine
from elastic_export.measure.board.layers import parse_layers, parse_sparsity
from elastic_export.measure.board.sample import FLOAT_BYTES
from elastic_export.measure.board.shell import Cannot, Teller, deferred_interrupts, write_json
from elastic_export.measure.board.stats import Series
from elastic_export.measure.board.tensorrt_build import module_command

__all__ = ["TensorrtModuleRunner"]

PROFILED_RUNS = 100
WARM_RUNS = 10
MODULE_MISSING = (
    "There is neither trtexec nor a Python module tensorrt that loads.",
    "Install TensorRT with JetPack, or give the path of trtexec with --trtexec.",
)


class TensorrtModuleRunner:
    """One model as an engine of this board, by the module ``tensorrt``.

    Args:
        onnx: The model.
        digest: SHA-256 of the model; the engine's file is named by it.
        release: What ``release_for`` chose; its ``api`` says what the builder may use.
        shapes: ``input`` and ``logits`` to their static shapes.
        here: The GPU and its power mode: an engine holds kernels that were chosen there.
        folder: Where engine, timing cache and logs go.
        teller: Told of retries, and of layers that cannot be reported.
    """

    runtime = "tensorrt"

    def __init__(
        self,
        onnx: str,
        digest: str,
        release: Dict[str, Any],
        shapes: Dict[str, List[int]],
        here: str,
        folder: str,
        teller: Teller,
    ) -> None:
        self.onnx = onnx
        self.digest = digest
        self.release = release
        self.shapes = shapes
        self.here = here
        self.folder = folder
        self.teller = teller
        self._place: Optional[EngineFile] = None
        self._trt: Any = None
        self._cuda: Optional[Cuda] = None
        self._engine: Any = None
        self._context: Any = None
        self._addresses: Dict[str, int] = {}
        self._numbers: List[int] = []
        self._kept: List[Any] = []

    def prepare(self) -> Dict[str, Any]:
        """Build the engine, or take the one that is there, and load it; see ``build_engine``.

        Raises:
            Cannot: the module or CUDA is missing, or the builder refuses the model.
        """
        try:
            trt: Any = importlib.import_module("tensorrt")
        except ImportError as error:
            raise Cannot("{} ({})".format(MODULE_MISSING[0], error), MODULE_MISSING[1])
        self._trt = trt
        self._cuda = load_cuda()
        made_by = "-".join(part for part in (str(trt.__version__), self.here) if part)
        how = hashlib.sha256(json.dumps(self.release["api"], sort_keys=True).encode()).hexdigest()
        name = "{}-{}.trt{}.module".format(self.digest[:16], how[:8], made_by)
        place = self._place = EngineFile(self.folder, name, made_by)
        found = self._build(place)
        if not self._load(place) and found["reused"]:
            # Of another GPU, or damaged: what a second build gives is for this one.
            place.forget()
            found = self._build(place)
            self._load(place)
        if self._engine is None:
            place.forget()
            raise Cannot("TensorRT cannot load the engine it built.", "Run again.")
        self._context = self._engine.create_execution_context()
        self._bind()
        return found

    def sample(self, seconds: float, warmup_ms: int) -> Series:
        """Time it without transfers: host time and GPU compute of each inference."""
        self._repeat(warmup_ms / 1000.0)
        return self._repeat(seconds)

    def logits(self, batches: List[bytes], classes: int) -> List[List[float]]:
        """Run whole batches and return one list of logits an image."""
        rows: List[List[float]] = []
        cuda = self._device()
        for batch in batches:
            cuda.upload(self._addresses["input"], batch)
            self._enqueue(self._context)
            cuda.wait()
            values = array.array("f")
            values.frombytes(
                cuda.download(self._addresses["logits"], _bytes_of(self.shapes["logits"]))
            )
            rows += [list(values[i : i + classes]) for i in range(0, len(values), classes)]
        return rows

    def layers(self) -> Optional[Dict[str, Any]]:
        """Ask the engine for its layers, and time each of them in runs of their own.

        Returns:
            What trtexec's runner gives; None where the release has no inspector.
        """
        place = self._place
        if place is None or not hasattr(self._engine, "create_engine_inspector"):
            self.teller.note("this TensorRT does not tell the layers of an engine")
            return None
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        try:
            info = dict(json.loads(text))
        except (TypeError, ValueError) as error:
            self.teller.note("the engine's description of its layers is damaged: " + str(error))
            return None
        write_json(place.path + ".layers.json", info)
        found = parse_layers(self._profile(), info)
        log = place.read_log()
        found.update(parse_sparsity(log))
        found.update(count_dla_layers(log, self.release["api"].get("dla"), self.teller))
        return found

    def log_tail(self) -> List[str]:
        """Return the last lines of the build's log."""
        return self._place.log_tail() if self._place is not None else []

    def _build(self, place: EngineFile) -> Dict[str, Any]:
        def command(mib: int, level: Optional[int], draft: str) -> List[str]:
            api = self.release["api"]
            return module_command(self.onnx, draft, place.timings, api, mib, level)

        levels = bool(self.release.get("level"))
        return build_engine(place, self.onnx, "TensorRT", levels, command, self.teller)

    def _load(self, place: EngineFile) -> bool:
        trt = self._trt
        with open(place.path, "rb") as file:
            data = file.read()
        logger = trt.Logger(trt.Logger.ERROR)
        runtime = trt.Runtime(logger)
        core = self.release["api"].get("dla")
        if core is not None:
            runtime.DLA_core = core
        self._engine = runtime.deserialize_cuda_engine(data)
        self._kept = [logger, runtime]
        return self._engine is not None

    def _bind(self) -> None:
        cuda = self._device()
        for name, shape in self.shapes.items():
            self._addresses[name] = cuda.allocate(_bytes_of(shape))
        self._numbers = []
        if not hasattr(self._context, "set_tensor_address"):
            count = self._engine.num_bindings
            names = [self._engine.get_binding_name(i) for i in range(count)]
            self._numbers = [self._addresses[name] for name in names]
        self._give_addresses(self._context)

    def _give_addresses(self, context: Any) -> None:
        if not self._numbers:
            for name, address in self._addresses.items():
                context.set_tensor_address(name, address)

    def _enqueue(self, context: Any) -> None:
        stream = self._device().stream.value or 0
        if self._numbers:
            good = context.execute_async_v2(self._numbers, stream)
        else:
            good = context.execute_async_v3(stream)
        if not good:
            raise Cannot("TensorRT could not run the engine.", "Look at the board's log (dmesg).")

    def _repeat(self, seconds: float) -> Series:
        cuda, clock = self._device(), time.monotonic
        host: List[float] = []
        gpu: List[float] = []
        first = clock()
        while True:
            begin = clock()
            cuda.begin()
            self._enqueue(self._context)
            gpu.append(cuda.end())
            now = clock()
            host.append(1000.0 * (now - begin))
            if now >= first + seconds and len(host) >= 3:
                return Series(host, gpu, first, now)

    def _profile(self) -> List[Dict[str, Any]]:
        """Time every layer, in a context of its own: a profiler slows the one it is given to."""
        profiler = _profiler(self._trt)
        context = self._engine.create_execution_context()
        self._give_addresses(context)
        context.profiler = profiler
        # True is the default: each run reports by itself once its layers have ended.
        if hasattr(context, "enqueue_emits_profile"):
            context.enqueue_emits_profile = True
        # Raised inside a call from TensorRT, an interrupt would end the process at once.
        with deferred_interrupts():
            for runs in (WARM_RUNS, PROFILED_RUNS):
                profiler.total.clear()
                for _ in range(runs):
                    self._enqueue(context)
                    self._device().wait()
        return [
            {"name": name, "averageMs": total / PROFILED_RUNS}
            for name, total in profiler.total.items()
        ]

    def _device(self) -> Cuda:
        if self._cuda is None:
            raise Cannot("The engine is not loaded.", "Report this: it is a bug.")
        return self._cuda


def _profiler(trt: Any) -> Any:
    """Make what TensorRT tells its layer times; ``total`` sums them up by name."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.total: Dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.total[layer_name] = self.total.get(layer_name, 0.0) + ms

    return Profiler()


def _bytes_of(shape: List[int]) -> int:
    size = FLOAT_BYTES
    for length in shape:
        size *= length
    return size
