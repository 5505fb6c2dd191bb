"""Resolve a target's identity, and refuse what it cannot do before any long work begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from elastic_export import resources
from elastic_export.config.problems import validated
from elastic_export.config.reading import read_mapping
from elastic_export.config.recipe import Recipe
from elastic_export.config.target import Flavour, Precision, Software, Target
from elastic_export.errors import UserError, did_you_mean

__all__ = ["ResolvedTarget", "check_target", "load_target"]

_OLD_NANO = "the Jetson Nano of 2019 (Maxwell) has neither INT8 nor 2:4 and no profile here"
_FORM = "NAME@SOFTWARE:MODE, for example orin-nano-8gb@jp6.2:15W"
# Graphs are lowered to 13 at the least; FP16 scales are valid ONNX from 19 on, and the integer
# forms for ONNX Runtime are written at the opset of its own release.
_LOWEST_OPSET = {"plain": 13, "ort-cpu": 18, "ort-trt": 13, "trt-strong": 19, "trt-weak": 13}


@dataclass(frozen=True)
class ResolvedTarget:
    """A profile with its software and power mode chosen.

    Attributes:
        target: The device profile.
        software: The entry of ``target.software`` that was asked for, or the first.
        power_mode: The mode that was asked for, or the first; None for a device without modes.
    """

    target: Target
    software: Software
    power_mode: str | None

    @property
    def identity(self) -> str:
        """Write the target in full: ``orin-nano-8gb@jp6.2:15W``."""
        mode = f":{self.power_mode}" if self.power_mode else ""
        return f"{self.target.name}@{self.software.name}{mode}"

    @property
    def flavours(self) -> dict[Precision, Flavour]:
        """The form of ONNX for each precision that this software runs."""
        return self.software.flavours or self.target.flavours


def load_target(identity: str) -> ResolvedTarget:
    """Read the profile that ``identity`` names and choose its software and power mode.

    Args:
        identity: ``NAME[@SOFTWARE[:MODE]]``, where NAME is a shipped target or a path to a
            profile of one's own; parts that are left out default to the profile's first.

    Raises:
        UserError: For an unknown or ambiguous part; the known ones are named.
    """
    name, software_name, mode = _parts(identity)
    if name.lower() in ("nano", "jetson-nano"):
        raise UserError(
            f'"{name}" may mean two devices: the Jetson Orin Nano and the Jetson Nano of 2019.',
            f"Say which: orin-nano-8gb is the Orin Nano; {_OLD_NANO}.",
        )
    path = resources.find("targets", name)
    target = validated(
        Target, read_mapping(path, "target"), f"the target {path}", f"Correct it in {path}."
    )
    software = target.software[0]
    if software_name:
        by_name = {entry.name: entry for entry in target.software}
        if software_name not in by_name:
            raise UserError(
                f'The target {target.name} has no software "{software_name}".',
                did_you_mean(software_name, list(by_name)),
            )
        software = by_name[software_name]
    if mode and mode not in target.power_modes:
        known = did_you_mean(mode, list(target.power_modes)) if target.power_modes else ""
        raise UserError(
            f'The target {target.name} has no power mode "{mode}".',
            known or "Leave the mode out: this device has only one.",
        )
    default_mode = target.power_modes[0] if target.power_modes else None
    return ResolvedTarget(target, software, mode or default_mode)


def check_target(recipe: Recipe, target: ResolvedTarget) -> None:
    """Refuse a recipe that asks for what the target cannot do.

    On a host, zeros cost what any number costs, but nothing prevents them: 2:4 is refused only
    where a device was chosen for it and has no sparse tensor cores.

    Raises:
        UserError: Naming why, and what to use instead.
    """
    profile = target.target
    precision = recipe.quantize.precision if recipe.quantize else "fp32"
    if precision not in target.flavours:
        raise UserError(
            f"The target {profile.name} ({profile.title}) cannot run {precision.upper()}.",
            f"Use one of its precisions ({', '.join(target.flavours)}), for example by leaving "
            'quantization out with "--set quantize=null".',
        )
    if recipe.sparsify and not profile.sparse_2_4 and profile.kind != "host":
        raise UserError(
            f"The target {profile.name} ({profile.title}) has no sparse tensor cores, so "
            f"{recipe.sparsify.pattern} sparsity would cost accuracy and save no time there.",
            'Leave it out with "--set sparsify=null", or choose another target.',
        )
    flavour = target.flavours[precision]
    if target.software.max_opset < _LOWEST_OPSET[flavour]:
        raise UserError(
            f"The target {target.identity} reads ONNX up to opset {target.software.max_opset}, "
            f"but {precision.upper()} in the form {flavour} needs {_LOWEST_OPSET[flavour]}.",
            "Use newer software on that device, or another target.",
        )


def _parts(identity: str) -> tuple[str, str, str]:
    if Path(identity).is_file():
        return identity, "", ""
    name, _, rest = identity.partition("@")
    software, _, mode = rest.partition(":")
    if not name or ":" in mode or "@" in rest or (":" in name and not Path(name).is_file()):
        raise UserError(f'"{identity}" does not name a target.', f"Write {_FORM}.")
    return name, software, mode
