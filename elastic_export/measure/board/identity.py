"""Which board this is: model, JetPack, power mode, clocks, versions, temperatures.

Where each fact is read: github.com/rbonghi/jetson_stats (release file, part numbers),
github.com/dusty-nv/jetson-containers (L4T release to JetPack and TensorRT).
"""

import glob
import os
import platform
import re
from typing import Any, Dict, List, Optional, Tuple

from elastic_export.measure.board.shell import find_program, read_text, run

__all__ = [
    "TRTEXEC",
    "banner_of",
    "describe_board",
    "gpu_clock_limit_mhz",
    "gpu_clock_mhz",
    "gpu_devfreq",
    "jetpack_of",
    "parse_l4t",
    "parse_part",
    "parse_power_mode",
    "power_mode",
    "smi_command",
    "temperatures",
    "tensorrt_version",
    "zone_temperatures",
]

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
GPU_FOLDERS = (
    "/sys/class/devfreq/*gpu*",
    "/sys/class/devfreq/*gv11b*",
    "/sys/class/devfreq/*ga10b*",
    "/sys/class/devfreq/*gp10b*",
    "/sys/devices/platform/*.gpu/devfreq/*",
)

JETPACKS = (
    ("32.6.1", "4.6"),
    ("32.7.1", "4.6.1"),
    ("32.7.2", "4.6.2"),
    ("32.7.3", "4.6.3"),
    ("32.7.4", "4.6.4"),
    ("32.7.5", "4.6.5"),
    ("32.7.6", "4.6.6"),
    ("35.1.0", "5.0.2"),
    ("35.2.1", "5.1"),
    ("35.3.1", "5.1.1"),
    ("35.4.1", "5.1.2"),
    ("35.5.0", "5.1.3"),
    ("35.6.0", "5.1.4"),
    ("35.6.1", "5.1.5"),
    ("35.6.2", "5.1.5"),
    ("35.6.4", "5.1.6"),
    ("36.2.0", "6.0 DP"),
    ("36.3.0", "6.0"),
    ("36.4.0", "6.1"),
    ("36.4.3", "6.2"),
    ("36.4.4", "6.2.1"),
    ("36.5.0", "6.2.2"),
    ("38.2.0", "7.0"),
    ("38.4.0", "7.1"),
    ("39.2.0", "7.2"),
)
"""L4T release to JetPack; a release in between belongs to the one before it of its series."""


def describe_board() -> Dict[str, Any]:
    """Describe the board; what cannot be read is None, nothing fails on another machine."""
    trtexec = find_program("trtexec", TRTEXEC)
    l4t = parse_l4t(read_text("/etc/nv_tegra_release") or "")
    mode, modes = power_mode()
    total, free = _memory_mb()
    return {
        "model": read_text("/proc/device-tree/model") or _gpu_name() or platform.machine(),
        "part": parse_part(read_text("/proc/device-tree/compatible") or ""),
        "l4t": l4t,
        "jetpack": jetpack_of(l4t),
        "power_mode": mode,
        "power_modes": modes,
        "gpu_clock_mhz": gpu_clock_mhz(),
        "cpu": _cpu(),
        "cpu_governor": read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "tensorrt": tensorrt_version(trtexec),
        "cuda": _cuda_version(),
        "driver": _smi("driver_version"),
        "compute_capability": _smi("compute_cap"),
        "python": platform.python_version(),
        "memory_mb": total,
        "free_mb": free,
        "temperatures_c": temperatures(),
        "trtexec": trtexec,
        "sudo": can_sudo(),
    }


def parse_l4t(text: str) -> Optional[str]:
    """Read the L4T release: ``# R36 (release), REVISION: 4.3, ...`` gives ``36.4.3``."""
    found = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    if found is None:
        return None
    parts = [found.group(1), *found.group(2).split(".")]
    return ".".join(([*parts, "0", "0"])[:3])


def jetpack_of(l4t: Optional[str]) -> Optional[str]:
    """Return the JetPack of an L4T release, None where the series is unknown."""
    if l4t is None:
        return None
    wanted = _numbers(l4t)
    best = None
    for release, jetpack in JETPACKS:
        known = _numbers(release)
        if known[0] == wanted[0] and known <= wanted:
            best = jetpack
    return best


def power_mode() -> Tuple[Optional[str], List[str]]:
    """Return the name of the power mode and all modes this board's configuration has."""
    done = run(["nvpmodel", "-q"])
    text = read_text("/etc/nvpmodel.conf") or ""
    modes = re.findall(r"<\s*POWER_MODEL\s+ID=\d+\s+NAME=([^\s>]+)\s*>", text)
    return parse_power_mode(done.out if done.ok else ""), modes


def parse_power_mode(text: str) -> Optional[str]:
    """Read ``NV Power Mode: 15W`` (or ``MODE_15W``) from what ``nvpmodel -q`` prints."""
    found = re.search(r"NV Power Mode:\s*(\S+)", text)
    if found is None:
        return None
    name = found.group(1)
    return name[len("MODE_") :] if name.startswith("MODE_") else name


def tensorrt_version(trtexec: Optional[str]) -> Optional[str]:
    """Return the version of TensorRT: from Debian's packages, else from trtexec's banner.

    The packages say nothing of a trtexec that lies elsewhere than they put it. The banner writes
    8.5.2 as ``v8502`` and 10.3.0 as ``v100300``.
    """
    if trtexec not in (None, TRTEXEC):
        told = banner_of(str(trtexec))
        if told is not None:
            return told
    for package in ("libnvinfer-bin", "libnvinfer10", "libnvinfer8", "libnvinfer11", "tensorrt"):
        done = run(["dpkg-query", "-W", "-f=${Version}", package])
        found = re.match(r"(?:\d+:)?(\d+(?:\.\d+)+)", done.out.strip()) if done.ok else None
        if found is not None:
            return found.group(1)
    return None if trtexec is None else banner_of(trtexec)


def banner_of(trtexec: str) -> Optional[str]:
    """Return the version that a trtexec says it is of."""
    done = run([trtexec, "--help"])
    found = re.search(r"\[TensorRT v(\d+)\]", done.out + done.err)
    return None if found is None else banner_version(found.group(1))


def banner_version(digits: str) -> str:
    """Read the digits of trtexec's banner: ``8502`` is 8.5.2 and ``100300`` is 10.3.0."""
    number = int(digits)
    if number < 10000:
        return "{}.{}.{}".format(number // 1000, number // 100 % 10, number % 100)
    return "{}.{}.{}".format(number // 10000, number // 100 % 100, number % 100)


def temperatures() -> Dict[str, float]:
    """Return every temperature the machine tells, in degrees Celsius, by its name."""
    found = zone_temperatures()
    hot = _smi("temperature.gpu")
    if hot is not None and re.match(r"\d+$", hot):
        found["gpu"] = float(hot)
    return found


def zone_temperatures() -> Dict[str, float]:
    """Return every thermal zone's temperature in degrees Celsius, by its name."""
    found = {}
    for zone in sorted(glob.glob("/sys/class/thermal/thermal_zone*")):
        value = read_text(os.path.join(zone, "temp"))
        name = read_text(os.path.join(zone, "type")) or os.path.basename(zone)
        if value is not None and re.match(r"-?\d+$", value):
            degrees = int(value) / 1000.0
            # Zones that are off report -256.
            if degrees > -100:
                found[name] = degrees
    return found


def gpu_devfreq() -> Optional[str]:
    """Return the folder in which the kernel tells an integrated GPU's clocks."""
    for pattern in GPU_FOLDERS:
        for folder in sorted(glob.glob(pattern)):
            if _megahertz(folder, "cur_freq") is not None:
                return folder
    return None


def gpu_clock_mhz(folder: Optional[str] = None) -> Optional[float]:
    """Return the clock the GPU runs at now, in MHz.

    Args:
        folder: What ``gpu_devfreq`` found, where that was asked before.
    """
    folder = folder or gpu_devfreq()
    return _megahertz(folder, "cur_freq") if folder else _float(_smi("clocks.sm"))


def gpu_clock_limit_mhz(folder: Optional[str] = None) -> Optional[float]:
    """Return the highest clock of the current power mode (of the hardware, on a card), in MHz."""
    folder = folder or gpu_devfreq()
    return _megahertz(folder, "max_freq") if folder else _float(_smi("clocks.max.sm"))


def _megahertz(folder: str, name: str) -> Optional[float]:
    value = read_text(os.path.join(folder, name))
    return int(value) / 1e6 if value is not None and value.isdigit() else None


def _float(text: Optional[str]) -> Optional[float]:
    return float(text) if text is not None and re.match(r"\d+(\.\d+)?$", text) else None


def can_sudo() -> bool:
    """Tell whether commands may run as root without a password."""
    return os.geteuid() == 0 or run(["sudo", "-n", "true"]).ok


def _numbers(release: str) -> List[int]:
    return [int(part) for part in release.split(".")]


def parse_part(text: str) -> Optional[str]:
    """Read the module's part number, such as ``p3767-0003``, from the device tree's ``compatible``.

    Developer kits write the carrier board in front of the module:
    ``nvidia,p3768-0000+p3767-0003`` (github.com/rbonghi/jetson_stats issue 400).
    """
    found = re.search(r"\+(p\d{4}-\d{4})", text) or re.search(r"(p\d{4}-\d{4})", text)
    return None if found is None else found.group(1)


def _cuda_version() -> Optional[str]:
    for path in ("/usr/local/cuda/version.json", "/usr/local/cuda/version.txt"):
        found = re.search(
            r"(?:CUDA SDK|\"cuda\").*?(\d+\.\d+(?:\.\d+)?)|CUDA Version (\d+\.\d+)",
            read_text(path) or "",
            re.S,
        )
        if found is not None:
            return found.group(1) or found.group(2)
    return None


def smi_command(*fields: str) -> List[str]:
    """Return the command that asks a card's driver, of the card that is measured.

    With several cards ``nvidia-smi`` answers a line each; CUDA takes the first it may see.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    card = visible if re.match(r"(\d+|GPU-[\w-]+)$", visible) else "0"
    return [
        "nvidia-smi",
        "-i",
        card,
        "--query-gpu=" + ",".join(fields),
        "--format=csv,noheader,nounits",
    ]


def _smi(field: str) -> Optional[str]:
    """Ask a desktop GPU's driver; Jetson boards have no useful nvidia-smi."""
    if find_program("nvidia-smi") is None:
        return None
    done = run(smi_command(field))
    lines = done.out.strip().splitlines() if done.ok else []
    return lines[0].strip() if lines and "N/A" not in lines[0] else None


def _gpu_name() -> Optional[str]:
    return _smi("name")


def _cpu() -> Optional[str]:
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", read_text("/proc/cpuinfo") or "", re.M)
    return None if found is None else found.group(1).strip()


def _memory_mb() -> Tuple[Optional[int], Optional[int]]:
    text = read_text("/proc/meminfo") or ""
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.M))
    total, free = sizes.get("MemTotal"), sizes.get("MemAvailable")
    return (
        None if total is None else int(total) // 1024,
        None if free is None else int(free) // 1024,
    )
