"""Run the installed command on small but real recipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from elastic_export.cli.app import app

COMMAND = Path(sys.executable).with_name("elastic-export")

DIGITS: dict[str, Any] = {
    "name": "small",
    "model": {
        "family": "vit",
        "config": {
            "image_size": 8,
            "patch_size": 2,
            "in_chans": 1,
            "num_classes": 10,
            "width": [32, 64],
            "depth": [1, 2],
            "heads": [2, 4],
            "head_dim": 16,
            "mlp_ratio": [2, 4],
            "pos_std": 0.5,
        },
    },
    "data": {"dataset": "digits"},
    "train": {"steps": 60, "warmup_steps": 5, "checkpoint_every": 10},
    "descend": {"search": {"keep": 2, "population": 8, "generations": 1}},
    "finetune": {"steps": 20},
    "sparsify": {"finetune": {"steps": 20}},
    "quantize": {"calibration": "max", "guard": {"max_drop": 2.0}},
    "targets": ["host-cpu", "a10", "orin-nano-8gb"],
    "measure": {"sample_ms": 5, "warmup_ms": 20},
}


@dataclass
class Answer:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def call(*arguments: object, home: Path, timeout: float = 400) -> Answer:
    """Run ``elastic-export`` with its store below ``home``."""
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={
            **os.environ,
            "ELASTIC_EXPORT_HOME": str(home / "store"),
            "ELASTIC_EXPORT_TARGETS": str(home / "targets"),
        },
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge nested settings; None removes a section."""
    result = dict(base)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = value
    return result


def write_recipe(folder: Path, *, model: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write the small digits recipe with changes; ``model`` replaces the whole section."""
    path = folder / "recipe.yaml"
    base = DIGITS if model is None else {**DIGITS, "model": model}
    path.write_text(yaml.safe_dump(merged(base, changes)))
    return path


Runner = Callable[..., Answer]


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    """Call the command with a store of this test's own."""
    return lambda *arguments, **options: call(*arguments, home=tmp_path, **options)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write a changed copy of the small recipe."""
    return lambda **changes: write_recipe(tmp_path, **changes)


@pytest.fixture
def run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Runner:
    """``run`` inside this process: a fresh one spends seconds on importing torch.

    For commands that end early. What escapes the command's own handling fails the test.
    """
    monkeypatch.setenv("ELASTIC_EXPORT_HOME", str(tmp_path / "store"))

    def _run(*arguments: object) -> Answer:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments], prog_name="elastic-export")
        told = capfd.readouterr()
        return Answer(int(ended.value.code or 0), told.out, told.err)

    return _run
