"""Power rails: how boards name them, and which of them make up the board's power.

``tegrastats`` writes ``VDD_IN 4861mW/4861mW`` (now/average) or only ``VDD_GPU_SOC 1234mW``;
JetPack 4 writes the pair without a unit, ``POM_5V_IN 2345/2345``; Thor ``VIN 19780mW/...``
(NVIDIA's description of its fields, github.com/NVIDIA skills, jetson-diagnostic). The same rails
are the channels of INA3221 monitors in sysfs: hwmon from JetPack 5 on (kernel documentation,
hwmon/ina3221), iio on JetPack 4 (github.com/rbonghi/jetson_stats, jtop/core/power.py).
"""

import glob
import os
import re
from typing import Callable, Dict, List, Optional, Tuple

from elastic_export.measure.board.shell import read_text

__all__ = ["Ina3221", "choose_rails", "parse_tegrastats"]

FIELD = re.compile(
    r"\b((?:VDD|POM|VIN|SYS|CPU|GPU|CV|SOC)\w*) (-?\d+)(mW)?(?:/(-?\d+)(?:mW)?)?(?=\s|$)"
)
INTEGER = re.compile(r"-?\d+$")
TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
"""What the module draws: Orin NX and Nano, Xavier NX, TX2; Nano and TX1; Thor."""
FED_BY = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
"""A rail that is part of another one, which is measured too.

AGX Orin: NVIDIA Jetson Linux Developer Guide, Jetson AGX Orin Series, power monitors. The six rails
of AGX Xavier (GPU, CPU, SOC, CV, VDDRQ, SYS5V) are fed separately (Jetson AGX Xavier product design
guide DG-09840, power monitor). Where there is a total, every other rail is a part of it.
"""
NOT_CONNECTED = "NC"
I2C_DRIVERS = "/sys/bus/i2c/drivers"


def parse_tegrastats(line: str) -> Dict[str, float]:
    """Return the rails of one line in watts, by name; momentary values, not averages."""
    rails = {}
    for name, now, unit, average in FIELD.findall(line):
        # A number alone is no power: without a unit it is only where an average follows.
        if unit or average:
            rails[name] = int(now) / 1000.0
    return rails


def choose_rails(names: List[str]) -> Tuple[List[str], str]:
    """Choose the rails that make up the board's power, none of them twice.

    Returns:
        The total rail and ``total``, else all that no other one feeds and ``sum``.
    """
    for total in TOTALS:
        if total in names:
            return [total], "total"
    return sorted(name for name in names if FED_BY.get(name) not in names), "sum"


class Ina3221:
    """The power monitors of a board in sysfs; ``read`` is empty where there are none.

    Args:
        root: Where I2C drivers are.
    """

    def __init__(self, root: str = I2C_DRIVERS) -> None:
        self._channels: Dict[str, Callable[[], Optional[float]]] = {}
        for label in sorted(glob.glob(os.path.join(root, "ina3221*", "*", "hwmon", "hwmon*", "*"))):
            found = re.search(r"/in(\d+)_label$", label)
            if found is not None:
                volts = "in{}_input".format(found.group(1))
                amperes = "curr{}_input".format(found.group(1))
                self._add(label, [volts, amperes], 1e6)  # millivolts, milliamperes
        for label in sorted(glob.glob(os.path.join(root, "ina3221*", "*", "iio:device*", "*"))):
            found = re.search(r"/rail_name_(\d+)$", label)
            if found is not None:
                self._add(label, ["in_power{}_input".format(found.group(1))], 1e3)  # milliwatts

    def read(self) -> Dict[str, float]:
        """Return watts by rail; what cannot be read is left out."""
        found = {}
        for name, channel in self._channels.items():
            watts = channel()
            if watts is not None:
                found[name] = watts
        return found

    def _add(self, label: str, files: List[str], divisor: float) -> None:
        paths = [os.path.join(os.path.dirname(label), name) for name in files]
        name = read_text(label)
        if name and name != NOT_CONNECTED:
            self._channels[name] = lambda: _product(paths, divisor)


def _product(paths: List[str], divisor: float) -> Optional[float]:
    watts = 1.0 / divisor
    for path in paths:
        text = read_text(path)
        if text is None or not INTEGER.match(text):
            return None
        watts *= int(text)
    return watts
