"""Reads damaged and hostile checkpoints by the thousand and counts what comes of them.

    python benchmarks/fuzz_checkpoints.py [--minutes N] [--seed N] [--fixtures DIR] [--import]
                                          [--findings DIR] [--json]

Seeds are made on the fly (both formats of torch, safetensors, records of yacs, easydict, argparse
and numpy, networks with their code), with the checkpoints of a folder of fixtures beside them. Each
input changes a seed: bytes, pickle instructions, the structure of the archive, or the header of
safetensors. A child process reads it under a bound on memory and time. Right is a result or a
``UserError``. A finding is anything else: another error, a crash, more than ten seconds, more than
a GiB, a class that is looked up, a program that is started, a file that is written. The input of
a finding is kept. With ``--import`` the whole import is tried, otherwise ``load_tensors`` and
``state_dict_of``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
from fuzz_inputs import changed, seeds

TIMEOUT = 10.0
MEMORY = 1 << 30
ADDRESSES = 4 << 30
FORBIDDEN = (
    *("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove"),
    *("subprocess.Popen", "socket.connect", "socket.bind", "shutil.rmtree", "os.rename"),
    "ctypes.dlopen",
)


def child(whole: bool) -> None:
    """Read the files named on stdin; one line of what came of it for each."""
    from elastic_export.checkpoints.safe import load_tensors, state_dict_of
    from elastic_export.checkpoints.source import import_supernet
    from elastic_export.errors import UserError

    torch.set_num_threads(1)
    ran: list[str] = []

    def audit(event: str, args: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if event in FORBIDDEN or writes:
            ran.append(event)

    def handle(path: Path) -> str:
        try:
            if whole:
                import_supernet(path, config={})
            else:
                state_dict_of(load_tensors(path))
        except UserError as error:
            if not (error.what + error.fix).isprintable() or len(error.what) > 2000:
                return f"finding: an unprintable message: {ascii(error.what)[:200]}"
            return "refused"
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            return f"finding: {type(error).__name__} in {Path(place.filename).name}:{place.lineno}"
        return "read"

    warnings.simplefilter("ignore")
    print("ready", flush=True)
    sys.stdin.readline()
    handle(Path(os.devnull))
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES, size + ADDRESSES))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.addaudithook(audit)
    print("warm", flush=True)
    for line in sys.stdin:
        ran.clear()
        outcome = handle(Path(line.strip()))
        if ran:
            outcome = f"finding: {ran[0]}"
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if most - start > MEMORY >> 10:
            outcome, start = f"finding: {most - start >> 10} MiB more", most
        print(outcome, flush=True)


class Reader:
    """The child process, started again where it dies or does not answer."""

    def __init__(self, whole: bool) -> None:
        self._command = [sys.executable, __file__, "--child", *(["--import"] if whole else [])]
        self._process = self._start()

    def read(self, path: Path) -> str:
        """What came of one file."""
        answer = self._ask(str(path), TIMEOUT)
        if answer is not None:
            return answer
        ended = self._process.poll()
        self._process.kill()
        code = self._process.wait()
        self._process = self._start()
        return "finding: timeout" if ended is None else f"finding: died with {code}"

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._ask(None, 120)
        self._ask("", 120)
        return self._process

    def _ask(self, line: str | None, timeout: float) -> str | None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            if line is not None:
                stdin.write(line + "\n")
                stdin.flush()
        except BrokenPipeError:
            return None
        if not select.select([stdout], [], [], timeout)[0]:
            return None
        return stdout.readline().strip() or None


def main() -> None:
    """Run for some minutes and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fixtures", type=Path)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--import", dest="whole", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.whole)
        return
    pool, rng = seeds(options.fixtures), random.Random(options.seed)
    outcomes: Counter[str] = Counter()
    kept = 0
    reader, end = Reader(options.whole), time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            data = changed(rng, pool)
            suffix = ".safetensors" if data[8:9] == b"{" and rng.random() < 0.5 else ".pth"
            path = Path(folder) / f"input{suffix}"
            path.write_bytes(data)
            outcome = reader.read(path)
            outcomes[outcome] += 1
            if outcome.startswith("finding") and outcomes[outcome] <= 3:
                options.findings.mkdir(parents=True, exist_ok=True)
                (options.findings / f"{kept:04d}{suffix}").write_bytes(data)
                kept += 1
                print(f"{outcome} -> {options.findings}/{kept - 1:04d}{suffix}", file=sys.stderr)
    reader.close()
    findings = sum(n for outcome, n in outcomes.items() if outcome.startswith("finding"))
    told = {"inputs": outcomes.total(), "findings": findings, "outcomes": dict(outcomes)}
    if options.json:
        print(json.dumps(told, indent=1))
    else:
        print(f"{told['inputs']} inputs, {findings} findings")
        for outcome, count in outcomes.most_common():
            print(f"{count:8d}  {outcome}")


if __name__ == "__main__":
    main()
