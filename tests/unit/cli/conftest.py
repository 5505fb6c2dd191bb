"""Run the installed command as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def entry() -> Path:
    path = Path(sys.executable).with_name("elastic-export")
    assert path.is_file(), "install the project first: pip install -e '.[test]'"
    return path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "ELASTIC_EXPORT_HOME": str(tmp_path / "home"), "COLUMNS": "120"}


@pytest.fixture
def run(entry: Path, environment: dict[str, str], tmp_path: Path) -> Run:
    def _run(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(entry), *args],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**environment, **more},
            timeout=120,
            check=False,
        )

    return _run
