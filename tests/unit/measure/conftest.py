"""What tests of the script on the board share."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.board.machine import STAND_INS


@pytest.fixture(scope="session")
def cudart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real shared library that stands in for the CUDA runtime."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler (Debian package gcc)")
    folder = tmp_path_factory.mktemp("cudart")
    source, library = STAND_INS / "cudart_stand_in.c", folder / "libcudart.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return folder
