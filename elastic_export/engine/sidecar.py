"""The file beside an engine that says where it fits: ``model.engine.json``.

An engine is tied to one runtime, one version of it and one kind of GPU. What its own header says is
only told by a runtime that already tries to load it, so these facts lie beside it and are compared
first.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from elastic_export.artifacts.digest import sha256_bytes, sha256_file
from elastic_export.artifacts.files import drafted
from elastic_export.config.base import Schema
from elastic_export.engine.adapters.releases import TITLES, RuntimeName
from elastic_export.errors import CheckFailed, UserError

__all__ = ["EngineHeader", "check_engine_fits", "read_header", "sidecar_of", "write_engine"]

_AMPERE = 80
_EXACT = 3
"""Numbers of a version that an engine depends on; some sources leave the build number out."""


class EngineHeader(Schema):
    """Where an engine fits, and how it came to be.

    ``sm`` is the compute capability times ten; ``dla`` the DLA core that runs it, None for the GPU;
    ``layers`` are None where the machine that built the engine could not load it, and
    ``layers_note`` says why; ``log_tail`` are the builder's last lines. ``gpu`` names the GPU that
    timed the kernels, ``options`` what the builder was asked for: an engine of the same file,
    version, GPU and options need not be built again.
    """

    kind: Literal["elastic-export engine"] = "elastic-export engine"
    schema_version: Literal[1] = 1
    runtime: RuntimeName
    version: str
    sm: int
    hardware: str = "none"
    dla: int | None = None
    typing: Literal["strong", "weak"]
    flags: tuple[str, ...] = ()
    onnx_sha256: str
    engine_sha256: str
    bytes: int
    layers: tuple[dict[str, Any], ...] | None = None
    layers_note: str = ""
    eligible_sparse: tuple[str, ...] | None = None
    picked_sparse: tuple[str, ...] | None = None
    seconds: float = 0.0
    gpu: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    log_tail: tuple[str, ...] = ()


def sidecar_of(engine: Path) -> Path:
    """Name the file that goes with an engine."""
    return engine.with_name(f"{engine.name}.json")


def write_engine(engine: Path, data: bytes, facts: dict[str, Any]) -> EngineHeader:
    """Write an engine and what goes with it, both or neither.

    Args:
        engine: Where the engine goes.
        data: Its bytes.
        facts: The other fields of `EngineHeader`.

    Raises:
        UserError: The disk is full or the folder cannot be written.
    """
    header = EngineHeader(**facts, engine_sha256=sha256_bytes(data), bytes=len(data))
    text = json.dumps(header.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
    # Both reach the disk before either takes its name, so that a full disk changes nothing.
    with drafted(sidecar_of(engine)) as beside, drafted(engine) as draft:
        beside.write_text(text)
        draft.write_bytes(data)
    return header


def read_header(engine: Path) -> EngineHeader:
    """Read what lies beside an engine, and compare the engine with it.

    Raises:
        UserError: There is no engine, or nothing beside it.
        CheckFailed: Either was changed.
    """
    if not engine.is_file():
        raise UserError(f"There is no engine at {engine}.", "Check the path, or build it first.")
    sidecar = sidecar_of(engine)
    if not sidecar.is_file():
        raise UserError(
            f"Nothing tells where the engine {engine} fits: {sidecar.name} is not beside it.",
            "Copy that file too, or build the engine here from its ONNX file.",
        )
    try:
        header = EngineHeader.model_validate_json(sidecar.read_bytes())
    except ValidationError as error:
        raise _damaged(sidecar) from error
    if engine.stat().st_size != header.bytes or sha256_file(engine) != header.engine_sha256:
        raise _damaged(engine)
    return header


def check_engine_fits(
    header: EngineHeader, *, runtime: RuntimeName, version: str, sm: int | None
) -> None:
    """Refuse an engine that this runtime or this GPU cannot load, before it is tried.

    Args:
        header: What lies beside the engine.
        runtime: The runtime that is to load it.
        version: Its full version.
        sm: Compute capability of the GPU, times ten; None where there is none.

    Raises:
        UserError: Both sides of what does not fit are named.
    """
    made = f"{TITLES[header.runtime]} {header.version}"
    here = f"{TITLES[runtime]} {version}"
    again = "Build it again from its ONNX file, here or on the device it is for."
    if header.runtime != runtime:
        raise UserError(f"The engine was built by {made}, which {here} cannot load.", again)
    if not _same(header.version, version):
        raise UserError(
            f"The engine was built by {made}, and this is {here}; an engine needs its own version.",
            again,
        )
    if sm is None:
        raise UserError(
            f"The engine is for a GPU of sm_{header.sm}, and no GPU is seen here.",
            "Run it on its device, or install the driver of the GPU.",
        )
    if not _runs_on(header, sm):
        raise UserError(f"The engine is for sm_{header.sm}, and the GPU here is sm_{sm}.", again)


def _runs_on(header: EngineHeader, sm: int) -> bool:
    if header.hardware == "ampere_plus":
        return sm >= _AMPERE
    return sm == header.sm


def _same(made: str, here: str) -> bool:
    """Compare two versions by the numbers that both tell, three at least."""
    first, second = (re.findall(r"\d+", text.partition("+")[0]) for text in (made, here))
    count = min(len(first), len(second))
    return (count >= _EXACT or len(first) == len(second)) and first[:count] == second[:count]


def _damaged(path: Path) -> CheckFailed:
    return CheckFailed(
        f"{path} was changed or is not whole.",
        "Copy the engine and its .json file again, or build it again.",
    )
