"""Engine files of this board: where they lie, and how they are built, whoever the builder is.

One process builds in a folder at a time, because builders share the file of their timings; another
one finds the engine when its turn comes. An engine is there once the note beside it is: what a full
disk or an interrupt cut off is built again.
"""

import json
import os
import re
import shutil
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from elastic_export.measure.board.shell import Cannot, FileLock, Teller, follow, write_json

__all__ = ["EngineFile", "build_engine", "last_error"]

WORKSPACES_MIB = (1024, 512, 256, 128)
LEVELS = (2, 1)
BUILD_SECONDS = 4 * 3600.0
NO_MEMORY = re.compile(
    r"^.*\[E\].*(?:out of memory|OutOfMemory|bad_alloc|Cannot allocate memory|MemoryAllocation)",
    re.I | re.M,
)
NO_SPACE = re.compile(r"No space left on device", re.I)
KILLED = (-9, 137)
NEARLY_FULL = 64 << 10
LOG_TAIL = 20


class EngineFile:
    """Where an engine lies and what lies beside it.

    Args:
        folder: Of engines, logs and timings.
        name: Of the engine: model, way of building, software and power mode.
        made_by: Software and power mode; timings of another one would mislead the builder.
    """

    def __init__(self, folder: str, name: str, made_by: str) -> None:
        self.folder = folder
        self.path = os.path.join(folder, name + ".engine")
        self.log = os.path.join(folder, name + ".build.log")
        self.timings = os.path.join(folder, "timing.trt{}.cache".format(made_by))
        self._told = self.path + ".json"

    def beside(self, ending: str) -> str:
        """Return the name of a file of this process beside the engine."""
        return "{}.{}.{}".format(self.path, os.getpid(), ending)

    def known(self) -> Optional[Dict[str, Any]]:
        """Return what is known of an engine that was built before; None where that is damaged."""
        if not os.path.isfile(self.path):
            return None
        try:
            with open(self._told) as file:
                return dict(json.load(file))
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, draft: str, found: Dict[str, Any]) -> None:
        """Put a whole engine in its place, and then the note that says so.

        Raises:
            Cannot: the disk is full.
        """
        os.replace(draft, self.path)
        try:
            write_json(self._told, found)
        except Cannot:
            # A builder may not notice that its last bytes found no space.
            self.forget()
            raise self.full()

    def forget(self) -> None:
        """Remove the engine and what is known of it."""
        for path in (self.path, self._told):
            if os.path.exists(path):
                os.remove(path)

    def read_log(self) -> str:
        """Return the builder's log, empty where there is none."""
        try:
            with open(self.log, "rb") as file:
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def log_tail(self) -> List[str]:
        """Return the last lines of the builder's log."""
        return self.read_log().splitlines()[-LOG_TAIL:]

    def check_space(self, onnx: str) -> None:
        """Refuse to begin where an engine of this model would not find space.

        Raises:
            Cannot: the disk has too little.
        """
        needed = 3 * os.path.getsize(onnx) + (16 << 20)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            text = "Building {} needs about {} MB of disk and {} has {}."
            raise Cannot(
                text.format(os.path.basename(onnx), needed >> 20, self.folder, free >> 20),
                "Free some space, or name another folder with --engine-dir.",
            )

    def is_full(self) -> bool:
        """Tell whether the disk has no space left; a builder cannot log that on such a disk."""
        return shutil.disk_usage(self.folder).free < NEARLY_FULL

    def full(self) -> Cannot:
        """Return the error of a full disk."""
        return Cannot(
            "The disk is full: the engine could not be written to {}.".format(self.folder),
            "Free some space, or name another folder with --engine-dir.",
        )


def build_engine(
    place: EngineFile,
    onnx: str,
    builder: str,
    levels: bool,
    command: Callable[[int, Optional[int], str], List[str]],
    teller: Teller,
) -> Dict[str, Any]:
    """Build an engine, with less memory and less effort where the board has too little.

    The builder is a process of its own: its memory is free again when it ends, the kernel may kill
    it for want of memory, and an interrupt ends it at once.

    Args:
        place: Where the engine goes; one that is there is taken.
        onnx: The model.
        builder: Its name, for errors.
        levels: It knows levels of effort.
        command: Called with MiB of workspace, level (None: its own) and the path of the engine.
        teller: Told of retries.

    Returns:
        ``seconds``, ``workspace_mb``, ``level``, ``retries``, ``engine_bytes``, ``reused``.

    Raises:
        Cannot: the build fails for another reason, or with the smallest workspace too.
    """
    os.makedirs(place.folder, exist_ok=True)
    waiting = "another process builds in {}; waiting for it".format(place.folder)
    with FileLock(os.path.join(place.folder, "build.lock"), teller, waiting):
        earlier = place.known()
        if earlier is not None:
            return dict(earlier, reused=True)
        place.check_space(onnx)
        draft = place.beside("part")
        try:
            return _build(place, onnx, builder, _attempts(levels), command, draft, teller)
        finally:
            if os.path.exists(draft):
                os.remove(draft)


def last_error(text: str) -> str:
    """Return the last line of a log that tells an error, else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "[E]" in line or "rror" in line]
    return (errors or lines or ["it says nothing"])[-1][:300] + "."


def _attempts(levels: bool) -> List[Tuple[int, Optional[int]]]:
    attempts: List[Tuple[int, Optional[int]]] = [(mib, None) for mib in WORKSPACES_MIB]
    return attempts + [(WORKSPACES_MIB[-1], level) for level in LEVELS if levels]


def _build(
    place: EngineFile,
    onnx: str,
    builder: str,
    attempts: List[Tuple[int, Optional[int]]],
    command: Callable[[int, Optional[int], str], List[str]],
    draft: str,
    teller: Teller,
) -> Dict[str, Any]:
    begin = time.monotonic()
    for number, (mib, level) in enumerate(attempts):
        if number:
            text = "building needs too much memory; trying {} MiB of workspace{}"
            teller.note(text.format(mib, ", level {}".format(level) if level else ""))
        done = follow(command(mib, level, draft), BUILD_SECONDS, log=place.log)
        if done.ok and os.path.isfile(draft):
            found = {
                "seconds": round(time.monotonic() - begin, 1),
                "workspace_mb": mib,
                "level": level,
                "retries": number,
                "engine_bytes": os.path.getsize(draft),
                "reused": False,
            }
            place.keep(draft, found)
            return found
        log = place.read_log()
        if NO_SPACE.search(log) or place.is_full():
            raise place.full()
        if done.code not in KILLED and not NO_MEMORY.search(log):
            raise Cannot(
                "{} could not build {}: {}".format(
                    builder, os.path.basename(onnx), last_error(log or done.err)
                ),
                "The whole log is {}.".format(place.log),
            )
    raise Cannot(
        "This board has too little memory to build {}.".format(os.path.basename(onnx)),
        "Add swap, stop the desktop (sudo systemctl isolate multi-user.target), and try again.",
    )
