"""A stand-in for the files by which a Jetson is known, for Pythons that find it on PYTHONPATH.

It is no Jetson. Whoever opens the device tree or the release of L4T reads what STAND_IN_COMPATIBLE
and STAND_IN_L4T say: the strings recorded in github.com/rbonghi/jetson_stats issue 400, say.
"""

import builtins
import io
import os

_FILES = {
    "/proc/device-tree/compatible": "STAND_IN_COMPATIBLE",
    "/etc/nv_tegra_release": "STAND_IN_L4T",
}
_open = builtins.open


def _stand_in(file, *arguments, **options):
    told = os.environ.get(_FILES.get(file, "")) if isinstance(file, str) else None
    return _open(file, *arguments, **options) if told is None else io.BytesIO(told.encode())


builtins.open = _stand_in
