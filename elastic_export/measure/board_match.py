"""Whether a board runs what a target names: its JetPack or TensorRT, and its power mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elastic_export.config.targets import ResolvedTarget, plain_mode

__all__ = ["Wanted", "fits_release", "mismatches"]


@dataclass(frozen=True)
class Wanted:
    """What a target asks of a board.

    Attributes:
        software: Name of the profile's entry: ``jp6.2``, ``trt10.16``.
        runtime: ``tensorrt``, ``tensorrt-rtx`` or ``onnxruntime``.
        version: Release of the runtime, ``10.3``; None where it does not matter.
        power_mode: As the profile has it; None for a device without modes.
    """

    software: str
    runtime: str
    version: str | None = None
    power_mode: str | None = None

    @classmethod
    def of_target(cls, found: ResolvedTarget) -> Wanted:
        """Read it from a resolved target."""
        software = found.software
        return cls(software.name, software.runtime, software.runtime_version, found.power_mode)

    @classmethod
    def of_identity(cls, identity: str, runtime: str, version: str | None) -> Wanted:
        """Read it from an identity, ``NAME@SOFTWARE:MODE``, whose profile may not be here."""
        software, _, mode = identity.partition("@")[2].partition(":")
        return cls(software, runtime, version, mode or None)


def fits_release(board: Mapping[str, Any], wanted: Wanted) -> bool | None:
    """Tell whether a board has the software of a target; None where the board does not say.

    JetPack decides where the target names one: ``6.2.1`` belongs to ``jp6.2``, and not to ``jp6``'s
    neighbour ``jp6.20``. Elsewhere it is the release of TensorRT.

    Args:
        board: The document of ``on_device.py probe``.
        wanted: What the target asks for.
    """
    if wanted.software.startswith("jp"):
        jetpack = board.get("jetpack")
        return None if not jetpack else _within(f"jp{str(jetpack).split()[0]}", wanted.software)
    version = board.get("tensorrt")
    if wanted.runtime != "tensorrt" or not version or not wanted.version:
        return None
    return _within(str(version), wanted.version)


def mismatches(board: Mapping[str, Any], wanted: Wanted) -> list[str]:
    """Say what is otherwise on a board than the target says; empty where it fits.

    Returns:
        What the board has, each as in ``JetPack 5.1.2`` or ``power mode MAXN``.
    """
    found = []
    if fits_release(board, wanted) is False:
        jetpack = wanted.software.startswith("jp")
        title, key = ("JetPack", "jetpack") if jetpack else ("TensorRT", "tensorrt")
        found.append(f"{title} {board[key]}")
    mode = board.get("power_mode")
    if mode and wanted.power_mode and plain_mode(str(mode)) != plain_mode(wanted.power_mode):
        found.append(f"power mode {mode}")
    return found


def _within(version: str, release: str) -> bool:
    return f"{version}.".startswith(f"{release}.")
