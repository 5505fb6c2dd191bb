"""The quantization record: one range per site, independent of any graph.

Sites of a layer are its ``weight``, ``input``, ``output`` and ``skip`` (what a residual addition
adds to its output). Sites of an attention, under the name of the module that multiplies, are
``bmm_a`` (query, before its scale), ``bmm_b`` (key, before its scale), ``probs`` (softmax) and
``value``.

Emitters, the fake-quantized torch model and the accuracy guard all read it. It holds enough for
both families of runtimes: ``amax`` gives the symmetric form (TensorRT), ``min`` and ``max`` the
asymmetric one (ONNX Runtime's CPU kernels).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from elastic_export.quantize.placement import ATTENTION, in_force

__all__ = [
    "LAYER_ROLES",
    "PRODUCT_ROLES",
    "AttentionPrecision",
    "Policy",
    "QuantizationRecord",
    "Role",
    "Site",
    "quantize_int8",
]

Role = Literal["weight", "input", "output", "skip", "bmm_a", "bmm_b", "probs", "value"]
Policy = Literal["int8", "float"]
AttentionPrecision = Literal["float", "int8"]

LAYER_ROLES: tuple[Role, ...] = ("weight", "input", "output")
"""What the record holds for every layer."""

PRODUCT_ROLES: tuple[Role, ...] = ("bmm_a", "bmm_b", "probs", "value")
"""What it holds for every attention."""

INT8_MAX = 127
UINT8_MAX = 255


@dataclass(frozen=True, eq=False)
class Site:
    """The range of one place that can be quantized, and whether it is.

    Args:
        module: Dotted name of the ``Linear`` or ``Conv2d`` in the plain module, or of the module
            that multiplies the operands of an attention.
        role: Which tensor of that module.
        min: Smallest value seen, clipped to ``-amax`` where the calibrator clips.
        max: Largest value seen, clipped to ``amax`` where the calibrator clips.
        amax: float32 symmetric limit, shape ``()`` per tensor or ``(out,)`` per output channel.
        axis: Axis of the tensor that ``amax`` runs along (0 for weights), None per tensor.
        policy: ``int8``, or ``float`` for a site that stays in floating point.
        reason: One sentence that says why the policy is ``float``; empty otherwise.
        rule: Names of the placement rules behind a ``float`` policy, joined by commas (see
            ``policy.Verdict``); empty where the reason holds for every runtime, or for ``int8``.
    """

    module: str
    role: Role
    min: float
    max: float
    amax: NDArray[np.float32]
    axis: int | None
    policy: Policy
    reason: str = ""
    rule: str = ""

    @property
    def rules(self) -> frozenset[str]:
        """The placement rules that hold the site in floating point."""
        return frozenset(name for name in self.rule.split(",") if name)

    def __eq__(self, other: object) -> bool:
        """Compare all fields, ``amax`` bit by bit."""
        if not isinstance(other, Site):
            return NotImplemented
        return self._plain() == other._plain() and (
            self.amax.shape == other.amax.shape and self.amax.tobytes() == other.amax.tobytes()
        )

    def __hash__(self) -> int:
        """Hash the fields that are not arrays."""
        return hash(self._plain())

    def _plain(self) -> tuple[object, ...]:
        return (
            self.module,
            self.role,
            self.min,
            self.max,
            self.axis,
            self.policy,
            self.reason,
            self.rule,
        )

    @property
    def scale(self) -> NDArray[np.float32]:
        """Symmetric float32 scale ``amax / 127`` in the shape of ``amax``, never 0."""
        return self.symmetric_scale(np.float32)

    def symmetric_scale(self, dtype: DTypeLike) -> NDArray[np.floating]:
        """Return ``amax / 127`` rounded to ``dtype`` (float32 or float16), never 0.

        A range of zero (a channel whose weights are all zero) gets scale 1, which maps it to zero
        exactly. A scale below the smallest normal number of ``dtype`` is raised to that number,
        because runtimes may flush what lies below it to zero and then divide by it.
        """
        limits = np.finfo(dtype)
        exact = self.amax.astype(np.float64) / INT8_MAX
        bounded = np.clip(exact, float(limits.tiny), float(limits.max))
        return np.asarray(np.where(self.amax == 0, 1.0, bounded), dtype=dtype)

    def affine_u8(self) -> tuple[np.float32, int]:
        """Return the asymmetric UINT8 form of a per-tensor site.

        Returns:
            ``(scale, zero_point)`` with ``real = scale * (q - zero_point)`` and q in 0..255. The
            range is widened to hold zero, so zero is represented exactly.
        """
        low, high = min(self.min, 0.0), max(self.max, 0.0)
        if high == low:
            return np.float32(1.0), 0
        width = max((high - low) / UINT8_MAX, float(np.finfo(np.float32).tiny))
        scale = np.float32(width)
        zero_point = round(-low / float(scale))
        return scale, min(max(zero_point, 0), UINT8_MAX)


def quantize_int8(
    values: NDArray[np.floating], site: Site, *, dtype: DTypeLike = np.float32
) -> NDArray[np.int8]:
    """Round ``values`` to INT8 on the symmetric grid of ``site``.

    Args:
        values: Real values; the axis ``site.axis`` matches ``site.amax`` where that is a vector.
        site: Where ``amax`` is taken from.
        dtype: The type the scale will be stored in; the integers fit that rounded scale.

    Returns:
        int8 in -127..127, halves rounded to even; 0 maps to 0, so zeros of a pattern stay.
    """
    scale = site.symmetric_scale(dtype).astype(np.float32)
    if site.axis is not None and scale.ndim == 1:
        shape = [1] * values.ndim
        shape[site.axis] = scale.shape[0]
        scale = scale.reshape(shape)
    levels = np.rint(values.astype(np.float32) / scale)
    return np.clip(levels, -INT8_MAX, INT8_MAX).astype(np.int8)


@dataclass
class QuantizationRecord:
    """All sites of one module, with where their ranges come from.

    Args:
        sites: ``(module, role)`` to site, in the order of the module's layers.
        calibrator: What took the ranges, for example ``max`` or ``percentile-99.99``.
        images: How many images the ranges were taken from.
        data_digest: Digest of the calibration split.
        model_digest: Digest of the calibrated module (``calibrate.model_digest``).
    """

    sites: dict[tuple[str, str], Site]
    calibrator: str
    images: int
    data_digest: str
    model_digest: str

    def site(self, module: str, role: Role) -> Site:
        """Return one site; ``KeyError`` names module and role where the record has none."""
        return self.sites[(module, role)]

    def modules(self) -> list[str]:
        """Return every layer, in the order of the network's layers."""
        return self._with_roles(LAYER_ROLES)

    def attentions(self) -> list[str]:
        """Return every module that holds an attention, in the order in which they ran."""
        return self._with_roles(PRODUCT_ROLES)

    def int8_attentions(self) -> list[str]:
        """Return the modules all of whose attention operands are INT8."""
        return [name for name in self.attentions() if self._all_int8(name, PRODUCT_ROLES)]

    def _with_roles(self, roles: tuple[Role, ...]) -> list[str]:
        return list(dict.fromkeys(name for name, role in self.sites if role in roles))

    def quantized_modules(self) -> list[str]:
        """Return the layers whose input and weight are both INT8."""
        return [name for name in self.modules() if self._all_int8(name, ("input", "weight"))]

    def _all_int8(self, module: str, roles: tuple[Role, ...]) -> bool:
        sites = [self.sites.get((module, role)) for role in roles]
        return all(site is not None and site.policy == "int8" for site in sites)

    def placed(
        self, flavour: str, *, attention: AttentionPrecision = "float"
    ) -> QuantizationRecord:
        """Return the record as a flavour places it.

        Sites that only rules hold back become INT8 where none of those rules is in force
        (``placement.yaml``); sites with a hard reason stay as they are.

        Args:
            flavour: Name of an INT8 flavour.
            attention: ``int8`` lifts the rule for attention products.

        Raises:
            UserError: the flavour is unknown.
        """
        holding = in_force(flavour) - ({ATTENTION} if attention == "int8" else set())
        sites = {
            key: replace(site, policy="int8", reason="", rule="")
            if site.rules and not site.rules & holding
            else site
            for key, site in self.sites.items()
        }
        return replace(self, sites=sites)

    def with_float(self, reasons: Mapping[str, str]) -> QuantizationRecord:
        """Return a copy in which the named modules stay in floating point in every flavour.

        Args:
            reasons: Module name to the sentence that says why.
        """
        sites = {
            key: replace(site, policy="float", reason=reasons[site.module], rule="")
            if site.module in reasons
            else site
            for key, site in self.sites.items()
        }
        return replace(self, sites=sites)

    @property
    def digest(self) -> str:
        """sha256 over everything the record holds: equal records, equal digests."""
        state = hashlib.sha256()
        head = (self.calibrator, self.images, self.data_digest, self.model_digest)
        state.update(repr(head).encode())
        for key, site in self.sites.items():
            state.update(repr((key, site._plain(), site.amax.shape)).encode())
            state.update(np.ascontiguousarray(site.amax, dtype="<f4").tobytes())
        return state.hexdigest()

    def save(self, folder: Path) -> None:
        """Write the record into ``folder`` (see ``quantize.files.save_record``)."""
        from elastic_export.quantize.files import save_record

        save_record(self, folder)

    @staticmethod
    def load(folder: Path) -> QuantizationRecord:
        """Read a record that ``save`` wrote (see ``quantize.files.load_record``)."""
        from elastic_export.quantize.files import load_record

        return load_record(folder)
