"""A machine for the script: a bundle, a private PATH with stand-ins, and a way to run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from elastic_export.measure.board.compose import SCRIPT
from tests.board.bundles import make_bundle

__all__ = ["STAND_INS", "Board", "jetson"]

STAND_INS = Path(__file__).parent


class Board:
    """A bundle, a private PATH with stand-ins, and the script."""

    def __init__(self, tmp_path: Path, runtime: str = "onnxruntime", **graph: Any) -> None:
        self.tmp = tmp_path
        self.bundle = make_bundle(tmp_path / "bundle", runtime, **graph)
        self.bin = tmp_path / "bin"
        self.bin.mkdir()
        self.out = tmp_path / "result.json"
        self.environment = {
            **os.environ,
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
        }

    def install(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def install_trtexec(self, version: str, **more: str) -> None:
        stand_in = STAND_INS / "trtexec_stand_in.py"
        self.install("trtexec", f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n')
        self.environment.update(STAND_IN_VERSION=version, **more)

    def command(self, *arguments: str) -> list[str]:
        return [
            sys.executable,
            str(self.bundle / SCRIPT),
            "run",
            "--out",
            str(self.out),
            "--seconds=0.2",
            "--warmup-ms=10",
            *arguments,
        ]

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


def jetson(board: Board) -> Path:
    log = board.tmp / "clocks.log"
    board.install("jetson_clocks", JETSON_CLOCKS.format(log=log))
    board.install("nvpmodel", NVPMODEL)
    board.install("tegrastats", TEGRASTATS)
    board.install("sudo", '#!/bin/sh\nshift\nexec "$@"\n')
    return log
