"""From what a board says of itself to the target it is, or to a profile to begin with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from elastic_export.config.target import Software, Target
from elastic_export.config.target_files import all_targets, find_target
from elastic_export.config.targets import plain_mode
from elastic_export.measure.board_device import identify
from elastic_export.measure.board_match import Wanted, fits_release

__all__ = ["Proposal", "propose"]


@dataclass(frozen=True)
class Proposal:
    """What a board is.

    Args:
        identity: The target in full, None where no profile fits.
        notes: One sentence for each thing that is not as the profile says.
        profile: A profile to save as a file of one's own and to complete, where something of this
            board has none; empty otherwise.
    """

    identity: str | None
    notes: tuple[str, ...]
    profile: dict[str, Any]


def propose(board: dict[str, Any]) -> Proposal:
    """Name the target of a board.

    Args:
        board: The document of ``on_device.py probe``.

    Returns:
        For an Orin Nano with JetPack 6.2 in mode 15W the identity ``orin-nano-8gb@jp6.2:15W``.
    """
    known = [find_target(name) for name in all_targets()]
    target = identify(board, known)
    if target is None:
        return Proposal(
            None,
            (f"No target is known for {board.get('model') or 'this machine'}.",),
            _skeleton(board),
        )
    software = _software(board, target)
    if software is None:
        there = board.get("jetpack") or board.get("tensorrt") or "unknown software"
        kind = "JetPack" if board.get("jetpack") else "TensorRT"
        note = f"The profile {target.name} does not know {kind} {there}."
        return Proposal(None, (note,), _extended(board, target))
    notes = []
    version = board.get("tensorrt")
    # JetPack decided; the release that it brought may have been replaced.
    told = Wanted("", software.runtime, software.runtime_version)
    if target.kind == "jetson" and fits_release(board, told) is False:
        notes.append(
            f"The profile gives TensorRT {software.runtime_version} for {software.name}, and the "
            f"board has {version}."
        )
    mode = _mode(board, target)
    if board.get("power_mode") and mode is None:
        notes.append(f"The profile does not know the power mode {board['power_mode']}.")
    suffix = f":{mode}" if mode else ""
    return Proposal(f"{target.name}@{software.name}{suffix}", tuple(notes), {})


def _software(board: dict[str, Any], target: Target) -> Software | None:
    fitting = [
        entry
        for entry in target.software
        if fits_release(board, Wanted(entry.name, entry.runtime, entry.runtime_version))
    ]
    return max(fitting, key=lambda entry: len(entry.name)) if fitting else None


def _mode(board: dict[str, Any], target: Target) -> str | None:
    said = plain_mode(str(board.get("power_mode") or ""))
    return next((mode for mode in target.power_modes if plain_mode(mode) == said), None)


def _extended(board: dict[str, Any], target: Target) -> dict[str, Any]:
    """The known device with the software of this board, to be completed."""
    profile = target.model_dump(mode="json", exclude_defaults=True)
    return {**profile, "software": [_entry(board), *profile["software"]]}


def _skeleton(board: dict[str, Any]) -> dict[str, Any]:
    """What can be said of an unknown device; its figures have to be looked up."""
    capability = str(board.get("compute_capability") or "")
    name = re.sub(r"[^a-z0-9]+", "-", str(board.get("model") or "device").lower()).strip("-")
    return {
        "schema_version": 1,
        "name": name,
        "title": board.get("model") or "unknown",
        "kind": "jetson" if board.get("l4t") else "gpu" if capability else "host",
        **({"sm": int(capability.replace(".", ""))} if capability else {}),
        "software": [_entry(board)],
        "power_modes": board.get("power_modes") or [],
        "flavours": {"fp32": "plain"},
        "sparse_2_4": False,
        "build_on": "device",
    }


def _entry(board: dict[str, Any]) -> dict[str, Any]:
    version = str(board.get("tensorrt") or "")
    release = ".".join(version.split(".")[:2])
    python = str(board.get("python") or "")
    jetpack = board.get("jetpack")
    return {
        "name": f"jp{jetpack}" if jetpack else f"trt{release}" if release else "ort",
        "runtime": "tensorrt" if release else "onnxruntime",
        "runtime_version": release or "1.22",
        "max_opset": 13,
        "python": ".".join(python.split(".")[:2]) or None,
        "source": "read from the device; the opset is the lowest there is, look it up",
        "verified": False,
    }
