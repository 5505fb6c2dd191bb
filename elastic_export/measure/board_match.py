"""Whether a board is what a target names: the device, its JetPack or TensorRT, its power mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elastic_export.config.target import Target
from elastic_export.config.targets import ResolvedTarget, load_target, plain_mode
from elastic_export.errors import UserError
from elastic_export.measure.board_device import fits_device

__all__ = ["Wanted", "fits_release", "is_surely", "mismatches"]


@dataclass(frozen=True)
class Wanted:
    """What a target asks of a board.

    Attributes:
        software: Name of the profile's entry: ``jp6.2``, ``trt10.16``.
        runtime: ``tensorrt``, ``tensorrt-rtx`` or ``onnxruntime``.
        version: Release of the runtime, ``10.3``; None where it does not matter.
        power_mode: As the profile has it; None for a device without modes.
        device: Its profile; None where that is not here.
    """

    software: str
    runtime: str
    version: str | None = None
    power_mode: str | None = None
    device: Target | None = None

    @classmethod
    def of_target(cls, found: ResolvedTarget) -> Wanted:
        """Read it from a resolved target."""
        software = found.software
        return cls(
            software.name,
            software.runtime,
            software.runtime_version,
            found.power_mode,
            found.target,
        )

    @classmethod
    def of_identity(cls, identity: str, runtime: str, version: str | None) -> Wanted:
        """Read it from an identity, ``NAME@SOFTWARE:MODE``, whose profile may not be here."""
        software, _, mode = identity.partition("@")[2].partition(":")
        try:
            device = load_target(identity).target
        except UserError:
            device = None
        return cls(software, runtime, version, mode or None, device)


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

    What a board does not tell is no mismatch.

    Returns:
        What the board is and has, as in ``another device (NVIDIA A10)``, ``JetPack 5.1.2`` or
        ``power mode MAXN``.
    """
    found = []
    if wanted.device is not None and fits_device(board, wanted.device) is False:
        part = f", {board['part']}" if board.get("part") else ""
        found.append(f"another device ({board.get('model')}{part})")
    if fits_release(board, wanted) is False:
        jetpack = wanted.software.startswith("jp")
        title, key = ("JetPack", "jetpack") if jetpack else ("TensorRT", "tensorrt")
        found.append(f"{title} {board[key]}")
    mode = board.get("power_mode")
    if mode and wanted.power_mode and plain_mode(str(mode)) != plain_mode(wanted.power_mode):
        found.append(f"power mode {mode}")
    return found


def is_surely(board: Mapping[str, Any], wanted: Wanted) -> bool:
    """Tell whether a board is known to be a target in all: device, software and power mode."""
    told = bool(board.get("power_mode")) or wanted.power_mode is None
    device = wanted.device is not None and fits_device(board, wanted.device)
    return bool(device and told and fits_release(board, wanted) and not mismatches(board, wanted))


def _within(version: str, release: str) -> bool:
    return f"{version}.".startswith(f"{release}.")
