"""What the machine tells of itself, here and from recorded files of other machines."""

from __future__ import annotations

import json
import os

import pytest

from elastic_export.measure.machine import describe_machine

X86 = """\
processor\t: {cpu}
model name\t: Imaginary Xeon 9000
physical id\t: 0
core id\t\t: {core}
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni amx_int8 hypervisor
"""

ARM = """\
processor\t: 0
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes asimddp
CPU part\t: 0xd42

processor\t: 1
Features\t: fp asimd evtstrm aes asimddp
"""


def put(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def usable(monkeypatch):
    def set_cpus(cpus):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(cpus), raising=False)

    return set_cpus


def test_this_machine_is_described_and_fits_json():
    found = describe_machine()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"]
    assert found["threads"] >= 1
    assert found["python"].startswith("3.")
    assert set(found) >= {"cpu", "cores", "threads", "isa", "memory_gb", "os", "arch", "python"}


def test_x86_server_with_two_threads_per_core(tmp_path, usable):
    blocks = [X86.format(cpu=cpu, core=cpu // 2) for cpu in range(4)]
    put(tmp_path, "proc/cpuinfo", "\n".join(blocks))
    put(tmp_path, "proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n")
    put(tmp_path, "etc/os-release", 'NAME="X"\nPRETTY_NAME="Some Linux 9"\n')
    put(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000\n")
    for cpu in range(4):
        put(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", "powersave\n")
    usable({0, 1, 2})
    found = describe_machine(tmp_path)
    assert found["cpu"] == "Imaginary Xeon 9000"
    assert (found["cores"], found["threads"]) == (2, 3)
    assert found["isa"] == ["avx2", "avx512f", "avx512_vnni", "amx_int8"]
    assert found["memory_gb"] == 16.0
    assert found["os"].startswith("Some Linux 9 (")
    assert found["cpu_quota"] == 1.5
    assert found["governor"] == "powersave"
    assert found["virtual"] is True


def test_arm_board(tmp_path, usable):
    put(tmp_path, "proc/cpuinfo", ARM)
    put(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\x00")
    put(tmp_path, "sys/fs/cgroup/cpu.max", "max 100000\n")
    usable({0, 1})
    found = describe_machine(tmp_path)
    assert found["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found["isa"] == ["asimd", "asimddp"]
    assert found["cores"] is None
    assert "cpu_quota" not in found
    assert "virtual" not in found


def test_nothing_readable_and_no_affinity(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    found = describe_machine(tmp_path)
    assert found["memory_gb"] is None
    assert found["isa"] == []
    assert found["threads"] == os.cpu_count()
    assert found["os"]
