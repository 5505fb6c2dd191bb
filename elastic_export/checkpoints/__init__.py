"""Readers of checkpoints: our own files, and foreign formats one file each."""

from elastic_export.checkpoints.native import (
    load_descendant,
    load_supernet,
    save_descendant,
    save_supernet,
)
from elastic_export.checkpoints.source import Imported, import_supernet

__all__ = [
    "Imported",
    "import_supernet",
    "load_descendant",
    "load_supernet",
    "save_descendant",
    "save_supernet",
]
