"""Find a reader by name or by what a file holds; readers register themselves."""

from __future__ import annotations

from elastic_export.checkpoints.reader import Reader, Source

__all__ = ["readers", "register_reader", "who_claims"]

_READERS: dict[str, Reader] = {}
_ORDER = (
    "alphanet",
    "autoformer",
    "elasticvit",
    "elastoformer",
    "sparsifyvit",
    "svite",
    "elsa",
    "ofa",
    "huggingface",
    "torchvision",
    "timm-model",
    "timm",
)
"""Who is asked first: the most particular marks before names that others have too.

Files of SparsifyViT's later revision order their layers as ELSA's do, and anything may look like
timm's.
"""


def register_reader(reader: type[Reader]) -> type[Reader]:
    """Class decorator: make one instance of the reader known under its name."""
    _READERS[reader.name] = reader()
    return reader


def readers() -> dict[str, Reader]:
    """All readers by name, in the order in which they are asked."""
    from elastic_export.checkpoints import (  # noqa: F401 - they register themselves
        alphanet,
        autoformer,
        elasticvit,
        elastoformer,
        elsa,
        ofa,
        plain,
        sparsifyvit,
        svite,
    )

    return {name: _READERS[name] for name in _ORDER}


def who_claims(source: Source) -> Reader | None:
    """The first reader that knows the file."""
    return next((reader for reader in readers().values() if reader.claims(source)), None)
