"""The rules that docs/architecture.md states, held against the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("elastic_export", "benchmarks", "targets", "calibrate", "docs", "tests", ".ci")
MOST_LINES = 400
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _files(*suffixes: str) -> list[Path]:
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += (ROOT / folder).rglob("*")
    return sorted(
        path
        for path in found
        if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts
    )


PYTHON = _files(".py")
PACKAGE = [path for path in PYTHON if path.is_relative_to(ROOT / "elastic_export")]


def test_imports_go_one_way() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_every_room_is_in_the_import_contract() -> None:
    rooms = {path.parent.name for path in (ROOT / "elastic_export").glob("*/__init__.py")}
    contract = (ROOT / "pyproject.toml").read_text().partition("layers = [")[2].partition("]")[0]
    assert rooms <= set(re.findall(r"\w+", contract))


def test_no_file_is_long() -> None:
    long = {_name(path): len(path.read_text().splitlines()) for path in PYTHON}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}


def test_every_file_is_named_after_what_it_does() -> None:
    assert [_name(path) for path in PYTHON if path.stem in VAGUE] == []


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("unfinished business", r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b"),
        ("paths of one machine", r"/(?:ro" r"ot|wo" r"rk)/"),
        ("a package index", r"pypi\." r"org/simple|--index-" r"url"),
        ("click, which Typer may drop", r"^\s*(?:import|from) (?:cli" r"ck|typer\._)"),
    ],
)
def test_nothing_speaks_of(what: str, pattern: str) -> None:
    found = [
        f"{_name(path)}:{number}"
        for path in _files(".py", ".md", ".yaml", ".toml", ".cfg", "")
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert found == [], what


def _public(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the module and each public class and function in it that is not overridden."""
    yield tree
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                        yield inner


def test_everything_public_is_explained() -> None:
    silent = []
    for path in PACKAGE:
        if not path.read_text().strip():
            continue
        for node in _public(ast.parse(path.read_text())):
            documented = ast.get_docstring(node)  # type: ignore[arg-type]
            overloaded = any("overload" in ast.dump(d) for d in getattr(node, "decorator_list", []))
            if not documented and not overloaded:
                silent.append(f"{_name(path)}: {getattr(node, 'name', 'module')}")
    assert silent == []


def test_everything_public_is_typed() -> None:
    untyped = [
        f"{_name(path)}: {node.name}"
        for path in PACKAGE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.returns is None
    ]
    assert untyped == []
