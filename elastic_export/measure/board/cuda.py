"""The few calls of the CUDA runtime that a measurement needs, by ctypes.

``libcudart`` is on every JetPack; a Python package for CUDA is not.
"""

import ctypes
import glob
from typing import Any, List

from elastic_export.measure.board.shell import Cannot

__all__ = ["Cuda", "load_cuda"]

HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
NAMES = (
    "libcudart.so",
    "libcudart.so.13",
    "libcudart.so.12",
    "libcudart.so.11.0",
    "libcudart.so.10.2",
)
PLACES = (
    "/usr/local/cuda/lib64/libcudart.so*",
    "/usr/local/cuda/targets/*/lib/libcudart.so*",
    "/usr/lib/*/libcudart.so*",
)


class Cuda:
    """One stream and two events on the first GPU; every error is a ``Cannot``."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.stream = ctypes.c_void_p()
        self._begin, self._end = ctypes.c_void_p(), ctypes.c_void_p()
        self._memory: List[ctypes.c_void_p] = []
        self._call("cudaStreamCreate", ctypes.byref(self.stream))
        self._call("cudaEventCreate", ctypes.byref(self._begin))
        self._call("cudaEventCreate", ctypes.byref(self._end))

    def allocate(self, size: int) -> int:
        """Reserve memory on the device and return its address."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
        self._memory.append(address)
        return int(address.value or 0)

    def upload(self, address: int, data: bytes) -> None:
        """Copy bytes to the device."""
        self._copy(ctypes.c_void_p(address), ctypes.c_char_p(data), len(data), HOST_TO_DEVICE)

    def download(self, address: int, size: int) -> bytes:
        """Copy bytes from the device."""
        target = ctypes.create_string_buffer(size)
        self._copy(target, ctypes.c_void_p(address), size, DEVICE_TO_HOST)
        return target.raw

    def begin(self) -> None:
        """Mark the start of work on the stream."""
        self._call("cudaEventRecord", self._begin, self.stream)

    def end(self) -> float:
        """Wait for the work since ``begin`` and return its milliseconds on the GPU."""
        self._call("cudaEventRecord", self._end, self.stream)
        self.wait()
        elapsed = ctypes.c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(elapsed), self._begin, self._end)
        return float(elapsed.value)

    def wait(self) -> None:
        """Wait until the stream is idle."""
        self._call("cudaStreamSynchronize", self.stream)

    def free(self) -> None:
        """Give all memory back."""
        while self._memory:
            self._library.cudaFree(self._memory.pop())

    def _copy(self, target: Any, source: Any, size: int, kind: int) -> None:
        self._call("cudaMemcpy", target, source, ctypes.c_size_t(size), ctypes.c_int(kind))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise Cannot(
                "The CUDA runtime call {} failed with code {}.".format(name, code),
                "Check that a GPU is there and that no other program holds its memory.",
            )


def load_cuda() -> Cuda:
    """Open ``libcudart``.

    Raises:
        Cannot: it is not on this machine, or there is no GPU.
    """
    found = list(NAMES)
    for place in PLACES:
        found += sorted(glob.glob(place))
    for path in found:
        library = _open(path)
        if library is not None:
            return Cuda(library)
    raise Cannot(
        "The CUDA runtime (libcudart.so) was not found.",
        "Install it with JetPack (sudo apt install nvidia-jetpack), or use trtexec.",
    )


def _open(path: str) -> Any:
    try:
        return ctypes.CDLL(path)
    except OSError:
        return None
