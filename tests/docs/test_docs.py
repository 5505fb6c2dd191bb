"""What the documents promise: every command parses, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from elastic_export.cli.app import app
from elastic_export.config.problems import validated
from elastic_export.config.reading import parse_yaml
from elastic_export.config.recipe import Recipe

ROOT = Path(__file__).parents[2]
DOCS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "targets/*.md", "calibrate/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def _id(value: object) -> str:
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else str(value)[:60]


def _blocks(kind: str) -> Iterator[tuple[Path, str]]:
    for path in DOCS:
        for language, text in BLOCK.findall(path.read_text()):
            if language == kind:
                yield path, text


def _lines(path: Path) -> Iterator[str]:
    """Yield code lines and inline code; a backslash at the end of a line joins the next."""
    text = path.read_text()
    for _, block in BLOCK.findall(text):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))


def _commands() -> Iterator[tuple[Path, str]]:
    for path in DOCS:
        for line in _lines(path):
            for part in re.split(r"&&|;|\|", line):
                if re.match(r"\s*(?:\$ )?(?:\S*/)?elastic-export\s+[a-z-]", part):
                    yield path, part.strip()


@pytest.mark.parametrize(("path", "line"), list(_commands()), ids=_id)
def test_every_command_in_the_documents_parses(path: Path, line: str) -> None:
    words = shlex.split(line.removeprefix("$ "), comments=True)
    arguments = [word for word in words[1:] if word != "..."]
    # --help is answered after the options were read and before anything is run.
    told = CliRunner().invoke(app, [*arguments, "--help"])
    assert told.exit_code == 0, told.output
    assert "Usage:" in told.output


@pytest.mark.parametrize("path", DOCS, ids=_id)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    for link in LINK.findall(path.read_text()):
        target, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        found = path.parent / target if target else path
        assert found.exists(), f"{path.name}: {link}"
        if anchor and found.suffix == ".md":
            titles = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            assert anchor in {_anchor(title) for title in titles}, f"{path.name}: {link}"


@pytest.mark.parametrize("path", DOCS, ids=_id)
def test_every_script_that_is_named_exists(path: Path) -> None:
    for line in _lines(path):
        for script in re.findall(r"python3? ((?:benchmarks|tests)/\S+\.py)", line):
            if "NAME" not in script:
                assert (ROOT / script).is_file(), line


@pytest.mark.parametrize(("path", "text"), list(_blocks("yaml")), ids=_id)
def test_every_recipe_in_the_documents_is_valid(path: Path, text: str) -> None:
    values = parse_yaml(text, f"a block of {path.name}")
    if isinstance(values, dict) and "model" in values:
        validated(Recipe, values, f"a recipe in {path.name}", "Correct it there.")


def test_the_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    install = "python -m venv .venv && .venv/bin/pip install . && .venv/bin/elastic-export build"
    test = ".venv/bin/pip install '.[test]' && .venv/bin/python -m pytest -m \"not gpu\""
    assert install in readme
    assert test in readme
    ci = (ROOT / ".ci" / "run").read_text()
    assert test in ci


def _anchor(title: str) -> str:
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", title.lower()))
    return kept.strip().replace(" ", "-")
