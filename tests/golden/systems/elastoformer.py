"""Elastoformer: a folder with nested levels and their metadata, and the network before pruning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from case import Case

COUNTERS = {"macs_torch_pruning": "macs", "params": "params"}


def cases(folder: Path, fixture: Mapping[str, Any]) -> Iterator[Case]:
    """Every level, then the base."""
    levels: Mapping[str, Mapping[str, Any]] = fixture["levels"]
    expected = fixture["tensors"]
    heads = [level.get("num_heads_used_by_official_model") for level in levels.values()]
    config: dict[str, Any] = {"heads": heads} if all(heads) else {}
    base: dict[str, Any] = {}
    if "num_heads" in fixture.get("base_model", {}):
        base["heads"] = fixture["base_model"]["num_heads"]
    elif "input" in expected:
        # Files of CNNs do not tell the size of the images.
        config["image_size"] = base["image_size"] = expected["input"]["shape"][-1]
    for name, level in levels.items():
        yield Case(
            name,
            folder,
            config,
            {"level": int(name.removeprefix("level"))},
            "input",
            f"{name}.logits",
            official={ours: level[theirs] for theirs, ours in COUNTERS.items() if theirs in level},
            params=level.get("params"),
        )
    file = folder / "base_state_dict.pth"
    if "base.logits" in expected and file.is_file():
        yield Case("base", file, base, "max", "input", "base.logits")
