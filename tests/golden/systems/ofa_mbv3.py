"""Once-for-all MobileNetV3: supernets with new and old key names, specialized folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from case import Case
from ofa_cases import ofa_cases


def cases(folder: Path, fixture: Mapping[str, Any]) -> Iterator[Case]:
    """Every arch with official logits."""
    names = ("width_mult", "ks_list", "expand_ratio_list", "depth_list")
    settings = {name: fixture["model"][name] for name in names if name in fixture["model"]}
    yield from ofa_cases(folder, fixture, settings, products=True)
