"""Golden fixtures become test parameters; a table at the end tells the largest errors."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from case import Case
from folders import KEPT, cases, counted, folders, system_of

ERRORS: dict[str, dict[str, float]] = defaultdict(dict)
"""Fixture folder to check to largest relative error."""


@pytest.fixture
def note_error():
    """Remember the largest error of a check for the table."""

    def note(folder: Path, check: str, error: float) -> None:
        ERRORS[folder.name][check] = max(error, ERRORS[folder.name].get(check, 0.0))

    return note


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test the folders and cases it asks for."""
    given: Path | None = getattr(metafunc.config.option, "golden_fixtures", None)
    found = folders(given)
    if "case" in metafunc.fixturenames:
        few = "through_onnx" in metafunc.fixturenames and not given
        rows = []
        for folder in found:
            group = list(cases(folder))
            # The whole table is for `--fixtures`; the daily suite takes the first and last of the
            # folders kept here, and one of each other.
            if few and group:
                group = [group[0], group[-1]] if folder.parent == KEPT else [group[-1]]
            rows += [(folder, case) for case in group]
        ids = [f"{folder.name}-{case.name}" for folder, case in rows]
        metafunc.parametrize(("folder", "case"), rows, ids=ids)
    elif "cost" in metafunc.fixturenames:
        pairs = [(folder, cost) for folder in found for cost in counted(folder)]
        ids = [f"{folder.name}-{cost.name}" for folder, cost in pairs]
        metafunc.parametrize(("folder", "cost"), pairs, ids=ids)
    elif "folder" in metafunc.fixturenames:
        metafunc.parametrize("folder", found, ids=[folder.name for folder in found])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put all tests of a case together, so that it is imported and extracted once."""
    places: list[int] = []
    keys: list[tuple[Path, str]] = []
    for place, item in enumerate(items):
        given = getattr(getattr(item, "callspec", None), "params", {})
        if isinstance(case := given.get("case"), Case):
            places.append(place)
            keys.append((given["folder"], case.name))
    order = {key: rank for rank, key in enumerate(dict.fromkeys(keys))}
    moved = [items[places[i]] for i in sorted(range(len(keys)), key=lambda i: order[keys[i]])]
    for place, item in zip(places, moved, strict=True):
        items[place] = item


@pytest.fixture
def through_onnx() -> bool:
    """Marks a test that exports, which takes seconds a case."""
    return True


@pytest.fixture(autouse=True)
def _known_system(request: pytest.FixtureRequest) -> None:
    if "folder" in request.fixturenames:
        folder = request.getfixturevalue("folder")
        assert system_of(folder) is not None, f"no module in tests/golden/systems for {folder.name}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table fixture x check."""
    if not ERRORS:
        return
    checks = sorted({check for row in ERRORS.values() for check in row})
    terminalreporter.section("largest relative error of each golden fixture")
    terminalreporter.line(f"{'':22}" + "".join(f"{check:>14}" for check in checks))
    for name, row in sorted(ERRORS.items()):
        cells = (f"{row[check]:14.1e}" if check in row else f"{'-':>14}" for check in checks)
        terminalreporter.line(f"{name:22}" + "".join(cells))
