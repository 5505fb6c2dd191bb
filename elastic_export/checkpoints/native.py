"""Our own files: one safetensors file each for a supernet and for a descendant.

The file's metadata holds one JSON text that says what it is, so a single file is complete and
nothing in it can run code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from elastic_export.artifacts.files import drafted
from elastic_export.checkpoints.pickles.inert import printable
from elastic_export.checkpoints.safe import load_tensors
from elastic_export.config.base import Schema
from elastic_export.elastic import Descendant, Supernet
from elastic_export.elastic.fold import fold_batchnorm
from elastic_export.errors import UserError
from elastic_export.families.registry import family_config, get_family
from elastic_export.sparsity import check_patterns

__all__ = [
    "load_descendant",
    "load_supernet",
    "read_label",
    "save_descendant",
    "save_supernet",
]

_KEY = "elastic_export"
_VERSION = 1
_FIELDS: dict[str, dict[str, type]] = {
    "supernet": {"family": str, "config": dict},
    "descendant": {
        "family": str,
        "config": dict,
        "genes": dict,
        "spec_id": str,
        "folded": bool,
        "patterns": dict,
    },
}
"""What the text of each kind of file holds."""


def save_supernet(supernet: Supernet, path: Path) -> None:
    """Write a supernet; the file appears whole or not at all."""
    label = {
        "kind": "supernet",
        "family": supernet.family.name,
        "config": supernet.config.model_dump(mode="json"),
    }
    _write(path, supernet.state_dict(), label)


def save_descendant(descendant: Descendant, path: Path) -> None:
    """Write a descendant; the file appears whole or not at all."""
    label = {
        "kind": "descendant",
        "family": descendant.family,
        "config": descendant.config,
        "genes": descendant.genes,
        "spec_id": descendant.spec_id,
        "folded": descendant.folded,
        "patterns": descendant.patterns,
    }
    _write(path, descendant.module.state_dict(), label)


def load_supernet(path: Path) -> Supernet:
    """Read what :func:`save_supernet` wrote.

    Raises:
        UserError: The file is missing, damaged, or something else.
    """
    label, state = _read(path, "supernet")
    family = get_family(label["family"])
    return Supernet.of_state(family, family_config(family, label["config"]), state)


def load_descendant(path: Path) -> Descendant:
    """Read what :func:`save_descendant` wrote; the module is in eval mode.

    Raises:
        UserError: The file is missing, damaged, or something else.
        CheckFailed: A weight does not hold the pattern the file claims.
    """
    label, state = _read(path, "descendant")
    family = get_family(label["family"])
    config: Schema = family_config(family, label["config"])
    spec = family.space(config).canonical(label["genes"])
    module = family.skeleton(config, spec)
    if label["folded"]:
        fold_batchnorm(module, family.fold_pairs(module))
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"The tensors of {path} do not fit the network it describes.",
            "Extract the descendant again.",
        ) from error
    check_patterns(state, label["patterns"])
    module.requires_grad_(True).eval()
    return Descendant(
        family=family.name,
        config=label["config"],
        genes=label["genes"],
        spec_id=label["spec_id"],
        module=module,
        folded=label["folded"],
        patterns=label["patterns"],
    )


def read_label(path: Path) -> dict[str, Any] | None:
    """The JSON a file of ours carries, or None for a safetensors file of somebody else.

    Raises:
        UserError: The file cannot be read as safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}.", "Check the path.") from error
    except Exception as error:  # safetensors raises its own type, and OSError for folders
        raise UserError(
            f"{path} is not a complete safetensors file ({printable(str(error))}).",
            "Copy it again if it was cut off; a torch checkpoint is made one by extract.",
        ) from error
    if text is None:
        return None
    try:
        label = json.loads(text)
    except (ValueError, RecursionError):
        label = None
    if not isinstance(label, dict):
        raise _damaged(path)
    if label.get("version") != _VERSION:
        raise UserError(
            f"{path} was written in version {printable(str(label.get('version')))} of the format; "
            f"this tool reads version {_VERSION}.",
            "Update elastic-export.",
        )
    wanted = _FIELDS.get(str(label.get("kind")))
    if wanted is None or any(type(label.get(name)) is not kind for name, kind in wanted.items()):
        raise _damaged(path)
    return label


def _damaged(path: Path) -> UserError:
    return UserError(
        f"What {path} says about itself is damaged.", "Write the file again, with build or extract."
    )


def _write(path: Path, state: dict[str, torch.Tensor], label: dict[str, Any]) -> None:
    text = json.dumps({"version": _VERSION, **label}, sort_keys=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with drafted(path) as draft:
        # From the tensors' own memory: joined in memory first, they would be there twice.
        save_file(_apart(tensors), draft, metadata={_KEY: text})


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy those that lie in the same memory as another; the format keeps each by itself."""
    end = -1
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        start = tensor.data_ptr()
        if tensor.numel() and start < end:
            tensors[name] = tensor.clone()
        end = max(end, start + tensor.nbytes)
    return tensors


def _read(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, where a {kind} is needed, which is one file.",
            "Give the .safetensors file that extract or build wrote; bench and compile are what "
            "take bundles.",
        )
    label = read_label(path)
    if label is None or label["kind"] != kind:
        found = "no label of this tool" if label is None else f"a {label['kind']}"
        raise UserError(
            f"{path} holds {found}, where a {kind} is needed.",
            "Run extract on a supernet or checkpoint to get a descendant; inspect tells what a "
            "file is.",
        )
    return label, dict(load_tensors(path).content)
