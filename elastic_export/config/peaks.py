"""A device's figures by power mode, and its peak rates by one formula per architecture."""

from __future__ import annotations

from elastic_export.config.target import Figure, Target

__all__ = ["figure", "find_figure", "peak_rates", "unverified"]

# Operations per clock and multiprocessor, dense: INT8 and FP16 on tensor cores where there are
# any; FP32 lanes count two (multiply and add). NVIDIA's published peaks follow from these.
_PER_CLOCK: dict[int, dict[str, int]] = {
    53: {"fp16": 512, "fp32": 256},  # Maxwell: no INT8, no tensor cores, FP16 in pairs
    72: {"int8": 2048, "fp16": 1024, "fp32": 128},
    80: {"int8": 4096, "fp16": 2048, "fp32": 128},
    86: {"int8": 2048, "fp16": 1024, "fp32": 256},
    87: {"int8": 4096, "fp16": 2048, "fp32": 256},
    89: {"int8": 2048, "fp16": 1024, "fp32": 256},
    90: {"int8": 8192, "fp16": 4096, "fp32": 256},
}
# What a power mode sets: the figure of another mode says nothing about it.
_SET_BY_MODE = {"boost_ghz", "dla_int8_2_4_tops", "fp32_ghz", "tdp_w"}


def find_figure(target: Target, name: str, mode: str | None = None) -> Figure | None:
    """Return a figure of the profile, the one of the power mode (``name@mode``) if it has one.

    A figure without a mode holds for the first mode. It holds for the others too, except where a
    mode sets it (clocks, power, DLA): there, what is not given is not known.
    """
    own = target.peaks.get(f"{name}@{mode}")
    if own is None and (name not in _SET_BY_MODE or mode in (None, *target.power_modes[:1])):
        return target.peaks.get(name)
    return own


def figure(target: Target, name: str, mode: str | None = None) -> float | None:
    """Return the value of `find_figure`, or None where it is not known."""
    found = find_figure(target, name, mode)
    return None if found is None else found.value


def peak_rates(target: Target, mode: str | None = None) -> dict[str, float]:
    """Return dense peak rates in 10^12 operations per second, sparse ones where 2:4 exists.

    These are ceilings of the GPU alone at the mode's clock, with the multiprocessors that the mode
    leaves on; small batches stay far below. A DLA and advertised sums are not in them. An A100
    gives ``{"int8": 623.7, "int8 2:4": 1247, "fp16": 311.9, ...}``; a device whose architecture,
    size or clock is not known gives ``{}``.
    """
    sms, clock = figure(target, "sms", mode), figure(target, "boost_ghz", mode)
    if target.sm is None or target.sm not in _PER_CLOCK or sms is None or clock is None:
        return {}
    rates = {}
    for name, operations in _PER_CLOCK[target.sm].items():
        # Hopper clocks its tensor cores lower than its ordinary lanes.
        ghz = figure(target, "fp32_ghz", mode) or clock if name == "fp32" else clock
        rate = sms * ghz * operations / 1000
        rates[name] = _rounded(rate)
        if target.sparse_2_4 and name != "fp32":
            rates[f"{name} 2:4"] = _rounded(2 * rate)
    return rates


def unverified(target: Target) -> int:
    """Count the figures that no second source confirms."""
    return sum(not peak.verified for peak in target.peaks.values())


def _rounded(rate: float) -> float:
    return float(f"{rate:.4g}")
