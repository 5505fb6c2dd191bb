"""Find the reviewed data that ships with the package: targets, calibration recipes, benchmarks.

The data lives in folders of its own at the top of the repository. ``setup.py`` maps them into the
wheel as ``elastic_export/_shipped``; in a checkout (and an editable install) they are read where
they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from elastic_export.errors import UserError, did_you_mean

__all__ = ["Kind", "find", "names", "shipped", "shipped_file"]

Kind = Literal["targets", "calibrate", "benchmarks"]

_YAML_FOLDER: dict[Kind, str] = {"targets": "", "calibrate": "", "benchmarks": "recipes"}
_NOUN: dict[Kind, str] = {
    "targets": "target",
    "calibrate": "calibration recipe",
    "benchmarks": "recipe",
}


def shipped(kind: Kind) -> Path:
    """Return the folder of one kind of shipped data.

    Raises:
        UserError: When neither the installed data nor a checkout holds it.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "_shipped" / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise UserError(
        f'The data folder "{kind}" that belongs to elastic-export is missing.',
        "Install elastic-export again with pip.",
    )


def names(kind: Kind) -> list[str]:
    """Return the sorted names of the shipped files of one kind, without their suffix."""
    folder = shipped(kind) / _YAML_FOLDER[kind]
    return sorted(path.stem for path in folder.glob("*.yaml"))


def shipped_file(kind: Kind, name: str) -> Path:
    """Return the shipped file of that name.

    Raises:
        UserError: When there is none; the nearest name is suggested.
    """
    known = names(kind)
    if name not in known:
        raise UserError(f'There is no {_NOUN[kind]} "{name}".', did_you_mean(name, known))
    return shipped(kind) / _YAML_FOLDER[kind] / f"{name}.yaml"


def find(kind: Kind, name: str) -> Path:
    """Return the file that ``name`` stands for; a user's own file wins over a shipped name.

    Args:
        kind: Where to look for shipped files.
        name: A path, or the name of a shipped file without its suffix.

    Raises:
        UserError: When nothing of that name exists; the nearest shipped name is suggested.
    """
    own = Path(name).expanduser()
    if own.is_file():
        return own
    noun = _NOUN[kind]
    if own.is_dir():
        raise UserError(f"{name} is a folder, not a {noun}.", "Give the YAML file inside it.")
    if own.suffix in (".yaml", ".yml", ".json") or len(own.parts) > 1:
        raise UserError(
            f"The {noun} file {name} does not exist.",
            f"Check the path, or use a shipped {noun}: {', '.join(names(kind))}.",
        )
    return shipped_file(kind, name)
