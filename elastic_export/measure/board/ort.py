"""A model in ONNX Runtime, where that is what the board has."""

import importlib
import time
from typing import Any, Dict, List, Optional, Tuple

from elastic_export.measure.board.shell import Cannot

__all__ = ["OrtBoardRunner"]


class OrtBoardRunner:
    """One model in ONNX Runtime on the CPU, one thread unless told otherwise.

    Args:
        onnx: The model.
        shape: ``(batch, C, H, W)``.
        threads: Threads inside one operator.
    """

    runtime = "onnxruntime"

    def __init__(self, onnx: str, shape: List[int], threads: int = 1) -> None:
        self.onnx = onnx
        self.shape = shape
        self.threads = threads
        self.version = ""
        self._warm = False
        self._session: Any = None
        self._numpy: Any = None
        self._image: Any = None

    def prepare(self) -> Dict[str, Any]:
        """Load the model.

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
        try:
            self._session = onnxruntime.InferenceSession(
                self.onnx, options, providers=["CPUExecutionProvider"]
            )
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
        return {"seconds": round(time.time() - begin, 3), "reused": False, "retries": 0}

    def sample(self, seconds: float, warmup_ms: int) -> Tuple[List[float], List[float]]:
        """Time it; a CPU has no compute time of its own, so the second list is empty."""
        feed = {"input": self._image}
        # Warm from the sample before; its caches are what another candidate took away.
        self._repeat(feed, warmup_ms / (10000.0 if self._warm else 1000.0))
        self._warm = True
        return self._repeat(feed, seconds), []

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

    def _repeat(self, feed: Dict[str, Any], seconds: float) -> List[float]:
        times: List[float] = []
        clock, session = time.perf_counter, self._session
        end = clock() + seconds
        while True:
            begin = clock()
            session.run(None, feed)
            now = clock()
            times.append(1000.0 * (now - begin))
            if now >= end and len(times) >= 3:
                return times
