"""A device's peak rates, from its size and clock by one formula per architecture."""

from __future__ import annotations

from elastic_export.config.target import Target

__all__ = ["figure", "peak_rates"]

# Operations per clock and multiprocessor: INT8 and FP16 on tensor cores, dense; FP32 lanes count
# two (multiply and add). NVIDIA's published peaks of A100, A10, A6000 and Orin follow from these.
_PER_CLOCK = {80: (4096, 2048, 128), 86: (2048, 1024, 256), 87: (4096, 2048, 256)}


def figure(target: Target, name: str, mode: str | None = None) -> float | None:
    """Return a figure of the profile, the one of the power mode (``name@mode``) if it has one."""
    found = target.peaks.get(f"{name}@{mode}") or target.peaks.get(name)
    return found.value if found else None


def peak_rates(target: Target, mode: str | None = None) -> dict[str, float]:
    """Return dense peak rates in 10^12 operations per second, sparse ones where 2:4 exists.

    These are ceilings of the GPU alone at the mode's clock; small batches stay far below. An
    A100 gives ``{"int8": 623.7, "int8 2:4": 1247.4, "fp16": 311.9, ...}``.
    """
    sms, clock = figure(target, "sms", mode), figure(target, "boost_ghz", mode)
    if target.sm not in _PER_CLOCK or sms is None or clock is None:
        return {}
    rates = {}
    for name, operations in zip(("int8", "fp16", "fp32"), _PER_CLOCK[target.sm], strict=True):
        rates[name] = round(sms * clock * operations / 1000, 1)
        if target.sparse_2_4 and name != "fp32":
            rates[f"{name} 2:4"] = round(2 * sms * clock * operations / 1000, 1)
    return rates
