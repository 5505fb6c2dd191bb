"""Which fixture folders there are, and what each holds; driven by ``fixture.json`` alone."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from case import Case, Counted, read_fixture  # noqa: E402

KEPT = HERE / "fixtures"
SHARED = HERE.parents[2] / "shared" / "fixtures"
SYSTEMS = HERE / "systems"


def folders(given: Path | None) -> list[Path]:
    """Folders in the given directory, or those kept here and, where present, those beside."""
    roots = [given] if given else [KEPT, SHARED]
    found: dict[str, Path] = {}
    for root in roots:
        for file in sorted(root.glob("*/fixture.json")):
            found.setdefault(file.parent.name, file.parent)
    return list(found.values())


@lru_cache
def system_of(folder: Path) -> ModuleType | None:
    """The module in ``systems`` for a folder's family; the longest name that begins it."""
    family = read_fixture(folder)["family"]
    names = [file.stem for file in SYSTEMS.glob("*.py") if family.startswith(file.stem)]
    if not names:
        return None
    name = max(names, key=len)
    spec = importlib.util.spec_from_file_location(f"golden_{name}", SYSTEMS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases(folder: Path) -> Iterator[Case]:
    """Every descendant with official logits."""
    module = system_of(folder)
    if module is not None:
        yield from module.cases(folder, read_fixture(folder))


def counted(folder: Path) -> Iterator[Counted]:
    """Every configuration of which only the costs are known."""
    module = system_of(folder)
    if module is not None and hasattr(module, "counted"):
        yield from module.counted(folder, read_fixture(folder))
