"""How a command ends, and who may write to stdout."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer

from elastic_export.artifacts.store import StoreWarning
from elastic_export.cli.errors import command
from elastic_export.errors import CheckFailed, UserError


def _end(error: BaseException, *, as_json: bool = False, verbose: bool = False) -> int:
    with pytest.raises(typer.Exit) as ended, command(as_json, False, verbose):
        raise error
    return ended.value.exit_code


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (UserError("It is wrong.", "Do it right."), "user", 1),
        (CheckFailed("It is wrong.", "Do it right."), "check", 3),
        (OSError(errno.ENOSPC, "No space left on device"), "user", 1),
        (PermissionError(errno.EACCES, "Permission denied", "/out"), "user", 1),
        (MemoryError(), "user", 1),
        (ValueError("surprise"), "bug", 70),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_every_end_has_its_code_and_its_words(
    capfd: pytest.CaptureFixture[str], error: BaseException, kind: str, code: int
) -> None:
    assert _end(error, as_json=True) == code
    told = capfd.readouterr()
    document = json.loads(told.out)["error"]
    assert (document["kind"], document["exit_code"]) == (kind, code)
    assert document["what"].endswith(".")
    assert document["fix"].endswith(".")
    assert told.err == f"Error: {document['what']}\n{document['fix']}\n"


def test_a_bug_names_its_place_and_shows_its_traceback_only_when_asked(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from elastic_export.artifacts.store import Store

    def bug(verbose: bool) -> str:
        with pytest.raises(typer.Exit), command(False, False, verbose):
            Store.key("train", 1, object(), [])
        return capfd.readouterr().err

    short = bug(verbose=False)
    assert "bug in elastic-export: TypeError" in short
    assert "elastic_export/artifacts/" in short
    assert "doctor --json" in short
    assert "Traceback" not in short
    assert len(short.splitlines()) == 2
    assert "Traceback" in bug(verbose=True)


NOISE = """
import os, sys, logging, warnings
from elastic_export.cli.errors import command
with command(True, False, "-v" in sys.argv) as out:
    print("python noise")
    os.write(1, b"noise from below\\n")
    os.system("echo noise of a child")
    logging.getLogger("torch").warning("log noise")
    warnings.warn("warning noise")
    out.result({"a": [1]}, "human")
print("after")
"""


def test_stdout_holds_the_result_alone() -> None:
    told = subprocess.run([sys.executable, "-c", NOISE], capture_output=True, text=True, check=True)
    assert told.stdout == '{\n "a": [\n  1\n ]\n}\nafter\n'
    assert told.stderr == ""
    loud = subprocess.run(
        [sys.executable, "-c", NOISE, "-v"], capture_output=True, text=True, check=True
    )
    assert loud.stdout == told.stdout
    for words in ("python noise", "from below", "of a child", "log noise", "warning noise"):
        assert words in loud.stderr


def test_our_own_warnings_are_notes_and_the_state_is_put_back(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = (warnings.showwarning, logging.root.manager.disable)
    with command(False, False, False):
        warnings.warn("The store is odd.", StoreWarning, stacklevel=1)
    assert capfd.readouterr().err == "Note: The store is odd.\n"
    assert (warnings.showwarning, logging.root.manager.disable) == before


def test_forms_of_a_result(capfd: pytest.CaptureFixture[str]) -> None:
    for as_json, quiet, expected in (
        (False, False, "for people\n"),
        (True, False, '{\n "x": 1\n}\n'),
        (False, True, "short\n"),
        (True, True, '{\n "x": 1\n}\n'),
    ):
        with command(as_json, quiet, False) as out:
            out.result({"x": 1}, "for people", short="short")
            out.note("a note")
        told = capfd.readouterr()
        assert told.out == expected
        assert told.err == ("" if quiet else "a note\n")


WAITS = """
import time
import typer
from elastic_export.cli.errors import command
app = typer.Typer()
@app.command()
def wait() -> None:
    with command(False, False, False) as out:
        out.kept = "All finished stages are kept."
        out.progress.start("Waiting", 3)
        time.sleep(60)
app()
"""


@pytest.mark.timeout(60)
def test_ctrl_c_says_what_is_kept() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS],
        stderr=subprocess.PIPE,
        text=True,
        # A suite that runs in the background hands an ignored SIGINT down to its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "Waiting ...\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert told == "Error: Interrupted.\nAll finished stages are kept.\n"
    assert process.returncode == 130


def test_an_unwritable_folder_is_the_users_to_correct(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(typer.Exit), command(False, False, False):
        os.mkdir(tmp_path / "out")
    assert f"{tmp_path / 'out'} cannot be" in capfd.readouterr().err
