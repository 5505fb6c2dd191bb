"""What commands read from their arguments: data sets, and the settings of a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elastic_export.config.recipe import DataConfig

__all__ = ["data_of", "settings_of"]


def data_of(asked: str | None) -> DataConfig | None:
    """The data set that ``--data`` names.

    Raises:
        UserError: It is neither a folder nor a known name.
    """
    from elastic_export.config.recipe import DataConfig, SearchSplit
    from elastic_export.errors import UserError

    if asked is None:
        return None
    # Nothing is searched here; a few held-out images serve to compare files with torch.
    held = SearchSplit(per_class=2)
    if Path(asked).is_dir():
        return DataConfig(dataset="imagefolder", root=asked, search_split=held)
    if asked == "digits":
        return DataConfig(dataset="digits", search_split=held)
    raise UserError(
        f"--data {asked} is neither a folder nor the name of a data set.",
        "Give digits, or a folder that holds train/ and val/.",
    )


def settings_of(file: Path | None, overrides: Sequence[str] | None) -> dict[str, Any]:
    """The settings that ``--config`` and ``--set`` give for a checkpoint.

    Raises:
        UserError: The file cannot be read, or an override is not ``KEY=VALUE``.
    """
    from elastic_export.config.overrides import apply_overrides
    from elastic_export.config.reading import read_settings

    return apply_overrides(read_settings(file) if file else {}, overrides or ())
