"""A model in ONNX Runtime, where that is what the board has."""

import importlib
import time
from typing import Any, Dict, List, Optional

from elastic_export.measure.board.shell import Cannot
from elastic_export.measure.board.stats import Series

__all__ = ["OrtBoardRunner"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


class OrtBoardRunner:
    """One model in ONNX Runtime, one thread unless told otherwise.

    Args:
        onnx: The model.
        shape: ``(batch, C, H, W)``.
        threads: Threads inside one operator.
        gpu: Take the GPU where ONNX Runtime has its CUDA provider; a transfer to the GPU and back
            is part of each inference then. Its TensorRT provider is left alone: it would build
            engines in its own way, and packages name it where TensorRT itself is missing.
    """

    runtime = "onnxruntime"

    def __init__(self, onnx: str, shape: List[int], threads: int = 1, gpu: bool = False) -> None:
        self.onnx = onnx
        self.shape = shape
        self.threads = threads
        self.gpu = gpu
        self.version = ""
        self._warm = False
        self._session: Any = None
        self._numpy: Any = None
        self._image: Any = None

    def prepare(self) -> Dict[str, Any]:
        """Load the model; ``provider`` is the one that the session really has.

        Raises:
            Cannot: ONNX Runtime or NumPy is missing, or it does not take the model.
        """
        try:
            numpy: Any = importlib.import_module("numpy")
            onnxruntime: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise Cannot(
                "ONNX Runtime cannot be used here: {}.".format(error),
                "Install it with: python3 -m pip install onnxruntime.",
            )
        begin = time.time()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        offered = onnxruntime.get_available_providers()
        wanted = [CUDA, CPU] if self.gpu and CUDA in offered else [CPU]
        try:
            self._session = onnxruntime.InferenceSession(self.onnx, options, providers=wanted)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            raise Cannot(
                "ONNX Runtime {} does not take the model: {}".format(
                    onnxruntime.__version__, first[:300]
                ),
                "Use a newer ONNX Runtime, or export for the one this board has.",
            )
        self._numpy = numpy
        self.version = onnxruntime.__version__
        self._image = numpy.zeros(self.shape, dtype="float32")
        return {
            "seconds": round(time.time() - begin, 3),
            "reused": False,
            "retries": 0,
            "provider": self._session.get_providers()[0],
        }

    def sample(self, seconds: float, warmup_ms: int) -> Series:
        """Time it; there is no compute time beside the latency."""
        feed = {"input": self._image}
        # Warm from the sample before; its caches are what another candidate took away.
        self._repeat(feed, warmup_ms / (10000.0 if self._warm else 1000.0))
        self._warm = True
        return self._repeat(feed, seconds)

    def logits(self, batches: List[bytes], classes: int) -> List[List[float]]:
        """Run whole batches and return one list of logits an image; the last image is kept."""
        rows: List[List[float]] = []
        for batch in batches:
            image = self._numpy.frombuffer(batch, dtype="<f4").reshape(self.shape)
            self._image = image
            rows += [
                [float(v) for v in row] for row in self._session.run(None, {"input": image})[0]
            ]
        return rows

    def layers(self) -> Optional[Dict[str, Any]]:
        """Nothing: ONNX Runtime's graph is known where the bundle was made."""
        return None

    def log_tail(self) -> List[str]:
        """Nothing is logged."""
        return []

    def _repeat(self, feed: Dict[str, Any], seconds: float) -> Series:
        times: List[float] = []
        clock, session = time.monotonic, self._session
        first = clock()
        while True:
            begin = clock()
            session.run(None, feed)
            now = clock()
            times.append(1000.0 * (now - begin))
            if now >= first + seconds and len(times) >= 3:
                return Series(times, [], first, now)
