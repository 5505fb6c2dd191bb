"""What this machine is, as far as it bears on a latency figure. Standard library only."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["describe_machine"]

ISA_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
"""x86 and Arm instruction sets that decide how fast FP32 and INT8 kernels are."""


def describe_machine(root: Path = Path("/")) -> dict[str, Any]:
    """Describe the processor, memory and software that a measurement ran on.

    What cannot be read is left out or ``None``; nothing fails on another operating system.

    Args:
        root: Where ``proc`` and ``sys`` are found (another place in tests).

    Returns:
        ``cpu`` (model), ``cores`` (physical cores this process may use, ``None`` where unknown),
        ``threads`` (logical ones), ``isa`` (those of `ISA_FLAGS` present), ``memory_gb``, ``os``,
        ``arch``, ``python``; where they apply also ``board``, ``cpu_quota`` (cores a container is
        limited to), ``governor`` (frequency governors) and ``virtual`` (under a hypervisor).
    """
    usable = _usable_cpus()
    processors = _processors(root)
    first = processors[0] if processors else {}
    flags = set((first.get("flags") or first.get("Features") or "").split())
    found: dict[str, Any] = {
        "cpu": first.get("model name") or platform.processor() or platform.machine() or "unknown",
        "cores": _physical_cores(processors, usable),
        "threads": len(usable),
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "memory_gb": _memory_gb(root),
        "os": _os_name(root),
        "arch": platform.machine(),
        "python": platform.python_version(),
    }
    extra = {
        "board": _read(root / "proc/device-tree/model"),
        "cpu_quota": _cpu_quota(root),
        "governor": _governor(root, usable),
        "virtual": True if "hypervisor" in flags else None,
    }
    return found | {key: value for key, value in extra.items() if value is not None}


def _read(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.replace("\x00", "").strip() or None


def _usable_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _processors(root: Path) -> list[dict[str, str]]:
    blocks = (_read(root / "proc/cpuinfo") or "").split("\n\n")
    parsed = []
    for block in blocks:
        pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
        entry = {key.strip(): value.strip() for key, _, value in pairs}
        if "processor" in entry:
            parsed.append(entry)
    return parsed


def _physical_cores(processors: list[dict[str, str]], usable: set[int]) -> int | None:
    """Count distinct (package, core) pairs; Arm kernels do not tell them here."""
    cores = {
        (entry.get("physical id", "0"), entry["core id"])
        for entry in processors
        if "core id" in entry and entry["processor"].isdigit() and int(entry["processor"]) in usable
    }
    return len(cores) or None


def _memory_gb(root: Path) -> float | None:
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        amount = value.split()
        if name == "MemTotal" and amount and amount[0].isdigit():
            return round(int(amount[0]) / 2**20, 1)
    return None


def _os_name(root: Path) -> str:
    for line in (_read(root / "etc/os-release") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return f"{value.strip().strip(chr(34))} ({platform.system()} {platform.release()})"
    return platform.platform()


def _cpu_quota(root: Path) -> float | None:
    parts = (_read(root / "sys/fs/cgroup/cpu.max") or "").split()
    if len(parts) == 2 and parts[0].isdigit() and parts[1].isdigit() and int(parts[1]) > 0:
        return round(int(parts[0]) / int(parts[1]), 2)
    return None


def _governor(root: Path, usable: set[int]) -> str | None:
    cpus = root / "sys/devices/system/cpu"
    names = {_read(cpus / f"cpu{number}/cpufreq/scaling_governor") for number in sorted(usable)}
    return "+".join(sorted(name for name in names if name)) or None
