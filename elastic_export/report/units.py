"""How figures are written, the same in the terminal, on the page and beside the plots."""

from __future__ import annotations

__all__ = ["MISSING", "count", "milliseconds", "percent", "seconds", "size"]

MISSING = "\u2013"


def count(value: float | None) -> str:
    """Write a number of MACs or parameters: ``count(1_234_567)`` is ``'1.23 M'``."""
    return _scaled(value, 1000.0, ("", "k", "M", "G", "T"))


def size(value: float | None) -> str:
    """Write a number of bytes in decimal units: ``size(412_345)`` is ``'412 kB'``."""
    return _scaled(value, 1000.0, ("B", "kB", "MB", "GB", "TB"))


def milliseconds(value: float | None) -> str:
    """Write a time of three significant digits, without its unit: ``'0.512'``, ``'12.3'``."""
    return MISSING if value is None else _three_digits(value)


def percent(value: float | None) -> str:
    """Write a share that is already in percent, without its unit: ``'97.2'``."""
    return MISSING if value is None else f"{value:.1f}"


def seconds(value: float) -> str:
    """Write a duration for people: ``'0.8 s'``, ``'42 s'``, ``'3 min 20 s'``."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _scaled(value: float | None, step: float, names: tuple[str, ...]) -> str:
    if value is None:
        return MISSING
    scaled, index = float(value), 0
    while abs(scaled) >= step * 0.9995 and index < len(names) - 1:
        scaled /= step
        index += 1
    digits = f"{scaled:.0f}" if index == 0 else _three_digits(scaled)
    return f"{digits} {names[index]}".strip()


def _three_digits(value: float) -> str:
    if abs(value) < 9.995:
        return f"{value:.2f}" if abs(value) >= 0.9995 else f"{value:.3f}"
    return f"{value:.1f}" if abs(value) < 99.95 else f"{value:.0f}"
