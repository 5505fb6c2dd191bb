"""What a build is asked for, held against what a release can do before anything is parsed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elastic_export.config.dla import LAST_RELEASE, has_dla
from elastic_export.engine.adapters.releases import TITLES, Release, Typing
from elastic_export.errors import UserError

__all__ = ["BuildOptions", "check_options"]

_SOONER = ("timing_cache", "timings_may_be_new", "sm")

LEVELS = range(6)


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Args:
        typing: ``strong``: the graph itself says every precision. ``weak``: an FP32 graph, and the
            builder may use what ``fp16`` and ``int8`` allow.
        fp16: Allow FP16 (weak typing).
        int8: Allow INT8 where the graph has Q/DQ (weak typing). Brings FP16 along: without it every
            other layer would run in FP32.
        pins: Nodes that stay in FP32 (weak typing): ``export.lowering.pinned_nodes``.
        dla: The DLA core to build for, in FP16 by weak typing; what it does not run, pinned nodes
            included, goes to the GPU. None for the GPU.
        sparse: Let the builder time 2:4 kernels against dense ones and take the faster.
        workspace_mib: Most scratch memory of a kernel, in MiB; None leaves the builder's default.
        level: Optimisation level, 0 (fast build) to 5; None leaves the builder's default.
        hardware: ``none``, ``ampere_plus`` or ``same_compute_capability``: where else it may run.
        timing_cache: File of kernel timings that builds share; made where there is none.
        timings_may_be_new: Begin anew where that file is damaged or of another device or release,
            instead of refusing it: nobody named it.
        sm: Compute capability times ten. TensorRT-RTX is told it; TensorRT builds for the GPU that
            is there and refuses another.
    """

    typing: Typing = "strong"
    fp16: bool = False
    int8: bool = False
    pins: tuple[str, ...] = ()
    dla: int | None = None
    sparse: bool = False
    workspace_mib: int | None = None
    level: int | None = None
    hardware: str = "none"
    timing_cache: Path | None = None
    timings_may_be_new: bool = False
    sm: int | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if self.typing == "strong" and (self.fp16 or self.int8 or self.pins):
            raise ValueError("a strongly typed graph says its precisions itself")
        if self.dla is not None and (self.typing == "strong" or self.int8 or not self.fp16):
            raise ValueError("a DLA takes FP16 alone, from a weakly typed graph")
        if self.level is not None and self.level not in LEVELS:
            raise ValueError(f"optimisation levels are 0 to 5, not {self.level}")
        if self.workspace_mib is not None and self.workspace_mib <= 0:
            raise ValueError(f"a workspace has a positive size, not {self.workspace_mib} MiB")

    @property
    def asked(self) -> dict[str, Any]:
        """What decides the engine, in plain values; a timing cache only makes it sooner."""
        plain = {**asdict(self), "pins": sorted(self.pins)}
        return {name: value for name, value in plain.items() if name not in _SOONER}

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the builder flags that are set."""
        wanted = {
            "FP16": self.fp16 or self.int8,
            "INT8": self.int8,
            "SPARSE_WEIGHTS": self.sparse,
            # Without FP16 everything is FP32 already.
            "OBEY_PRECISION_CONSTRAINTS": bool(self.pins) and (self.fp16 or self.int8),
            "GPU_FALLBACK": self.dla is not None,
        }
        return tuple(name for name, on in wanted.items() if on)


def check_options(options: BuildOptions, release: Release, version: str) -> None:
    """Refuse what a release cannot do.

    Raises:
        UserError: It names what the release lacks and what to do instead.
    """
    what = f"{TITLES[release.runtime]} {version}"
    if options.typing not in release.typings:
        (only,) = release.typings
        remedy = {
            "weak": "Export the weakly typed flavour for it, or use TensorRT 10.3 or newer.",
            "strong": "Export the strongly typed flavour for it, or use TensorRT 10.16 or older.",
        }[only]
        raise UserError(f"{what} builds {only}ly typed networks only.", remedy)
    if options.dla is not None and not (release.runtime == "tensorrt" and has_dla(version)):
        last = ".".join(map(str, LAST_RELEASE))
        raise UserError(
            f"{what} cannot use a DLA; TensorRT {last} was the last release that could.",
            "Use the board's GPU, or a JetPack with an older TensorRT.",
        )
    if options.level is not None and not release.levels:
        raise UserError(
            f"{what} has no optimisation levels (8.6 and later have them).",
            "Leave the level out.",
        )
    if options.hardware not in release.hardware:
        listed = ", ".join(release.hardware)
        raise UserError(
            f'{what} has no hardware compatibility level "{options.hardware}" (it has: {listed}).',
            "Leave it out, and build on each device by itself.",
        )
    if options.timing_cache is not None and not release.timing_cache:
        raise UserError(
            f"{what} has no timing cache: its kernels are chosen on the device.",
            "Leave the timing cache out.",
        )
    if options.sm is None and release.chooses_sm:
        raise UserError(
            f"{what} must be told which compute capability to build for.",
            "Name the device's, such as 86 for an RTX 3090.",
        )
