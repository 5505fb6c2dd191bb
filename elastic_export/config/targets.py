"""Resolve a target's identity, and refuse what it cannot do before any long work begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from elastic_export.config.dla import check_dla, narrowed, split_dla, with_dla
from elastic_export.config.recipe import Recipe
from elastic_export.config.target import Flavour, Precision, Software, Target
from elastic_export.config.target_files import find_target
from elastic_export.errors import UserError

__all__ = ["ResolvedTarget", "check_target", "load_target", "plain_mode"]

_FORM = (
    "NAME@SOFTWARE:MODE, for example orin-nano-8gb@jp6.2:15W, or NAME+dla@SOFTWARE:MODE for the DLA"
)
# Graphs are lowered to 13 at the least; FP16 scales are valid ONNX from 19 on, and the integer
# forms for ONNX Runtime are written at the opset of its own release.
_LOWEST_OPSET = {"plain": 13, "ort-cpu": 18, "ort-trt": 13, "trt-strong": 19, "trt-weak": 13}
# The compute capabilities that TensorRT-RTX builds for without a GPU, by its documentation on
# CPU-only ahead-of-time compilation; neither Orin (8.7) nor Hopper (9.0) is among them.
_RTX_SMS = (75, 80, 86, 89, 120)
# Where INT8 (dot products of four) and 2:4 came into CUDA, by NVIDIA's programming guide.
_FIRST_INT8, _FIRST_2_4 = 61, 80


@dataclass(frozen=True)
class ResolvedTarget:
    """A profile with its software and power mode chosen.

    Attributes:
        target: The device profile; for a DLA, what of it holds there (`config.dla.narrowed`).
        software: The entry of ``target.software`` that was asked for, or the first; likewise.
        power_mode: The mode that was asked for, or the first; None for a device without modes.
        dla: The DLA core that runs the network; None for the GPU, or the CPU of a host.
    """

    target: Target
    software: Software
    power_mode: str | None
    dla: int | None = None

    @property
    def identity(self) -> str:
        """Write the target in full: ``orin-nano-8gb@jp6.2:15W``."""
        mode = f":{self.power_mode}" if self.power_mode else ""
        return f"{with_dla(self.target.name, self.dla)}@{self.software.name}{mode}"

    @property
    def flavours(self) -> dict[Precision, Flavour]:
        """The form of ONNX for each precision that this software runs."""
        return self.software.flavours or self.target.flavours

    @property
    def strongly_typed(self) -> bool:
        """Whether its files for TensorRT say every precision themselves."""
        return "trt-strong" in self.flavours.values()

    @property
    def power_modes(self) -> tuple[str, ...]:
        """The modes that this software offers, its default first."""
        return self.software.power_modes or self.target.power_modes

    @property
    def build_on(self) -> Literal["none", "anywhere", "device"]:
        """Where an engine is built: TensorRT needs the device, TensorRT-RTX no GPU at all."""
        return "device" if self.software.runtime == "tensorrt" else self.target.build_on


def load_target(identity: str) -> ResolvedTarget:
    """Read the profile that ``identity`` names and choose its software and power mode.

    Args:
        identity: ``NAME[+dla[CORE]][@SOFTWARE[:MODE]]``, where NAME is a target of the user's
            folder or a shipped one, an alias of it, or a path to a profile of one's own; parts that
            are left out default to the profile's first, CORE to 0.

    Raises:
        UserError: For an unknown or ambiguous part, naming the known ones; for software whose
            engines no builder makes for this device; for a DLA that is not there or that this
            software cannot use.
    """
    device, software_name, mode = _parts(identity)
    name, core = split_dla(device)
    target = find_target(name)
    software = _software(target, software_name) if software_name else target.software[0]
    if core is not None:
        target, software = narrowed(target, software, core)
    found = ResolvedTarget(target, software, None, core)
    _refuse_unbuildable(found)
    chosen = _mode(found, mode) if mode else next(iter(found.power_modes), None)
    return replace(found, power_mode=chosen)


def check_target(recipe: Recipe, target: ResolvedTarget) -> None:
    """Refuse a recipe that asks for what the target cannot do.

    On a host, zeros cost what any number costs, but nothing prevents them: 2:4 is refused only
    where a device was chosen for it and has no sparse tensor cores.

    Raises:
        UserError: Naming why, and what to use instead.
    """
    if target.dla is not None:
        check_dla(recipe, target.identity)
        _check_opset(target, "fp16")
        return
    profile = target.target
    precision = recipe.quantize.precision if recipe.quantize else "fp32"
    lacking, without = [], []
    if precision not in target.flavours:
        lacking.append(f"cannot run {precision.upper()}{_since(profile, _FIRST_INT8)}")
        without.append("--set quantize=null")
    if recipe.sparsify and not profile.sparse_2_4 and profile.kind != "host":
        lacking.append(
            f"has no sparse tensor cores{_since(profile, _FIRST_2_4)}, so "
            f"{recipe.sparsify.pattern} sparsity would cost accuracy and save no time there"
        )
        without.append("--set sparsify=null")
    if lacking:
        instead = ", or use an Orin such as orin-nano-8gb" if profile.kind == "jetson" else ""
        raise UserError(
            f"The target {profile.name} ({profile.title}) {', and '.join(lacking)}.",
            f"Use what it runs ({', '.join(target.flavours)}) by leaving that out with "
            f'"{" ".join(without)}"{instead or ", or choose another target"}.',
        )
    _check_opset(target, precision)


def _check_opset(target: ResolvedTarget, precision: Precision) -> None:
    flavour = target.flavours[precision]
    if target.software.max_opset < _LOWEST_OPSET[flavour]:
        raise UserError(
            f"The target {target.identity} reads ONNX up to opset {target.software.max_opset}, "
            f"but {precision.upper()} in the form {flavour} needs {_LOWEST_OPSET[flavour]}.",
            "Use newer software on that device, or another target.",
        )


def _since(profile: Target, first: int) -> str:
    """Say from which compute capability on a GPU has it, where this one is older."""
    if profile.sm is None or profile.sm >= first:
        return ""
    return f" (compute capability {profile.sm / 10:.1f}; that came with {first / 10:.1f})"


def _software(target: Target, name: str) -> Software:
    by_name = {entry.name.lower(): entry for entry in target.software}
    if name.lower() not in by_name:
        raise UserError(
            f'The target {target.name} has no software "{name}".',
            f"Choose {' or '.join(entry.name for entry in target.software)}.",
        )
    return by_name[name.lower()]


def _mode(found: ResolvedTarget, asked: str) -> str:
    """Return the mode by its own name; case and nvpmodel's ``MODE_`` in front do not matter."""
    target = found.target
    known = {plain_mode(mode): mode for mode in target.power_modes}
    mode = known.get(plain_mode(asked))
    if mode is None:
        modes = " or ".join(found.power_modes)
        raise UserError(
            f'The target {target.name} has no power mode "{asked}".',
            f"Choose {modes}." if modes else "Leave the mode out: the profile names none.",
        )
    if mode not in found.power_modes:
        having = [
            entry.name
            for entry in target.software
            if mode in (entry.power_modes or target.power_modes)
        ]
        raise UserError(
            f"The power mode {mode} of {target.name} does not exist with {found.software.name}.",
            f"Use it with {' or '.join(having)}, or choose {' or '.join(found.power_modes)}.",
        )
    return mode


def plain_mode(mode: str) -> str:
    """Write a power mode as it is compared: case and nvpmodel's ``MODE_`` do not matter."""
    return mode.upper().removeprefix("MODE_")


def _refuse_unbuildable(found: ResolvedTarget) -> None:
    """Refuse a profile whose engine no builder would make, before hours are spent on its files."""
    software, sm = found.software, found.target.sm
    release = software.runtime_version.partition(".")[0]
    if software.runtime == "tensorrt-rtx" and sm not in _RTX_SMS:
        known = ", ".join(f"{known / 10:.1f}" for known in _RTX_SMS)
        raise UserError(
            f"The target {found.target.name} asks for TensorRT-RTX, which builds engines for "
            f"compute capability {known} and not for {(sm or 0) / 10:.1f}.",
            "Give it software with the runtime tensorrt; its engine is then built on the device.",
        )
    if software.runtime != "tensorrt" or not release.isdigit():
        return
    forms = set(found.flavours.values())
    wrong = {"trt-strong"} if int(release) < 10 else {"trt-weak"} if int(release) > 10 else set()
    if forms & wrong:
        right = "trt-weak" if "trt-strong" in wrong else "trt-strong"
        raise UserError(
            f"The target {found.target.name} wants the form {min(wrong)} for TensorRT "
            f"{software.runtime_version}, which does not take it.",
            f"Write {right} in the flavours of its software {software.name}.",
        )


def _parts(identity: str) -> tuple[str, str, str]:
    if Path(identity).is_file():
        return identity, "", ""
    name, _, rest = identity.partition("@")
    software, _, mode = rest.partition(":")
    odd = ":" in mode or "@" in rest or "+" in rest
    if not name or odd or (":" in name and not Path(split_dla(name)[0]).is_file()):
        short = f', or "{name.replace(":", "@:", 1)}" for a mode alone' if ":" in name else ""
        raise UserError(f'"{identity}" does not name a target.', f"Write {_FORM}{short}.")
    return name, software, mode
