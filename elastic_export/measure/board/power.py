"""Power while something runs: samples of a rail, and the energy of one inference.

``tegrastats`` writes ``VDD_IN 4861mW/4861mW`` (now/average) or only ``VDD_GPU_SOC 1234mW``; boards
of the Nano class ``POM_5V_IN 2345/2345``; Thor ``VIN 19780mW/...`` (NVIDIA's description of its
fields, github.com/NVIDIA skills, jetson-diagnostic). The total rail is preferred; where there is
none, all rails are added up. Rails of the module leave out the carrier board's losses.
"""

import glob
import os
import re
import subprocess
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from elastic_export.measure.board.shell import find_program, read_text, run

__all__ = ["PowerMeter", "energy_mj", "ina3221_rails", "parse_tegrastats", "rail_watts"]

FIELD = re.compile(
    r"\b((?:VDD|POM|VIN|SYS|CPU|GPU|NC|CV|SOC)\w*) (\d+)(mW)?(?:/(\d+)(?:mW)?)?(?=\s|$)"
)
TOTALS = ("VDD_IN", "POM_5V_IN", "VIN", "SYS_5V", "POM_5V")
INTERVAL_MS = 100


def parse_tegrastats(line: str) -> Dict[str, float]:
    """Return the rails of one line in watts, by name; momentary values, not averages."""
    rails = {}
    for name, now, unit, average in FIELD.findall(line):
        # "GPU 1234" without a unit is power only where a pair follows, as on the oldest boards.
        if unit or (average and name.startswith("POM")):
            rails[name] = int(now) / 1000.0
    return rails


def ina3221_rails(root: str = "/sys/bus/i2c/drivers/ina3221") -> Dict[str, float]:
    """Read the power monitors themselves, in watts by rail; empty where there are none.

    Each channel tells its rail's name, millivolts and milliamperes.
    """
    rails = {}
    for label in glob.glob(os.path.join(root, "*", "hwmon", "hwmon*", "in*_label")):
        number = re.findall(r"in(\d+)_label$", label)[0]
        folder, name = os.path.dirname(label), read_text(label)
        volts = read_text(os.path.join(folder, "in{}_input".format(number)))
        amperes = read_text(os.path.join(folder, "curr{}_input".format(number)))
        if name and volts and amperes and volts.isdigit() and amperes.isdigit():
            rails[name] = int(volts) * int(amperes) / 1e6
    return rails


def rail_watts(rails: Dict[str, float]) -> Tuple[str, Optional[float]]:
    """Choose what counts: the total rail, else the sum of all; with the name of what it is."""
    for name in TOTALS:
        if name in rails:
            return name, rails[name]
    if not rails:
        return "", None
    return "+".join(sorted(rails)), sum(rails.values())


def energy_mj(samples: List[Tuple[float, float]], begin: float, end: float) -> Optional[float]:
    """Integrate power over a window.

    Args:
        samples: (seconds, watts) in order.
        begin: Start of the window in the same seconds.
        end: Its end.

    Returns:
        Millijoules by the trapezoidal rule, the ends of the window filled from the nearest sample;
        None with fewer than two samples inside.
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
    """Samples power in the background; ``source`` is None where the machine tells none."""

    def __init__(self, wanted: bool = True) -> None:
        self.samples: List[Tuple[float, float]] = []
        self.rail = ""
        self.source: Optional[str] = None
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._thread: Optional[threading.Thread] = None
        self._wanted = wanted
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to sample, where the board has something to sample."""
        if not self._wanted or self._thread is not None:
            return
        tegrastats = find_program("tegrastats", "/usr/bin/tegrastats")
        smi = find_program("nvidia-smi")
        if tegrastats is not None:
            self.source = "tegrastats"
            command = [tegrastats, "--interval", str(INTERVAL_MS)]
        elif smi is not None and run([smi, "-L"]).ok:
            self.source, self.rail = "nvidia-smi", "board"
            query = ["--query-gpu=power.draw", "--format=csv,noheader,nounits"]
            command = [smi, *query, "-lms", str(INTERVAL_MS)]
        elif ina3221_rails():
            self.source = "ina3221"
            self._thread = self._begin(self._poll)
            return
        else:
            return
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError:
            self.source = None
            return
        self._thread = self._begin(self._collect)

    def stop(self) -> None:
        """Stop sampling; the samples stay."""
        self._ended.set()
        process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._thread is not None:
            self._thread.join(timeout=5)
        if process is not None and process.stdout is not None:
            process.stdout.close()
        self._process = self._thread = None

    def mean_watts(self, begin: float, end: float) -> Optional[float]:
        """Return the mean power of a window in seconds since the epoch."""
        energy = energy_mj(list(self.samples), begin, end)
        return None if energy is None or end <= begin else energy / 1000.0 / (end - begin)

    def per_inference(
        self, windows: List[Tuple[float, float]], count: int, idle_w: Optional[float]
    ) -> Optional[Dict[str, Any]]:
        """Return millijoules of one inference over the windows in which ``count`` of them ran."""
        energies = [energy_mj(list(self.samples), begin, end) for begin, end in windows]
        known = [energy for energy in energies if energy is not None]
        if not known or len(known) < len(windows) or count < 1:
            return None
        seconds = sum(end - begin for begin, end in windows)
        total = sum(known)
        net = None if idle_w is None else (total - 1000.0 * idle_w * seconds) / count
        return {
            "per_inference": total / count,
            "net_of_idle": net,
            "rail": self.rail,
            "source": self.source,
            "idle_w": idle_w,
            "load_w": total / 1000.0 / seconds,
        }

    def _begin(self, work: Callable[[], None]) -> threading.Thread:
        self._ended.clear()
        thread = threading.Thread(target=work)
        thread.daemon = True
        thread.start()
        return thread

    def _poll(self) -> None:
        while not self._ended.wait(INTERVAL_MS / 1000.0):
            self.rail, watts = rail_watts(ina3221_rails())
            if watts is not None:
                self.samples.append((time.time(), watts))

    def _collect(self) -> None:
        process = self._process
        if process is None or process.stdout is None:
            return
        for raw in iter(process.stdout.readline, b""):
            line = raw.decode("utf-8", "replace")
            if self.source == "nvidia-smi":
                watts = _number(line)
            else:
                self.rail, watts = rail_watts(parse_tegrastats(line))
            if watts is not None:
                self.samples.append((time.time(), watts))


def _number(line: str) -> Optional[float]:
    first = line.strip().split(",")[0].strip()
    return float(first) if re.match(r"\d+(\.\d+)?$", first) else None
