"""A machine for the script: a bundle, a private PATH with stand-ins, and a way to run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elastic_export.measure.board.compose import SCRIPT
from tests.board.bundles import make_bundle

__all__ = ["STAND_INS", "Board", "has", "jetson", "nvidia_smi", "processes", "wait_for"]

STAND_INS = Path(__file__).parent


class Board:
    """A bundle, a private PATH with stand-ins, and the script."""

    def __init__(self, tmp_path: Path, runtime: str = "onnxruntime", **graph: Any) -> None:
        self.tmp = tmp_path
        self.bundle = make_bundle(tmp_path / "bundle", runtime, **graph)
        self.bin = tmp_path / "bin"
        self.bin.mkdir()
        self.out = tmp_path / "result.json"
        self.script = self.bundle / SCRIPT
        self.environment = {
            **os.environ,
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
            # Boards in other tests are other machines: one measurement at a time on each.
            "TMPDIR": str(tmp_path),
        }

    def sysfs(self, files: dict[str, object]) -> Path:
        """Give the board a /sys of its own: the same script, with another root there.

        Args:
            files: Path below /sys to content.

        Returns:
            The folder that stands for /sys.
        """
        root = self.tmp / "sys"
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        self.script = self.tmp / SCRIPT
        text = (self.bundle / SCRIPT).read_text()
        assert '"/sys/' in text
        self.script.write_text(text.replace('"/sys/', f'"{root}/'))
        return root

    def install(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def install_module(self, version: str, cudart: Path, **more: str) -> None:
        """Give the board TensorRT's Python module, and a CUDA runtime to run it on."""
        self.environment.update(
            PYTHONPATH=str(STAND_INS / "tensorrt_stand_in"),
            LD_LIBRARY_PATH=str(cudart),
            STAND_IN_VERSION=version,
            **more,
        )

    def install_trtexec(self, version: str, **more: str) -> None:
        stand_in = STAND_INS / "trtexec_stand_in.py"
        self.install("trtexec", f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n')
        self.environment.update(STAND_IN_VERSION=version, **more)

    def command(self, *arguments: str) -> list[str]:
        return [
            sys.executable,
            str(self.script),
            "run",
            *([] if self.script.parent == self.bundle else [str(self.bundle)]),
            "--out",
            str(self.out),
            "--seconds=0.2",
            "--warmup-ms=10",
            *arguments,
        ]

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
            # A background shell ignores SIGINT, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            **more,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @property
    def result(self) -> dict[str, Any]:
        return json.loads(self.out.read_text())


JETSON_CLOCKS = """#!/bin/sh
echo "$@" >> "{log}"
case "$1" in
  --store) echo stored > "$2" ;;
  --restore) sleep {seconds}; echo restored >> "{log}.done" ;;
esac
"""
NVPMODEL = """#!/bin/sh
echo "NV Power Mode: MODE_15W"
echo 0
"""
TEGRASTATS = """#!/bin/sh
while :; do
  echo "RAM 2448/7620MB GR3D_FREQ 0% VDD_IN 5000mW/5000mW VDD_SOC 1387mW/1387mW"
  sleep 0.05
done
"""


def jetson(board: Board, restoring: float = 0) -> Path:
    log = board.tmp / "clocks.log"
    board.install("jetson_clocks", JETSON_CLOCKS.format(log=log, seconds=restoring))
    board.install("nvpmodel", NVPMODEL)
    board.install("tegrastats", TEGRASTATS)
    board.install("sudo", '#!/bin/sh\nshift\nexec "$@"\n')
    return log


NVIDIA_SMI = r"""#!/usr/bin/env python3
import json, os, sys, time
known = json.load(open("{values}"))
names, period = [], None
for number, word in enumerate(sys.argv):
    if word.startswith("--query-gpu="):
        names = word.partition("=")[2].split(",")
    if word == "-lms":
        period = int(sys.argv[number + 1]) / 1000
    if word == "-lgc" or word == "-rgc":
        open("{values}.log", "a").write(" ".join(sys.argv[1:]) + "\n")
for name in names:
    if name not in known:
        print(f'Field "{{name}}" is not a valid field to query.')
        sys.exit(2)
while names:
    known = json.load(open("{values}"))
    print(", ".join(str(known[name]) for name in names), flush=True)
    if period is None:
        break
    time.sleep(period)
"""
CARD = {
    "name": "NVIDIA Stand-In",
    "driver_version": "550.54",
    "compute_cap": "8.6",
    "clocks.max.sm": 2000,
    "clocks.sm": 1950,
    "temperature.gpu": 50,
    "power.draw": 60.5,
}


def nvidia_smi(board: Board, **fields: object) -> Path:
    """Give the board a card; a field without a value is one that its driver does not know.

    Returns:
        The file of its values, which may change while it is asked.
    """
    values = board.tmp / "card.json"
    known = {**CARD, **{name.replace("__", "."): value for name, value in fields.items()}}
    values.write_text(json.dumps(known))
    board.install("nvidia-smi", NVIDIA_SMI.format(values=values))
    board.install("sudo", '#!/bin/sh\nshift\nexec "$@"\n')
    return values


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds, and fail where it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def has(path: Path, text: str) -> bool:
    """Tell whether a file is there and holds a text."""
    return path.exists() and text in path.read_text()


def processes(word: str) -> list[str]:
    """Command lines that hold a word and are not this process's own."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if word in line and entry.parent.name != str(os.getpid()):
            found.append(line)
    return found
