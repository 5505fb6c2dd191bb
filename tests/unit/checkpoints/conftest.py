"""``forge`` writes files as ``torch.save`` lays them out, with any pickle inside."""

from __future__ import annotations

import io
import pickle
import resource
import struct
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from elastic_export.checkpoints.safe import LoadedCheckpoint, load_tensors, state_dict_of
from elastic_export.errors import UserError


class Forge:
    """Files that nobody would write by accident, and what reading them gives."""

    floats = struct.pack("<16f", *range(16))

    def write(self, kind: str, path: Path, pickled: bytes) -> Path:
        """A file of either format of torch without values."""
        return self.zipped(path, pickled) if kind == "zip" else self.legacy(path, pickled)

    def zipped(
        self, path: Path, pickled: bytes, storages: Mapping[str, bytes] | None = None
    ) -> Path:
        """A torch zip file; ``storages`` maps keys to values."""
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("net/data.pkl", pickled)
            for key, values in (storages or {"0": self.floats}).items():
                archive.writestr(f"net/data/{key}", values)
        return path

    def legacy(
        self, path: Path, pickled: bytes, keys: bytes = b"\x80\x02].", values: bytes = b""
    ) -> Path:
        """A file of the older format."""
        start = io.BytesIO()
        torch.save({}, start, _use_new_zipfile_serialization=False)
        text = start.getvalue()
        end = text.index(b"}q\x00.\x80\x02]q\x00.") - 2
        path.write_bytes(text[:end] + pickled + keys + values)
        return path

    def tensor(
        self,
        numel: int = 16,
        key: str = "0",
        offset: object = 0,
        shape: object = (4, 4),
        stride: object = (4, 1),
        maker: str = "_rebuild_tensor_v2",
        view: bytes = b"",
    ) -> bytes:
        """The pickle of a tensor, without the first and the last instruction."""

        def plain(value: object) -> bytes:
            return pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"").replace(b"q\x01", b"")

        return (
            b"ctorch._utils\n" + maker.encode() + b"\n(" + b"(" + plain("storage")
            + b"ctorch\nFloatStorage\n" + plain(key) + plain("cpu") + plain(numel) + view + b"tQ"
            + plain(offset) + plain(shape) + plain(stride) + b"\x89}tR"
        )  # fmt: skip

    def read(self, path: Path) -> tuple[LoadedCheckpoint | None, UserError | None]:
        """Load a file, in little time and memory, and hand back what came of it."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.process_time()
        loaded, told = None, None
        try:
            loaded = load_tensors(path)
            state_dict_of(loaded)
        except UserError as error:
            told = error
        if told is not None:
            assert told.what.isprintable()
            assert told.fix.isprintable()
            assert len(told.what) < 700
        assert time.process_time() - started < 2
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10
        return loaded, told

    def refused(self, path: Path) -> str:
        """What is said of a file that must not be read."""
        told = self.read(path)[1]
        assert told is not None
        return told.what


@pytest.fixture
def forge() -> Forge:
    """Write and read such files."""
    return Forge()
