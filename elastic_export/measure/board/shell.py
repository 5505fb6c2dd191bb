"""The system as the script sees it: files, commands, and what is told to whoever waits."""

import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional

__all__ = ["Cannot", "Done", "Teller", "find_program", "read_text", "run", "write_json"]


class Cannot(Exception):
    """Something that cannot be done here: what happened, and what to do."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def to_json(self) -> Dict[str, str]:
        """Return both sentences for the result file."""
        return {"what": self.what, "remedy": self.remedy}


class Done:
    """How a command ended: its exit code (None: it did not start or ran too long) and output."""

    def __init__(self, code: Optional[int], out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def ok(self) -> bool:
        """Whether it ran and succeeded."""
        return self.code == 0


def run(arguments: List[str], timeout: Optional[float] = 30.0, log: Optional[str] = None) -> Done:
    """Run a command without a shell and without a terminal; never raises for what it does.

    Args:
        arguments: Program and arguments.
        timeout: Seconds after which it is killed; None waits.
        log: A file that takes both streams instead of memory.
    """
    sink = None
    try:
        if log is not None:
            sink = open(log, "wb")
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=sink if sink is not None else subprocess.PIPE,
            stderr=subprocess.STDOUT if sink is not None else subprocess.PIPE,
        )
    except OSError as error:
        if sink is not None:
            sink.close()
        return Done(None, "", str(error))
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Done(None, "", "no end after {:g} s".format(timeout or 0))
    except BaseException:
        # An interrupt must not leave the builder or a timing run behind.
        process.kill()
        process.wait()
        raise
    finally:
        if sink is not None:
            sink.close()
    text = (out or b"").decode("utf-8", "replace")
    return Done(process.returncode, text, (err or b"").decode("utf-8", "replace"))


def find_program(name: str, *places: str) -> Optional[str]:
    """Return the path of a program from the given places, else from PATH."""
    for place in places:
        if os.path.isfile(place) and os.access(place, os.X_OK):
            return place
    return shutil.which(name)


def read_text(path: str) -> Optional[str]:
    """Return a small system file as text, None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            text = file.read(1 << 20).decode("utf-8", "replace")
    except OSError:
        return None
    return text.replace("\x00", "").strip()


def write_json(path: str, content: Dict[str, Any]) -> None:
    """Replace a JSON file in one step, so that a reader sees the old or the new one.

    Raises:
        Cannot: the disk is full or the folder cannot be written; the old file stays.
    """
    draft = "{}.{}.part".format(path, os.getpid())
    try:
        with open(draft, "w") as file:
            json.dump(content, file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        if os.path.exists(draft):
            os.remove(draft)
        raise Cannot(
            "The result {} cannot be written: {}.".format(path, error.strerror or error),
            "Free some space, or name another file with --out.",
        )


class Teller:
    """Tells what is going on, on stderr: lines for a person, or one JSON document a line."""

    def __init__(self, form: str = "plain") -> None:
        self.form = form
        self.started = time.time()

    def phase(self, name: str, total: int = 0) -> None:
        """Begin something that takes time, of ``total`` steps where that is known."""
        self._tell("phase", name, {"total": total})

    def step(self, name: str, done: int, total: int) -> None:
        """Tell that a step is done."""
        self._tell("progress", name, {"done": done, "total": total})

    def note(self, text: str) -> None:
        """Tell what the reader should know."""
        self._tell("note", text, {})

    def _tell(self, event: str, text: str, more: Dict[str, Any]) -> None:
        seconds = round(time.time() - self.started, 1)
        if self.form == "json":
            line = json.dumps(dict(more, event=event, text=text, seconds=seconds))
        elif event == "progress":
            line = "  {done}/{total} {text}".format(text=text, **more)
        else:
            line = text if event == "phase" else "note: " + text
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            # Whoever listened is gone (a lost connection); the measurement goes on.
            self.form = "json"
