"""Tell a full disk and a folder that cannot be written from a bug, whichever library met it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elastic_export.errors import ElasticExportError, UserError

__all__ = ["explain", "explained"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
_FULL_WORDS = ("no space left on device", "disk quota exceeded", "os error 28", "os error 122")
_NEARLY_NOTHING = 1 << 20


def explain(error: BaseException, folder: Path) -> UserError | None:
    """Return the user's version of a failed write below ``folder``, or None for another failure.

    Rust and C++ writers report a full disk as an exception of their own, with or without the
    system's words; where they give none, the free space decides.
    """
    chain = _chain(error)
    for link in chain:
        if isinstance(link, OSError) and _is_closed(link, folder):
            return UserError(
                f"The folder {folder} cannot be written: {link.strerror}.",
                "Give a folder you may write to, with --out, --store or ELASTIC_EXPORT_HOME.",
            )
    if any(_says_full(link) for link in chain) or _is_full(error, folder):
        return UserError(
            f"The disk that holds {folder} is full.",
            'Free some space there, for example with "elastic-export cache prune", or choose '
            "another folder with --out or --store; finished stages are kept.",
        )
    return None


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Raise the user's version of every failed write below ``folder``."""
    try:
        yield
    except ElasticExportError:
        raise
    except Exception as error:
        friendly = explain(error, folder)
        if friendly is None:
            raise
        raise friendly from error


def _chain(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    text = str(error).lower()
    return any(words in text for words in _FULL_WORDS)


def _is_full(error: BaseException, folder: Path) -> bool:
    if not isinstance(error, RuntimeError):
        return False
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free < _NEARLY_NOTHING


def _is_closed(error: OSError, folder: Path) -> bool:
    if not isinstance(error.filename, (str, Path)):
        return False
    path, folder = Path(error.filename).absolute(), folder.absolute()
    if folder.is_relative_to(path):
        # Making the folder itself failed, at it or at one of its parents.
        return error.errno in (*_CLOSED, errno.ENOENT)
    return error.errno in _CLOSED and path.is_relative_to(folder)
