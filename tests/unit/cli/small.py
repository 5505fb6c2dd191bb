"""A tiny real network, and commands on it inside this process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from elastic_export.checkpoints import save_supernet
from elastic_export.cli.app import app
from elastic_export.elastic import Supernet
from elastic_export.families import get_family
from elastic_export.families.registry import family_config

__all__ = ["SETTINGS", "call", "make_small", "save_network"]

SETTINGS = {
    "image_size": 8,
    "patch_size": 4,
    "in_chans": 1,
    "num_classes": 10,
    "width": [16, 32],
    "depth": [1],
    "heads": [1],
    "head_dim": 16,
    "mlp_ratio": [2],
}


def make_small(folder: Path, **settings: Any) -> Path:
    """Extract the smallest descendant of an untrained supernet."""
    net = save_network(folder / "net.safetensors", "vit", {**SETTINGS, **settings})
    return Path(call("extract", net, "--spec", "min", "--out", folder)["path"])


def save_network(path: Path, name: str, settings: Mapping[str, Any]) -> Path:
    """Write an untrained supernet of a family; the path."""
    family = get_family(name)
    save_supernet(Supernet.create(family, family_config(family, settings), seed=0), path)
    return path


def call(*args: object, code: int = 0) -> Any:
    """Run a command; its JSON document."""
    told = CliRunner().invoke(app, [*map(str, args), "--json"])
    assert told.exit_code == code, told.output
    return json.loads(told.stdout)
