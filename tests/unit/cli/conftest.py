"""Run the installed command as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
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


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A descendant of a tiny, untrained supernet, as ``extract`` writes it."""
    from tests.unit.cli.small import make_small

    return make_small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def bundle_for(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of ``small`` for a target; to be read, not changed."""
    from tests.unit.cli.small import call

    out = tmp_path_factory.mktemp("bundles")

    @cache
    def export(target: str) -> Path:
        told = call("export", small, "--target", target, "--data", "digits", "--out", out)
        return Path(told["folder"])

    return export
