"""Power while something runs: samples of it, and the energy of one inference.

Rails of the module leave out the carrier board's losses; ``nvidia-smi`` tells a card's.
"""

import re
import time
from typing import Any, Dict, List, Optional, Tuple, Union

from elastic_export.measure.board.background import Listener, Repeater
from elastic_export.measure.board.identity import smi_command
from elastic_export.measure.board.rails import Ina3221, choose_rails, parse_tegrastats
from elastic_export.measure.board.shell import deferred_interrupts, find_program, run
from elastic_export.measure.board.stats import Series

__all__ = ["PowerMeter", "energy_mj"]

INTERVAL_MS = 100
SYSFS_SECONDS = 0.05


def energy_mj(samples: List[Tuple[float, float]], begin: float, end: float) -> Optional[float]:
    """Integrate power over a window.

    Args:
        samples: (seconds, watts) in order.
        begin: Start of the window in the same seconds.
        end: Its end.

    Returns:
        Millijoules by the trapezoidal rule, the ends of the window filled from the nearest sample
        inside; None with fewer than two samples inside.
    """
    inside = [(when, watts) for when, watts in samples if begin <= when <= end]
    if len(inside) < 2:
        return None
    inside = [(begin, inside[0][1]), *inside, (end, inside[-1][1])]
    joules = 0.0
    for (t0, w0), (t1, w1) in zip(inside, inside[1:]):
        joules += (t1 - t0) * (w0 + w1) / 2.0
    return joules * 1000.0


class PowerMeter:
    """Samples power in the background; ``source`` is None where the machine tells none.

    ``samples`` are (seconds of ``time.monotonic``, watts): a board that sets its wall clock over
    the network while it measures would stretch its windows.
    """

    def __init__(self, wanted: bool = True) -> None:
        self.samples: List[Tuple[float, float]] = []
        self.rails: List[str] = []
        self.kind = ""
        self.source: Optional[str] = None
        self._wanted = wanted
        self._worker: Union[Listener, Repeater, None] = None
        self._monitors = Ina3221() if wanted else None

    def start(self) -> None:
        """Begin to sample, where the board has something to sample.

        Monitors in sysfs come first: a reading is stamped when it is taken and not when a line
        arrives through a pipe, they may be read more often, and no program runs beside the
        measurement. tegrastats serves boards whose monitors are not where they are expected.
        """
        if not self._wanted or self._worker is not None:
            return
        tegrastats = find_program("tegrastats", "/usr/bin/tegrastats")
        smi = find_program("nvidia-smi")
        if self._monitors is not None and self._monitors.read():
            self.source = "ina3221"
            self._worker = Repeater(SYSFS_SECONDS, self._poll)
        elif tegrastats is not None:
            command = [tegrastats, "--interval", str(INTERVAL_MS)]
            self._listen("tegrastats", command)
        elif smi is not None and run([smi, "-L"]).ok:
            self.rails, self.kind = ["board"], "total"
            command = [*smi_command("power.draw"), "-lms", str(INTERVAL_MS)]
            self._listen("nvidia-smi", command)

    def stop(self) -> None:
        """Stop sampling; the samples stay."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()

    def mean_watts(self, begin: float, end: float) -> Optional[float]:
        """Return the mean power of a window in seconds of ``time.monotonic``."""
        energy = energy_mj(list(self.samples), begin, end)
        return None if energy is None or end <= begin else energy / 1000.0 / (end - begin)

    def per_inference(
        self, parts: List[Series], idle_w: Optional[float]
    ) -> Optional[Dict[str, Any]]:
        """Return millijoules of one inference: all that was drawn, over all inferences.

        Inferences that overlap share their window, so latencies say nothing of energy.
        """
        samples = list(self.samples)
        energies = [energy_mj(samples, part.begin, part.end) for part in parts]
        known = [energy for energy in energies if energy is not None]
        count = sum(len(part.latency) for part in parts)
        if not known or len(known) < len(parts) or count < 1:
            return None
        seconds = sum(part.end - part.begin for part in parts)
        total = sum(known)
        net = None if idle_w is None else (total - 1000.0 * idle_w * seconds) / count
        return {
            "per_inference": total / count,
            "net_of_idle": net,
            "rails": list(self.rails),
            "kind": self.kind,
            "source": self.source,
            "idle_w": idle_w,
            "load_w": total / 1000.0 / seconds,
            "exact_window": all(part.exact for part in parts),
        }

    def _listen(self, source: str, command: List[str]) -> None:
        self.source = source
        try:
            with deferred_interrupts():
                self._worker = Listener(command, self._take_line)
        except OSError:
            self.source = None

    def _poll(self) -> None:
        if self._monitors is not None:
            self._take_rails(self._monitors.read())

    def _take_line(self, line: str) -> None:
        if self.source == "nvidia-smi":
            watts = _number(line)
            if watts is not None:
                self.samples.append((time.monotonic(), watts))
        else:
            self._take_rails(parse_tegrastats(line))

    def _take_rails(self, rails: Dict[str, float]) -> None:
        if rails and not self.rails:
            self.rails, self.kind = choose_rails(list(rails))
        # A rail that is missing once would make a sum that looks like a dip.
        if rails and all(name in rails for name in self.rails):
            self.samples.append((time.monotonic(), sum(rails[name] for name in self.rails)))


def _number(line: str) -> Optional[float]:
    first = line.strip().split(",")[0].strip()
    return float(first) if re.match(r"\d+(\.\d+)?$", first) else None
