"""What a user gets from the wheel and from an editable install, each in a fresh environment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = ("targets", "calibrate", "benchmarks")
SOURCES = ("elastic_export", *SHIPPED, "setup.py", "pyproject.toml", "README.md", "LICENSE")

PROBE = """
import importlib, json
from elastic_export import resources
from elastic_export.config.loader import load_calibration, load_recipe, load_target
found = {}
for kind, load in (("targets", load_target), ("calibrate", load_calibration),
                   ("benchmarks", load_recipe)):
    found[kind] = {name: type(load(name)).__name__ for name in resources.names(kind)}
    found[kind + " at"] = str(resources.shipped(kind))
    try:
        importlib.import_module(kind)
        found[kind + " imports"] = True
    except ModuleNotFoundError:
        found[kind + " imports"] = False
import elastic_export
found["package"] = elastic_export.__file__
print(json.dumps(found))
"""


def _run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that building leaves nothing in the real one."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, copy / name)
    # A script beside the data must not reach site-packages.
    (copy / "benchmarks" / "compare.py").write_text("print('a script')\n")
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by way of the source archive as for a release."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, checkout, cwd=folder)
    assert len(list(folder.glob("*.tar.gz"))) == 1
    (built,) = folder.glob("*.whl")
    return built


def _environment(folder: Path) -> Path:
    """Make a fresh environment that sees every installed package except elastic-export."""
    _run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for key in ("purelib", "platlib"):
        for path in Path(sysconfig.get_path(key)).iterdir():
            ours = path.name.startswith(("elastic_export", "__editable__", "_elastic_export"))
            if not ours and not (borrowed / path.name).exists():
                (borrowed / path.name).symlink_to(path)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(_run(python, "-c", code, cwd=folder).strip())
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    return python


def _install(python: Path, *what: object) -> None:
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    _run(*pip, "--no-build-isolation", *what, cwd=python.parent)


def _check(python: Path, elsewhere: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(_run(python, "-I", "-c", PROBE, cwd=elsewhere))
    for kind in SHIPPED:
        folder = ROOT / kind / ("recipes" if kind == "benchmarks" else "")
        names = {path.stem for path in folder.glob("*.yaml")}
        loaded = found[kind]
        assert isinstance(loaded, dict)
        assert set(loaded) == names
        assert names
        assert found[f"{kind} imports"] is False
    entry = python.with_name("elastic-export")
    assert _run(entry, "--version", cwd=elsewhere).startswith("elastic-export ")
    listed = json.loads(_run(entry, "targets", "list", "--json", cwd=elsewhere))
    assert {target["name"] for target in listed["targets"]} == set(found["targets"])  # type: ignore[call-overload]
    return found


def test_the_wheel_holds_the_package_the_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith("/METADATA"))).decode()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"elastic_export"}
    shipped = {n for n in names if n.startswith("elastic_export/_shipped/")}
    expected = {
        f"elastic_export/_shipped/{path.relative_to(ROOT).as_posix()}"
        for kind in SHIPPED
        for path in (ROOT / kind).rglob("*.yaml")
    }
    assert shipped == expected
    modules = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "elastic_export").rglob("*.py")
    }
    assert {n for n in names if n.endswith(".py")} == modules
    data = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "elastic_export").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert "elastic_export/py.typed" in data
    assert data <= set(names)
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.10" in metadata


def test_the_wheel_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    python = _environment(tmp_path)
    _install(python, wheel)
    found = _check(python, tmp_path)
    assert "_shipped" in str(found["targets at"])
    assert str(found["package"]).startswith(str(tmp_path))


def test_an_editable_install_works_and_reads_the_checkout(checkout: Path, tmp_path: Path) -> None:
    python = _environment(tmp_path)
    _install(python, "--editable", checkout)
    found = _check(python, tmp_path)
    assert found["targets at"] == str(checkout / "targets")
    assert str(found["package"]).startswith(str(checkout))
