"""Which versions made an artifact, read from package metadata without importing the packages."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

import elastic_export

__all__ = ["TOOLS", "version", "versions"]

TOOLS = (
    "torch",
    "timm",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnx-ir",
    "nvidia-modelopt",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
    "scikit-learn",
)


def version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None where it is absent."""
    if distribution == "elastic-export":
        # The code that runs decides: an editable install's metadata may be older than it.
        return elastic_export.__version__
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions(distributions: Iterable[str] = TOOLS) -> dict[str, str]:
    """Return the versions of elastic-export, Python and the given distributions.

    What is not installed is left out.
    """
    found = {"elastic-export": elastic_export.__version__, "python": platform.python_version()}
    for name in distributions:
        installed = version(name)
        if installed is not None:
            found[name] = installed
    return found
