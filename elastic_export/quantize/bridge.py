"""The one place that touches ModelOpt: its import, its configuration, the ranges it took.

ModelOpt is imported on first use: it takes three to six seconds and writes to both streams.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elastic_export.errors import UserError
from elastic_export.quantize.histogram import Histogram

__all__ = [
    "calibrator_states",
    "insert_quantizers",
    "load_calibrators",
    "load_modelopt",
    "read_amax",
    "read_histogram",
    "run_calibration",
]

RangeOf = Callable[[Histogram], float]


@cache
def load_modelopt() -> Any:
    """Import ``modelopt.torch.quantization`` without a word on either stream.

    Raises:
        UserError: it, or something it needs, is not installed.
    """
    try:
        with _quiet():
            import modelopt.torch.quantization as mtq
    except ImportError as error:
        raise UserError(
            f"INT8 calibration needs NVIDIA ModelOpt, which cannot be imported: {error}.",
            "Install it with: pip install nvidia-modelopt requests.",
        ) from error
    return mtq


def insert_quantizers(
    module: nn.Module, layers: Sequence[str], range_of: RangeOf | None, *, sums: bool = False
) -> None:
    """Replace the named layers of ``module``, in place, by ModelOpt's quantized ones.

    Weights get one range per output channel and inputs one per tensor; every other quantizer
    ModelOpt brings is off.

    Args:
        module: A copy that may be changed.
        layers: Names of ``Linear`` and ``Conv2d`` modules.
        range_of: How an input's range is read from its histogram; None takes the largest value.
        sums: Whether the histograms keep sums, too.
    """
    mtq = load_modelopt()
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for name in layers:
        prefix = f"{name}." if name else ""
        inputs: dict[str, Any] = {"num_bits": 8, "axis": None}
        if range_of is not None:
            inputs["calibrator"] = (_histogram_calibrator(), (range_of, sums))
        weights = {"num_bits": 8, "axis": 0}
        entries.append({"quantizer_name": f"{prefix}input_quantizer", "cfg": inputs})
        entries.append({"quantizer_name": f"{prefix}weight_quantizer", "cfg": weights})
    with _quiet():
        mtq.quantize(module, {"quant_cfg": entries, "algorithm": None})


def run_calibration(module: nn.Module, forward_loop: Callable[[nn.Module], None]) -> None:
    """Let ModelOpt collect its ranges while ``forward_loop`` runs the data through ``module``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_modelopt().calibrate(module, algorithm="max", forward_loop=forward_loop)


def read_amax(layer: nn.Module, role: str) -> NDArray[np.float32] | None:
    """Return the limit ModelOpt took for ``input`` or ``weight`` of a layer.

    Returns:
        Shape () for an input and (out,) for a weight; None where no data reached the quantizer.
    """
    quantizer = getattr(layer, f"{role}_quantizer", None)
    amax = None if quantizer is None else quantizer.amax
    if amax is None:
        return None
    values = amax.detach().float().cpu().numpy()
    return np.asarray(values.reshape(() if role == "input" else -1), dtype=np.float32)


def read_histogram(layer: nn.Module) -> Histogram | None:
    """Return the histogram of a layer's input; None where ModelOpt keeps its own maximum."""
    found = getattr(_input_calibrator(layer), "histogram", None)
    assert found is None or isinstance(found, Histogram)
    return found


def calibrator_states(module: nn.Module, layers: Sequence[str]) -> dict[str, Any]:
    """Return what the input calibrators of the named layers collected, as numbers and tensors.

    Weights are not among it: they are read anew at the beginning of every pass.
    """
    states: dict[str, Any] = {}
    for name in layers:
        layer = module.get_submodule(name)
        histogram = read_histogram(layer)
        largest = _input_calibrator(layer)
        states[name] = largest._calib_amax if histogram is None else histogram.state()
    return states


def load_calibrators(module: nn.Module, states: Mapping[str, Any]) -> None:
    """Let the input calibrators go on from what :func:`calibrator_states` returned."""
    for name, state in states.items():
        layer = module.get_submodule(name)
        histogram = read_histogram(layer)
        if histogram is not None:
            histogram.load(state)
        else:
            weight = layer.weight
            assert isinstance(weight, Tensor)
            largest = _input_calibrator(layer)
            largest._calib_amax = None if state is None else state.to(weight.device)


def _input_calibrator(layer: nn.Module) -> Any:
    quantizer: Any = getattr(layer, "input_quantizer", None)
    return None if quantizer is None else quantizer._calibrator


@cache
def _histogram_calibrator() -> type:
    """Build ModelOpt's calibrator interface around ``Histogram``."""
    with _quiet():
        from modelopt.torch.quantization.calib import _Calibrator

    class HistogramCalibrator(_Calibrator):  # type: ignore[misc]
        """Collects a ``Histogram`` and reads its range with the function it was given."""

        def __init__(self, range_of: RangeOf, sums: bool) -> None:
            super().__init__()
            self.range_of = range_of
            self.sums = sums
            self.histogram = Histogram(sums=sums)

        def collect(self, x: Tensor) -> None:
            self.histogram.collect(x)

        def reset(self) -> None:
            self.histogram = Histogram(sums=self.sums)

        def compute_amax(self, *args: object, **kwargs: object) -> Tensor | None:
            if self.histogram.total == 0:
                return None
            return torch.tensor(self.range_of(self.histogram), dtype=torch.float32)

    return HistogramCalibrator


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Swallow prints, warnings and log lines below ERROR."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
