"""The Python API of each TensorRT release, as far as a build needs it.

Sources: the bindings in github.com/NVIDIA/TensorRT (``python/src/infer/pyCore.cpp`` and
``python/src/parsers/pyOnnx.cpp`` of each release), the Python API pages below
docs.nvidia.com/deeplearning/tensorrt (archives 8.2.5, 8.5.3, 8.6.1, 10.3; latest), the list of APIs
that 11.0 removed (its migration guide), and the package ``tensorrt-rtx`` itself. Releases that were
not compared are refused, not guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from elastic_export.errors import UserError

__all__ = ["INSTALL", "MODULES", "RELEASES", "TITLES", "Release", "RuntimeName", "Typing"]

RuntimeName = Literal["tensorrt", "tensorrt-rtx"]
Typing = Literal["strong", "weak"]

MODULES: dict[RuntimeName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
TITLES: dict[RuntimeName, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
INSTALL: dict[RuntimeName, str] = {
    "tensorrt": "pip install 'elastic-export[trt]'",
    "tensorrt-rtx": "pip install 'elastic-export[rtx]'",
}


@dataclass(frozen=True)
class Release:
    """What one range of releases has; ``first`` and ``last`` are (major, minor), both included.

    Attributes:
        runtime: Whose releases these are.
        first: The oldest release of the range.
        last: The newest.
        typings: How a network may be typed. ``SPARSE_WEIGHTS`` exists everywhere; ``FP16``,
            ``INT8`` and ``OBEY_PRECISION_CONSTRAINTS`` only with weak typing.
        creation: Flags of ``create_network`` by typing. ``EXPLICIT_BATCH`` had to be given up to
            8.6; 10 ignores it and 11 types every network strongly.
        workspace: ``max_workspace_size`` up to 8.2, a memory pool from 8.4 on.
        names_nodes: Parser errors know the node's name and operator; before 10 its index alone.
        levels: ``builder_optimization_level`` (0 to 5) exists: from 8.6 on.
        hardware: Levels of ``hardware_compatibility_level``: from 8.6 on.
        timing_cache: A timing cache does something. TensorRT-RTX says of its own (1.2 and later)
            that it does nothing, because kernels are chosen on the device.
        monitor: There may be an ``IProgressMonitor``. The pages of 10.0 to 10.3 do not say from
            which of them on Python has it, so it is looked for there.
        chooses_sm: The builder is told the compute capability; others build for the GPU they see.
        named_tensors: Engines are run with ``set_tensor_address`` and ``execute_async_v3``, from
            8.5 on; before, with bindings by number and ``execute_async_v2``.
    """

    runtime: RuntimeName
    first: tuple[int, int]
    last: tuple[int, int]
    typings: tuple[Typing, ...]
    creation: tuple[tuple[Typing, str], ...]
    workspace: Literal["attribute", "pool"] = "pool"
    names_nodes: bool = True
    levels: bool = True
    hardware: tuple[str, ...] = ("none",)
    timing_cache: bool = True
    monitor: bool = True
    chooses_sm: bool = False
    named_tensors: bool = True

    @classmethod
    def of(cls, runtime: RuntimeName, version: str) -> Release:
        """Find the release of a module by its version.

        Args:
            runtime: ``tensorrt`` or ``tensorrt-rtx``.
            version: What the module calls itself: ``8.5.2.2``, ``10.3.0``, ``1.7.1.116``.

        Raises:
            UserError: No release of that number was compared.
        """
        match = re.match(r"(\d+)\.(\d+)", version)
        number = (int(match[1]), int(match[2])) if match else (0, 0)
        same = [each for each in RELEASES if each.runtime == runtime]
        for release in same:
            if release.first <= number <= release.last:
                return release
        raise UserError(
            f'The Python interface of {TITLES[runtime]} "{version}" is not known.',
            f"Known are {', '.join(each.span for each in same)}; use one of these, or trtexec.",
        )

    @property
    def span(self) -> str:
        """The range in words: ``8.5``, ``10.0 to 10.99``."""
        low, high = ("{}.{}".format(*each) for each in (self.first, self.last))
        return low if low == high else f"{low} to {high}"


_WEAK: tuple[Typing, ...] = ("weak",)
_BATCH: tuple[tuple[Typing, str], ...] = (("weak", "EXPLICIT_BATCH"),)
_STRONG_FLAG: tuple[tuple[Typing, str], ...] = (("strong", "STRONGLY_TYPED"),)
_LEVELS = ("none", "ampere_plus")

RELEASES = (
    Release(
        "tensorrt",
        (8, 2),
        (8, 2),
        _WEAK,
        _BATCH,
        workspace="attribute",
        names_nodes=False,
        levels=False,
        monitor=False,
        named_tensors=False,
    ),
    Release(
        "tensorrt",
        (8, 5),
        (8, 5),
        _WEAK,
        _BATCH,
        names_nodes=False,
        levels=False,
        monitor=False,
    ),
    Release(
        "tensorrt",
        (8, 6),
        (8, 6),
        _WEAK,
        _BATCH,
        names_nodes=False,
        hardware=_LEVELS,
        monitor=False,
    ),
    Release(
        "tensorrt",
        (10, 0),
        (10, 99),
        ("weak", "strong"),
        _STRONG_FLAG,
        hardware=(*_LEVELS, "same_compute_capability"),
    ),
    Release(
        "tensorrt",
        (11, 0),
        (11, 99),
        ("strong",),
        (),
        hardware=(*_LEVELS, "same_compute_capability"),
    ),
    Release(
        "tensorrt-rtx",
        (1, 0),
        (1, 99),
        ("strong",),
        _STRONG_FLAG,
        timing_cache=False,
        chooses_sm=True,
    ),
)
