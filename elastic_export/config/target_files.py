"""Find the profile a name stands for: a path, a file in the user's folder, or a shipped target."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path

from elastic_export import resources
from elastic_export.config.problems import validated
from elastic_export.config.reading import read_mapping
from elastic_export.config.target import Target
from elastic_export.errors import UserError, did_you_mean

__all__ = ["all_targets", "find_target", "user_folder"]

# Words that a device's full name may begin with and that tell nothing apart.
_MAKERS = {"nvidia", "geforce", "jetson", "tesla", "quadro"}


def user_folder() -> Path:
    """Return where a user's own profiles lie: ``$ELASTIC_EXPORT_TARGETS``, or in the XDG folder."""
    if own := os.environ.get("ELASTIC_EXPORT_TARGETS"):
        return Path(own).expanduser()
    config = os.environ.get("XDG_CONFIG_HOME")
    root = Path(config) if config else Path.home() / ".config"
    return root / "elastic-export" / "targets"


def all_targets() -> dict[str, Path]:
    """Return the file of each known target by name; a user's own wins over a shipped one."""
    found = {name: resources.shipped_file("targets", name) for name in resources.names("targets")}
    found |= {path.stem: path for path in user_folder().glob("*.yaml")}
    return dict(sorted(found.items()))


def find_target(name: str) -> Target:
    """Read the profile that ``name`` stands for.

    Args:
        name: A path; or a target's name or alias, in which case, spaces, underscores and the
            maker's name in front do not matter.

    Raises:
        UserError: When nothing of that name exists, when several devices share it, or when the
            file is not a profile.
    """
    path = Path(name).expanduser()
    if path.is_file() or path.suffix in (".yaml", ".yml", ".json") or len(path.parts) > 1:
        return _read(resources.find("targets", name))
    known = all_targets()
    if name in known:
        return _named(name, known[name])
    words = re.split(r"[\s_-]+", name.strip().lower())
    while words:
        if (plain := "-".join(words)) in known:
            return _named(plain, known[plain])
        if words[0] not in _MAKERS:
            break
        words = words[1:]
    targets = {key: _named(key, file) for key, file in known.items()}
    called = [key for key, target in targets.items() if plain in target.aliases]
    if len(called) == 1:
        return targets[called[0]]
    raise _several(name, called) if called else _unknown(name, targets)


def _named(name: str, path: Path) -> Target:
    target = _read(path)
    if target.name != name:
        raise UserError(
            f'The target {path} calls itself "{target.name}", so its identity would not find it.',
            f"Rename the file to {target.name}.yaml, or change its name to {name}.",
        )
    return target


def _read(path: Path) -> Target:
    try:
        state = path.stat()
    except OSError:  # what is wrong with it is told where it is read
        return _parsed(path, 0, 0)
    return _parsed(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _parsed(path: Path, changed_ns: int, size: int) -> Target:
    """Read a profile once for each state of its file: an alias is looked for in all of them."""
    where = f"the target {path}"
    return validated(Target, read_mapping(path, "target"), where, f"Correct it in {path}.")


def _unknown(name: str, targets: dict[str, Target]) -> UserError:
    """Say which devices a short name may mean; nobody should deploy for a guessed one."""
    words = _words(name) - {"nvidia"}
    if words == {"nano"}:
        return UserError(
            f'"{name}" may mean two devices: the Jetson Orin Nano and the Jetson Nano of 2019.',
            "Say which: orin-nano-8gb or orin-nano-4gb is the Orin Nano; jetson-nano is the board "
            "of 2019, which has neither INT8 nor 2:4.",
        )
    wanted = words - {"super"}
    fitting = [
        key for key, target in targets.items() if wanted and wanted <= _words(key, target.title)
    ]
    modes = [
        f"{key}@:{mode}"
        for key in fitting
        for mode in targets[key].power_modes
        if mode.endswith("SUPER")
    ]
    if "super" in words and modes:
        return UserError(
            f'There is no target "{name}": Super is a power mode of a device, not another device.',
            f"Name the mode: {' or '.join(modes)}.",
        )
    if len(fitting) > 1:
        return _several(name, fitting)
    hint = f'Did you mean "{fitting[0]}"?' if fitting else did_you_mean(name, list(targets))
    return UserError(f'There is no target "{name}".', hint)


def _several(name: str, meant: list[str]) -> UserError:
    return UserError(
        f'"{name}" may mean {len(meant)} devices: {", ".join(meant)}.',
        f'Say which; "elastic-export targets show {meant[0]}" tells about the first.',
    )


def _words(*texts: str) -> set[str]:
    words = {word for text in texts for word in re.split(r"[^a-z0-9]+", text.lower()) if word}
    # A memory size is written 16gb, 16 GB, or 16.
    return words | {word.removesuffix("gb") for word in words if word != "gb"}
