"""Progress: lines for logs, bars for terminals, nothing under -q."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys

import pytest

from elastic_export.cli.output import Output
from elastic_export.cli.progress import BarProgress, LineProgress
from elastic_export.progress import no_progress


def test_a_log_gets_a_line_at_each_end() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream)
    progress.start("Train", 100)
    for _ in range(100):
        progress.advance(1, "loss 0.3")
    progress.finish()
    assert re.fullmatch(r"Train \.\.\.\nTrain: \d+\.\d s\n", stream.getvalue())


def test_tasks_inside_tasks_end_innermost_first() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream)
    progress.start("Outer", 2)
    progress.start("Inner", 2)
    progress.finish()
    progress.finish()
    progress.finish()  # one too many does no harm
    order = [line.partition(" ")[0].rstrip(":") for line in stream.getvalue().splitlines()]
    assert order == ["Outer", "Inner", "Inner", "Outer"]


def test_quiet_is_silent_and_a_pipe_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    assert Output(stream, as_json=False, quiet=True, verbose=False).progress is no_progress
    spoken = Output(stream, as_json=True, quiet=False, verbose=False)
    assert isinstance(spoken.progress, LineProgress)
    assert spoken.progress is spoken.progress


BARS = """
import time
from elastic_export.cli.errors import command
with command(False, False, False) as out:
    out.progress.start("Train [max] 2:4", 4)
    for step in range(4):
        time.sleep(0.15)
        out.progress.advance(1, f"loss {step}")
    out.progress.finish()
    out.result({}, "the result")
"""


def test_a_terminal_gets_a_bar_and_stdout_stays_clean() -> None:
    screen, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", BARS],
        stdout=subprocess.PIPE,
        stderr=side,
        text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(side)
    result, _ = process.communicate(timeout=60)
    shown = b""
    while True:
        try:
            piece = os.read(screen, 65536)
        except OSError:  # how a pseudo-terminal says that its other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(screen)
    assert result == "the result\n"
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "Train [max] 2:4" in text
    assert "2/4" in text
    assert "loss 2" in text
    assert "✓" in text


def test_bars_survive_an_error_in_the_middle() -> None:
    progress = BarProgress(io.StringIO())
    progress.start("Outer", 0)
    progress.start("Inner", 3)
    progress.advance()
    progress.close()
    progress.advance()
    progress.finish()
    progress.start("Again", 1)
    progress.finish()
