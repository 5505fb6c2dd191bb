"""A tiny real network, and commands on it inside this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from elastic_export.checkpoints import save_supernet
from elastic_export.cli.app import app
from elastic_export.elastic import Supernet
from elastic_export.families import get_family
from elastic_export.families.registry import family_config

__all__ = ["call", "make_small"]

_SETTINGS = {
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
    family = get_family("vit")
    config = family_config(family, {**_SETTINGS, **settings})
    save_supernet(Supernet.create(family, config, seed=0), folder / "net.safetensors")
    return Path(
        call("extract", folder / "net.safetensors", "--spec", "min", "--out", folder)["path"]
    )


def call(command: str, *args: object, code: int = 0) -> Any:
    """Run a command; its JSON document."""
    told = CliRunner().invoke(app, [command, *map(str, args), "--json"])
    assert told.exit_code == code, told.output
    return json.loads(told.stdout)
