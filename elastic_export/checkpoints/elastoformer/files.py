"""Which files of a folder make one Elastoformer experiment.

The level's number is in the names of the files and nowhere else, so this system alone is found by
names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from elastic_export.errors import UserError, did_you_mean

__all__ = ["Experiment", "find_experiment", "has_levels", "is_level", "is_metadata"]

_ENDING = r"\.(?:pth|pt|bin|safetensors)"
_LEVEL = re.compile(
    rf".*?(?:Core|Rebuilt)_Level_(?P<level>\d+)_state_dict_(?P<name>.+){_ENDING}", re.DOTALL
)
_METADATA = re.compile(rf"(?P<name>.+)_pruning_metadata_Level_(?P<level>\d+){_ENDING}", re.DOTALL)
_NAMES = (
    "..._Core_Level_1_state_dict_NAME.pth, ..._Rebuilt_Level_2_state_dict_NAME.pth and "
    "NAME_pruning_metadata_Level_2.pth"
)


@dataclass
class Experiment:
    """The files of one experiment, by level."""

    name: str
    levels: dict[int, Path] = field(default_factory=dict)
    metadata: dict[int, Path] = field(default_factory=dict)


def is_level(path: Path) -> bool:
    """Whether a file is named like a level's state dict."""
    return _LEVEL.fullmatch(path.name) is not None


def is_metadata(path: Path) -> bool:
    """Whether a file is named like pruning metadata."""
    return _METADATA.fullmatch(path.name) is not None


def find_experiment(path: Path, wanted: str | None) -> Experiment:
    """Collect the files of one experiment.

    Args:
        path: The folder that holds them or whose folders do, or one of the files.
        wanted: The experiment's name, where a folder has several.

    Returns:
        Levels from 1 on without a gap, with the metadata of all but the first; or a single level
        without metadata.

    Raises:
        UserError: There is none, there are several, or a file is missing.
    """
    if not path.exists():
        raise UserError(f"There is no file or folder {path}.", "Check the path of the checkpoint.")
    if path.is_dir():
        chosen = _choose(path, _collect(path), wanted)
    else:
        match = _LEVEL.fullmatch(path.name) or _METADATA.fullmatch(path.name)
        if match is None:
            return Experiment(path.stem, {1: path})
        if wanted not in (None, match["name"]):
            raise UserError(
                f"{path} is of experiment {match['name']}, not {wanted}.",
                "Leave experiment out, or give a file of that one.",
            )
        chosen = _choose(path, _collect(path.parent), match["name"])
        if not chosen.metadata and is_level(path):
            # Nothing says how its channels lie in the others', so the file is read by itself.
            return Experiment(chosen.name, {int(match["level"]): path})
    if len(chosen.levels) > 1 or chosen.metadata:
        _check_complete(chosen, path)
    return chosen


def has_levels(folder: Path) -> bool:
    """Whether a folder, or one directly in it, holds a level."""
    try:
        return any(is_level(file) for place in _places(folder) for file in place)
    except OSError:
        return False


def _collect(folder: Path) -> dict[str, Experiment]:
    """All experiments; subfolders, where the system keeps metadata, give what is not beside."""
    try:
        here, *below = _places(folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read: {error.strerror}.", "Check its permissions."
        ) from error
    found: dict[str, Experiment] = {}
    _add(found, here, folder)
    deeper: dict[str, Experiment] = {}
    # What lies beside counts; a folder below may hold another run of the same name.
    _add(deeper, [file for place in below for file in place if _wanted(file, found)], folder)
    for name, experiment in deeper.items():
        into = found.setdefault(name, Experiment(name))
        into.levels |= experiment.levels
        into.metadata |= experiment.metadata
    return found


def _wanted(file: Path, found: dict[str, Experiment]) -> bool:
    match = _LEVEL.fullmatch(file.name) or _METADATA.fullmatch(file.name)
    if match is None or match["name"] not in found:
        return match is not None
    known = found[match["name"]]
    return not (known.levels if is_level(file) else known.metadata)


def _add(found: dict[str, Experiment], files: list[Path], folder: Path) -> None:
    for file in files:
        match = _LEVEL.fullmatch(file.name) or _METADATA.fullmatch(file.name)
        if match is None:
            continue
        name, level = match["name"], int(match["level"])
        experiment = found.setdefault(name, Experiment(name))
        kind = experiment.levels if is_level(file) else experiment.metadata
        if level in kind:
            raise UserError(
                f"{folder} holds level {level} of {name} twice: {kind[level]} and {file}.",
                "Leave one of them in the folder.",
            )
        kind[level] = file


def _places(folder: Path) -> list[list[Path]]:
    """The files of a folder, then those of each folder in it."""
    entries = sorted(folder.iterdir())
    folders = [folder, *(entry for entry in entries if entry.is_dir())]
    return [sorted(file for file in place.iterdir() if file.is_file()) for place in folders]


def _choose(path: Path, found: dict[str, Experiment], wanted: str | None) -> Experiment:
    names = [name for name, experiment in found.items() if experiment.levels]
    if not names:
        raise UserError(
            f"{path} holds no levels of an Elastoformer experiment.",
            f"The files are told by their names: {_NAMES}.",
        )
    if wanted is not None and wanted not in names:
        raise UserError(
            f'{path} holds no levels of an experiment "{wanted}".', did_you_mean(wanted, names)
        )
    if wanted is None and len(names) > 1:
        raise UserError(
            f"{path} holds {len(names)} experiments: {', '.join(names)}.",
            f"Name one with model.config.experiment, or --set experiment={names[0]}.",
        )
    return found[wanted or names[0]]


def _check_complete(experiment: Experiment, path: Path) -> None:
    last = max(*experiment.levels, *experiment.metadata)
    for kind, needed, word in (
        (experiment.levels, range(1, last + 1), "state dict"),
        (experiment.metadata, range(2, last + 1), "pruning metadata"),
    ):
        missing = [level for level in needed if level not in kind]
        if missing:
            raise UserError(
                f"{path} lacks the {word} of level {', '.join(map(str, missing))} of experiment "
                f"{experiment.name}.",
                f"Put it beside the others, named as the system does: {_NAMES}. A level alone, "
                "without any metadata, is read as a single network.",
            )
    strange = sorted({*experiment.levels, *experiment.metadata} - set(range(1, last + 1)))
    if strange or 1 in experiment.metadata:
        raise UserError(
            f"{path} has pruning metadata or a state dict of level {[*strange, 1][0]}, which an "
            "experiment does not have.",
            "Levels count from 1, and metadata from 2; rename or remove the file.",
        )
