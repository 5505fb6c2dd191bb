"""How a command ends: exit codes, and what is said where it does not end well.

0 done · 1 the user can correct it · 2 wrong usage (Typer's) · 3 a check failed · 70 a bug ·
130 interrupted.
"""

from __future__ import annotations

import errno
import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from elastic_export.cli.output import Output, own_stdout
from elastic_export.errors import CheckFailed, ElasticExportError, UserError

__all__ = ["INTERRUPTED", "command"]

BUG = 70
INTERRUPTED = 130
_KINDS: dict[type[ElasticExportError], str] = {UserError: "user", CheckFailed: "check"}
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST)


@contextmanager
def command(as_json: bool, quiet: bool, verbose: bool) -> Iterator[Output]:
    """Run a command's body; turn what it raises into words and an exit code."""
    with own_stdout(verbose) as stream, _hushed(verbose):
        out = Output(stream, as_json=as_json, quiet=quiet, verbose=verbose)
        try:
            with _told_warnings(out):
                yield out
        except typer.Exit:
            raise
        except BrokenPipeError:
            raise typer.Exit(0) from None  # the reader has seen enough
        except KeyboardInterrupt:
            out.error("interrupted", "Interrupted.", out.kept, INTERRUPTED)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            raise typer.Exit(_explain(error, out)) from None
        finally:
            out.close()


def _explain(error: Exception, out: Output) -> int:
    friendly = error if isinstance(error, ElasticExportError) else _of_the_machine(error)
    if friendly is not None:
        kind = _KINDS.get(type(friendly), "user")
        out.error(kind, friendly.what, friendly.fix, friendly.exit_code)
        if out.verbose:
            traceback.print_exception(error)
        return friendly.exit_code
    if out.verbose:
        traceback.print_exception(error)
    what = f"This is a bug in elastic-export: {_first_line(error)}{_place(error)}."
    fix = (
        'Please report it, with the output of the same command with -v and of "elastic-export '
        "doctor --json\", in the project's issue tracker."
    )
    out.error("bug", what, fix, BUG)
    return BUG


def _of_the_machine(error: Exception) -> UserError | None:
    if isinstance(error, MemoryError):
        return UserError(
            "The machine has not enough memory for this.",
            "Close other programs, or choose smaller batches, for example --set "
            "train.batch_size=32.",
        )
    if not isinstance(error, OSError) or error.errno not in _DISK:
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" that holds {error.filename}" if error.filename else ""
        return UserError(
            f"The disk{place} is full.",
            'Free some space, for example with "elastic-export cache prune", or choose another '
            "folder with --out or --store; finished stages are kept.",
        )
    return UserError(
        f"{error.filename or 'A file'} cannot be read or written: {error.strerror}.",
        "Check the path and its permissions, or choose another one.",
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0].rstrip('.')}" if text else type(error).__name__


def _place(error: Exception) -> str:
    """Return where in our own code the error passed last."""
    package = Path(__file__).resolve().parent.parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(package) and path != Path(__file__):
            return f" ({path.relative_to(package.parent)}, line {frame.lineno})"
    return ""


@contextmanager
def _hushed(verbose: bool) -> Iterator[None]:
    """Keep libraries' log lines off stderr unless they are errors or were asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.NOTSET if verbose else logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _told_warnings(out: Output) -> Iterator[None]:
    """Tell our own warnings in plain words, and libraries' only under ``-v``."""
    original = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: object) -> None:
        if category.__module__.startswith("elastic_export."):
            out.note(f"Note: {message}")
        elif out.verbose:
            original(message, category, *rest)  # type: ignore[arg-type]

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield
