"""The script as somebody at the board types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from elastic_export.engine.bundle import load_bundle
from tests.board.machine import Board


def test_by_hand_figures_are_printed_and_the_bundle_stays_whole(tmp_path: Path) -> None:
    """As the bundle's README says: in its folder, without any option that names a place."""
    board = Board(tmp_path)
    done = subprocess.run(
        [sys.executable, "on_device.py", "run", "--seconds=0.2", "--warmup-ms=10"],
        cwd=board.bundle,
        env=board.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["tiny/fp32", "tiny/int8"]
    assert all("median" in line and "logits agree, unpinned" in line for line in lines)
    load_bundle(board.bundle)
    result = json.loads((tmp_path / "bundle.result.json").read_text())
    assert result["complete"]
    board.out = board.bundle / "result.json"
    refused = board.run()
    assert refused.returncode == 1
    assert "would lie in the bundle" in refused.stderr
    assert refused.stdout == ""
    board.out = Path("/proc/result.json")
    elsewhere = board.run()
    assert elsewhere.returncode == 1
    assert "Name another place" in elsewhere.stderr
    board.out = Path("/dev/full")
    assert "is no file" in board.run().stderr


def test_help_names_every_default(tmp_path: Path) -> None:
    told = Board(tmp_path).run("--help").stdout
    assert "another bundle, measured in turn" in told
    for default in ("15.0", "1000", "auto", "BUNDLE.result.json", "BUNDLE.engine"):
        assert f"default: {default}" in told or default in told, default
    assert "SUPPRESS" not in told
    assert "None" not in told
