"""What a pickle would import, found out without running it.

``torch.load(weights_only=True)`` refuses foreign classes as well, but names only the first, lets
libraries that happen to be imported widen its list, and lets a few bytes ask for any amount of
memory (``bytearray``). This scan comes before it and reads opcodes only.
"""

from __future__ import annotations

import io
import pickletools
import re
from collections.abc import Iterator

__all__ = ["foreign_globals", "scan_globals"]

_ALLOWED = re.compile(
    r"collections\.OrderedDict"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
    r"|torch\.(storage\.)?\w*Storage"
    r"|torch\.(Size|device|serialization\._get_layout)"
    r"|torch\.(bool|b?float|u?int|complex|half|double|long|short)\w*"
    r"|_codecs\.encode"
    r"|(builtins|__builtin__)\.set"
)
_STRINGS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
_GETS = ("BINGET", "LONG_BINGET", "GET")
_PUTS = ("BINPUT", "LONG_BINPUT", "PUT")


def foreign_globals(names: Iterator[str] | list[str]) -> list[str]:
    """Keep what is more than tensors, containers and plain values; each name once, in order."""
    return list(dict.fromkeys(name for name in names if not _ALLOWED.fullmatch(name)))


def scan_globals(data: io.BytesIO, pickles: int = 1) -> list[str]:
    """List the ``module.name`` of every global in a number of consecutive pickles.

    Args:
        data: Positioned at the first; left behind the last.
        pickles: How many to read.

    Raises:
        ValueError: the data ends within a pickle or is none.
    """
    return [name for _ in range(pickles) for name in _globals(data)]


def _globals(data: io.BytesIO) -> Iterator[str]:
    texts: list[str] = []
    memo: dict[int, str] = {}
    for opcode, arg, _ in pickletools.genops(data):
        kind = opcode.name
        if kind in ("GLOBAL", "INST"):
            yield str(arg).replace(" ", ".")
        elif kind == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif kind in _STRINGS:
            texts.append(str(arg))
        elif kind == "MEMOIZE" and texts:
            memo[len(memo)] = texts[-1]
        elif kind in _PUTS and texts:
            memo[int(str(arg))] = texts[-1]
        elif kind in _GETS and int(str(arg)) in memo:
            texts.append(memo[int(str(arg))])
        del texts[:-2]
