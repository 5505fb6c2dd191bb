"""Networks that were published by name, in their systems' own notation; data files beside this."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

__all__ = ["published"]


@lru_cache(maxsize=32)
def published(name: str) -> dict[str, Any]:
    """The published networks of a family.

    Args:
        name: The family, which is the name of its data file.

    Returns:
        Name of the network to what the family writes it as; empty where nothing was published.
    """
    file = resources.files(__package__) / f"{name}.yaml"
    if not file.is_file():
        return {}
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))
