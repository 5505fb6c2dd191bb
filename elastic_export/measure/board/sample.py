"""The bundle's sample: images, the logits they must give, and the comparison.

The file is safetensors (eight bytes of header length, a JSON header, little-endian data), read here
without any library: https://github.com/huggingface/safetensors.
"""

import array
import json
import struct
import sys
from typing import Any, Dict, List, Sequence

from elastic_export.measure.board.shell import Cannot

__all__ = ["Sample", "compare_logits", "read_sample"]

FLOAT_BYTES = 4


class Sample:
    """Images ready for the network and the logits expected, as flat float32 arrays.

    Args:
        images: One entry an image, each the bytes of a float32 ``(C, H, W)``.
        shape: ``(C, H, W)``.
        logits: Precision to one list of logits an image.
    """

    def __init__(
        self, images: List[bytes], shape: Sequence[int], logits: Dict[str, List[List[float]]]
    ) -> None:
        self.images = images
        self.shape = list(shape)
        self.logits = logits

    def batches(self, size: int) -> List[bytes]:
        """Return the bytes of full batches; the last one is filled with the last image."""
        found = []
        for start in range(0, len(self.images), size):
            part = self.images[start : start + size]
            part = part + [part[-1]] * (size - len(part))
            found.append(b"".join(part))
        return found


def read_sample(path: str) -> Sample:
    """Read the sample file of a bundle.

    Raises:
        Cannot: the file is missing or damaged.
    """
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length).decode("utf-8"))
            data = file.read()
        images = _tensor(header, data, "input")
        count = images["shape"][0]
        each = len(images["bytes"]) // count
        parts = [images["bytes"][i * each : (i + 1) * each] for i in range(count)]
        logits = {}
        for name in header:
            if name.startswith("logits."):
                logits[name[len("logits.") :]] = _rows(_tensor(header, data, name))
        return Sample(parts, images["shape"][1:], logits)
    except (OSError, ValueError, KeyError, IndexError, struct.error, ZeroDivisionError) as error:
        raise Cannot(
            "The sample {} cannot be read: {}.".format(path, error),
            "Copy the bundle to the board again.",
        )


def compare_logits(
    found: List[List[float]], expected: List[List[float]], tolerance: float
) -> Dict[str, Any]:
    """Compare logits with those of the machine that made the bundle.

    Args:
        found: What this board computed, one list an image.
        expected: What it should be.
        tolerance: Largest difference allowed, relative to the largest expected logit.

    Returns:
        ``images``, ``top1_agreement`` (share), ``max_relative_error``, ``tolerance``, ``ok``.
    """
    largest = max(abs(value) for row in expected for value in row) or 1.0
    error, agree = 0.0, 0
    for ours, theirs in zip(found, expected):
        for a, b in zip(ours, theirs):
            difference = abs(a - b) / largest
            # A NaN compares false with everything, so it has to be asked for.
            if difference != difference:
                difference = float("inf")
            error = max(error, difference)
        agree += ours.index(max(ours)) == theirs.index(max(theirs))
    return {
        "images": len(expected),
        "top1_agreement": agree / float(len(expected)),
        "max_relative_error": error if error != float("inf") else None,
        "tolerance": tolerance,
        "ok": len(found) == len(expected) and error <= tolerance,
    }


def _tensor(header: Dict[str, Any], data: bytes, name: str) -> Dict[str, Any]:
    entry = header[name]
    begin, end = entry["data_offsets"]
    size = FLOAT_BYTES
    for length in entry["shape"]:
        size *= length
    if entry["dtype"] != "F32" or end - begin != size or end > len(data):
        raise ValueError("the tensor {} is not whole".format(name))
    return {"shape": entry["shape"], "bytes": data[begin:end]}


def _rows(tensor: Dict[str, Any]) -> List[List[float]]:
    values = array.array("f")
    values.frombytes(tensor["bytes"])
    if sys.byteorder == "big":
        values.byteswap()
    count, width = tensor["shape"]
    return [list(values[i * width : (i + 1) * width]) for i in range(count)]
