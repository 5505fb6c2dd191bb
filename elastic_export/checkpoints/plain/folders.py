"""Checkpoints as Hugging Face's hub keeps them: ``config.json`` beside one or several files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elastic_export.checkpoints.reader import Source
from elastic_export.checkpoints.safe import LoadedCheckpoint, StateDict, load_tensors, state_dict_of
from elastic_export.errors import UserError

__all__ = ["hub_config", "load_hub"]

_CONFIG = "config.json"
_FILES = ("model.safetensors", "pytorch_model.bin")


def hub_config(path: Path) -> dict[str, Any]:
    """What ``config.json`` in a folder, or beside a file, says; empty if there is none to read."""
    place = (path if path.is_dir() else path.parent) / _CONFIG
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def load_hub(source: Source) -> StateDict:
    """The tensors of a file, or of a folder with one file or an index of several.

    Raises:
        UserError: The folder holds no checkpoint, or a part is missing.
    """
    if not source.path.is_dir():
        return state_dict_of(source.loaded)
    for name in _FILES:
        if (source.path / name).is_file():
            return state_dict_of(load_tensors(source.path / name))
        if (source.path / f"{name}.index.json").is_file():
            return _parts(source.path, source.path / f"{name}.index.json")
    raise UserError(
        f"The folder {source.path} holds neither {_FILES[0]} nor {_FILES[1]}.",
        "Give the checkpoint file itself.",
    )


def _parts(folder: Path, index: Path) -> StateDict:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{index} is not the index of a checkpoint in parts.", "Download it again."
        ) from error
    names = {name for name in places.values() if isinstance(name, str)} if places else set()
    if not isinstance(places, Mapping) or len(names) == 0:
        raise UserError(f"{index} lists no parts.", "Download it again.")
    content: dict[str, Any] = {}
    for name in sorted(names):
        if Path(name).name != name:
            raise UserError(f"{index} names {name}, outside its folder.", "Do not use this file.")
        content |= state_dict_of(load_tensors(folder / name)).tensors
    lost = sorted(places.keys() - content.keys())
    if lost:
        raise UserError(
            f"{len(lost)} tensors that {index} lists are in no part, {lost[0]} among them.",
            "Download the parts again.",
        )
    return state_dict_of(LoadedCheckpoint(index, "parts", content))
