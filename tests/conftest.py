"""``--fixtures DIR``: golden tests on folders that are kept elsewhere.

pytest has a switch of that name, which lists its fixtures and takes no value. Followed by a
directory of golden folders it means those; alone it keeps pytest's own meaning.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# The tests' networks are tiny: on two busy threads their operators take up to twenty times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Take the directory out of what is to be collected."""
    if not config.option.showfixtures:
        return
    given = [arg for arg in config.args if _holds_folders(Path(arg))]
    if not given:
        named = [arg for arg in config.args if "golden" not in arg]
        if named and "golden" in " ".join(config.args):
            raise pytest.UsageError(
                f"{named[0]} holds no golden fixtures: no folder in it has a fixture.json"
            )
        return
    config.option.showfixtures = False
    config.option.golden_fixtures = Path(given[0]).resolve()
    config.args[:] = [arg for arg in config.args if arg not in given] or ["tests/golden"]


def _holds_folders(path: Path) -> bool:
    return path.is_dir() and any(path.glob("*/fixture.json"))
