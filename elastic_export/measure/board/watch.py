"""Whether the board kept its speed while something was measured: clock, temperature, power mode.

Readings are taken while the measurement runs and cost no process each: a thread reads small files
of the kernel, or one ``nvidia-smi`` writes a line every quarter of a second. What is shorter than
that may go unseen. Why a card slows down is a bit mask (NVIDIA's NVML, nvmlClocksEventReasons).
"""

import re
import time
from typing import Dict, List, NamedTuple, Optional, Union

from elastic_export.measure.board.background import Listener, Repeater
from elastic_export.measure.board.identity import (
    gpu_clock_limit_mhz,
    gpu_clock_mhz,
    gpu_devfreq,
    power_mode,
    smi_command,
    temperatures,
    zone_temperatures,
)
from elastic_export.measure.board.shell import deferred_interrupts, find_program, run
from elastic_export.measure.board.stats import Series

__all__ = ["Reading", "Verdict", "Watch", "is_slowed", "parse_reading"]

READ_SECONDS = 0.25
ZONES_EVERY = 4
HOT_CELSIUS = 90.0
SLOWED = 0.9
SLOWDOWNS = 0x08 | 0x20 | 0x40 | 0x80
"""Hardware slowdown, thermal slowdown by the driver and by the hardware, power brake."""
POWER_CAP = 0x04
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""The name since driver 535, and the one before."""


class Reading(NamedTuple):
    """What was seen at a moment (``time.monotonic``); None where the machine does not tell it."""

    when: float
    clock_mhz: Optional[float]
    hottest_c: Optional[float]
    reasons: Optional[int] = None


class Verdict(NamedTuple):
    """What a sample went through.

    Attributes:
        flags: What makes it doubtful: ``throttled``, ``unpinned``, ``mode_changed``.
        lowest_mhz: Lowest clock of the GPU.
        limit_mhz: What that was compared with: the highest clock of the power mode, or the highest
            one seen where the machine does not tell it.
        hottest_c: Highest temperature.
    """

    flags: List[str]
    lowest_mhz: Optional[float]
    limit_mhz: Optional[float]
    hottest_c: Optional[float]


class Watch:
    """Looks at the board from ``start`` to ``stop``.

    Args:
        pinned: The clocks should not move.
    """

    def __init__(self, pinned: bool) -> None:
        self.readings: List[Reading] = []
        self._pinned = pinned
        self._folder = gpu_devfreq()
        self._limit = gpu_clock_limit_mhz(self._folder)
        self._highest = 0.0
        self._mode = power_mode()[0]
        self._worker: Union[Listener, Repeater, None] = None
        self._calls = 0

    def start(self) -> None:
        """Begin to look."""
        if self._worker is None and self._folder is None and find_program("nvidia-smi"):
            fields = ["clocks.sm", "temperature.gpu"]
            fields += [name for name in REASONS if run(smi_command(name)).ok][:1]
            command = [*smi_command(*fields), "-lms", str(int(1000 * READ_SECONDS))]
            try:
                with deferred_interrupts():
                    self._worker = Listener(command, self._take_line)
            except OSError:
                self._worker = None
        if self._worker is None:
            self._worker = Repeater(READ_SECONDS, self._read)

    def stop(self) -> None:
        """End it; the readings stay."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()

    def judge(self, series: Series) -> Verdict:
        """Say what a sample that has just been taken went through."""
        seen = [one for one in list(self.readings) if series.begin <= one.when <= series.end]
        after = temperatures()
        if not any(one.clock_mhz for one in seen):
            # Too short a sample, or a clock that is told slowly: better now than never.
            clock = gpu_clock_mhz(self._folder)
            seen.append(Reading(time.monotonic(), clock, max(after.values()) if after else None))
        clocks = [one.clock_mhz for one in seen if one.clock_mhz]
        degrees = [one.hottest_c for one in seen if one.hottest_c is not None]
        degrees += list(after.values())
        # A limit that the kernel has lowered because of heat is not the mode's.
        self._limit = max(self._limit or 0.0, self._limit_now() or 0.0) or None
        self._highest = max([self._highest, *clocks])
        hottest = max(degrees) if degrees else None
        flags = []
        slowed = is_slowed(seen, self._limit, self._highest, self._pinned)
        if slowed or (hottest is not None and hottest > HOT_CELSIUS):
            flags.append("throttled")
        if not self._pinned:
            flags.append("unpinned")
        if power_mode()[0] != self._mode:
            flags.append("mode_changed")
        reference = self._limit or self._highest or None
        return Verdict(flags, min(clocks) if clocks else None, reference, hottest)

    def _limit_now(self) -> Optional[float]:
        return gpu_clock_limit_mhz(self._folder) if self._folder else None

    def _read(self) -> None:
        # A zone may be a message to another processor; a clock is a number in memory.
        zones: Dict[str, float] = zone_temperatures() if self._calls % ZONES_EVERY == 0 else {}
        self._calls += 1
        clock = gpu_clock_mhz(self._folder) if self._folder else None
        hottest = max(zones.values()) if zones else None
        self.readings.append(Reading(time.monotonic(), clock, hottest))

    def _take_line(self, line: str) -> None:
        self.readings.append(parse_reading(line, time.monotonic()))


def parse_reading(line: str, when: float) -> Reading:
    """Read ``1410, 45, 0x0000000000000004``: clock in MHz, degrees Celsius, reasons."""
    words = [*(word.strip() for word in line.split(",")), "", "", ""][:3]
    numbers = [float(word) if re.match(r"\d+(\.\d+)?$", word) else None for word in words[:2]]
    bits = int(words[2], 16) if re.match(r"0x[0-9a-fA-F]+$", words[2]) else None
    return Reading(when, numbers[0], numbers[1], bits)


def is_slowed(
    readings: List[Reading], limit: Optional[float], highest: float, pinned: bool
) -> bool:
    """Tell whether the GPU was held back at any of the readings.

    Args:
        readings: Of one sample.
        limit: The highest clock that is allowed, None where it is not told.
        highest: The highest clock that was seen in the whole run.
        pinned: The clock should not move; otherwise a low one says nothing.
    """
    for one in readings:
        if (one.reasons or 0) & SLOWDOWNS:
            return True
        if not pinned or not one.clock_mhz:
            continue
        # A card may never reach the clock it is allowed; its reasons tell when it is held back.
        free = one.reasons is not None and not one.reasons & POWER_CAP
        if one.clock_mhz < SLOWED * (highest if free or not limit else limit):
            return True
    return False
