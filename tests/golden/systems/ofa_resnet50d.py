"""Once-for-all ResNet50D: a supernet and a specialized folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from case import Case
from ofa_cases import ofa_cases


def cases(folder: Path, fixture: Mapping[str, Any]) -> Iterator[Case]:
    """Every arch with official logits."""
    names = ("width_mult_list", "expand_ratio_list", "depth_list")
    settings = {name: fixture["model"][name] for name in names if name in fixture["model"]}
    for arch in fixture["archs"].values():
        stem, *stages = arch["config"]["d"]
        # Any number but the largest leaves the stem's residual block out.
        kept = stem == max(settings["depth_list"])
        arch["config"]["d"] = [stem if kept else min(settings["depth_list"]), *stages]
    yield from ofa_cases(folder, fixture, settings, products=False)
