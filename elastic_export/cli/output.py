"""The one sink of every command: the result on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, TextIO

from elastic_export.progress import Progress, no_progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from elastic_export.cli.progress import BarProgress, LineProgress

__all__ = ["Output", "own_stdout", "spelled_out"]

_PIPE_COLUMNS = 160


class Output:
    """What a command says, in the form that was asked for.

    Args:
        stream: Where the result goes.
        as_json: Print the result as one JSON document.
        quiet: Say nothing beside the result, and that in one line.
        verbose: Let libraries speak; show tracebacks of bugs.
    """

    def __init__(self, stream: TextIO, *, as_json: bool, quiet: bool, verbose: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.kept = "Nothing was changed."
        self._stream = stream
        self._progress: BarProgress | LineProgress | None = None

    @property
    def progress(self) -> Progress:
        """The progress that fits where stderr goes; silent under ``-q``."""
        if self.quiet:
            return no_progress
        if self._progress is None:
            from elastic_export.cli.progress import BarProgress, LineProgress

            self._progress = (BarProgress if sys.stderr.isatty() else LineProgress)(sys.stderr)
        return self._progress

    @property
    def width(self) -> int:
        """Columns that a table on stdout may take."""
        from rich.console import Console

        # A pipe has no width of its own, and a table cut at 80 columns is of use to nobody.
        return Console(file=self._stream).width if self._stream.isatty() else _PIPE_COLUMNS

    @contextmanager
    def task(self, label: str) -> Iterator[None]:
        """Show that something of unknown length is going on."""
        self.progress.start(label, 0)
        yield
        self.progress.finish()

    def result(self, data: Any, human: RenderableType | None = None, short: str = "") -> None:
        """Print the result, once.

        Args:
            data: The JSON form.
            human: What a person reads; text or a table.
            short: The one line of ``-q``; nothing where it is empty.
        """
        self.close()
        if self.as_json:
            self._print(json.dumps(data, indent=1, ensure_ascii=False))
        elif self.quiet:
            self._print(short)
        elif human is not None:
            from rich.console import Console

            # Names and notes are no markup: 'elastic-export[rtx]' would lose its brackets.
            console = Console(file=self._stream, width=self.width, markup=False, emoji=False)
            console.print(human, highlight=False)

    def note(self, text: str) -> None:
        """Say something on stderr that is not the result."""
        if not self.quiet:
            self.close()
            sys.stderr.write(text + "\n")

    def error(self, kind: str, what: str, fix: str, exit_code: int) -> None:
        """Say what happened and what to do; with ``--json`` on stdout too."""
        self.close()
        # Rich is not used here: an error must survive a broken installation and a full disk.
        # Names in a file are somebody else's words: their control characters are written out.
        sys.stderr.write(f"Error: {spelled_out(what)}\n{spelled_out(fix)}\n")
        if self.as_json:
            told = {"kind": kind, "what": what, "fix": fix, "exit_code": exit_code}
            with suppress(OSError):  # stdout itself may be what failed
                self._print(json.dumps({"error": told}, ensure_ascii=False))

    def close(self) -> None:
        """Take down the progress."""
        if self._progress is not None:
            self._progress.close()

    def _print(self, text: str) -> None:
        if text:
            self._stream.write(text + "\n")
            self._stream.flush()


def spelled_out(text: str) -> str:
    """Write control characters, which a terminal obeys, as their escapes; keep line ends."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


@contextmanager
def own_stdout(verbose: bool) -> Iterator[TextIO]:
    """Yield the real stdout, and keep everybody else from it.

    Exporters and engine builders print to stdout from Python and from C++; with ``verbose`` that
    goes to stderr, else nowhere, so that stdout holds the result alone.
    """
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        noise = sys.stderr if verbose else nowhere
        try:
            descriptor = sys.stdout.fileno()
            target = noise.fileno()
        except (OSError, ValueError):
            # Replaced by an object without a file: nothing below Python can reach it.
            stream = sys.stdout
            with redirect_stdout(noise):
                yield stream
            return
        sys.stdout.flush()
        saved = os.dup(descriptor)
        stream = open(os.dup(descriptor), "w", encoding=sys.stdout.encoding, errors="replace")  # noqa: SIM115
        os.dup2(target, descriptor)
        try:
            yield stream
        finally:
            sys.stdout.flush()
            os.dup2(saved, descriptor)
            os.close(saved)
            with suppress(OSError):  # nobody reads any more, which was noticed when it was written
                stream.close()
