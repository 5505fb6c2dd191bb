"""What is run or built on this machine: a bundle, an ONNX file or a descendant, by what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from elastic_export.config.targets import load_target
from elastic_export.elastic import Descendant
from elastic_export.engine.bundle import Bundle, load_bundle
from elastic_export.errors import UserError
from elastic_export.export.files import load_proto
from elastic_export.pipeline.inputs import open_descendant

__all__ = ["Kind", "Subject", "labels", "open_subject", "sm_of"]

Kind = Literal["bundle", "onnx", "descendant"]


@dataclass(frozen=True)
class Subject:
    """One thing that can be run.

    Attributes:
        path: Where it lies.
        kind: What it is.
        name: A short name; others may have the same.
        shape: Of one batch, (B, C, H, W); an open batch is 1.
        dtype: Of the input.
        models: Precision to ONNX file; empty for a descendant.
        bundle: The verified bundle, where it is one.
        descendant: The module, where it is one, with BatchNorm folded as in its exports.
    """

    path: Path
    kind: Kind
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))
    models: Mapping[str, Path] = field(default_factory=dict)
    bundle: Bundle | None = None
    descendant: Descendant | None = None

    def own_engine(self, precision: str) -> Path:
        """Name the engine that a bundle may bring with it."""
        return self.path.resolve() / f"model.{precision}.engine"


def open_subject(path: Path) -> Subject:
    """Read what lies at a path.

    Raises:
        UserError: Nothing of the three is there, or its input has no fixed size.
        CheckFailed: A file of a bundle was changed, or a weight has lost its pattern.
    """
    if path.suffix == ".onnx" and not path.is_dir():
        return _onnx(path)
    if path.suffix == ".safetensors" and not path.is_dir():
        return _descendant(path)
    if path.is_file():
        raise UserError(
            f"{path} is neither a bundle folder, nor an ONNX file (.onnx), nor a descendant "
            "(.safetensors).",
            "Give what build, export or extract wrote; a torch checkpoint goes through extract.",
        )
    return _bundle(path)


def labels(subjects: Sequence[Subject]) -> list[str]:
    """Name each so that all differ: by name, else with the target or folder, else by path.

    Raises:
        UserError: One is given twice.
    """
    places = [str(subject.path.resolve()) for subject in subjects]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice.", "Give each once.")
    ways: tuple[Callable[[Subject], str], ...] = (
        lambda subject: subject.name,
        lambda subject: f"{subject.name} ({_where(subject)})",
        lambda subject: str(subject.path),
    )
    for way in ways:
        found = [way(subject) for subject in subjects]
        if len(set(found)) == len(found):
            return found
    return places


def sm_of(bundle: Bundle) -> int | None:
    """Compute capability, times ten, of the GPU a bundle is for; None where nothing tells it."""
    try:
        found = load_target(bundle.manifest.target).target.sm
    except UserError:  # a profile of one's own, which is not on this machine
        found = None
    told = [engine.get("sm") for engine in bundle.manifest.engines.values()]
    return found if found is not None else next((sm for sm in told if isinstance(sm, int)), None)


def _where(subject: Subject) -> str:
    if subject.bundle is not None:
        return subject.bundle.manifest.target
    return subject.path.resolve().parent.name


def _bundle(path: Path) -> Subject:
    bundle = load_bundle(path)
    manifest = bundle.manifest
    if not manifest.inputs or not manifest.models:
        raise UserError(
            f"The bundle {path} holds no model that could be run.", "Export the network again."
        )
    return Subject(
        path,
        "bundle",
        manifest.name,
        _fixed(manifest.inputs[0].shape, manifest.inputs[0].name, path),
        np.dtype(manifest.inputs[0].dtype),
        {precision: bundle.model(precision) for precision in manifest.models},
        bundle,
    )


def _onnx(path: Path) -> Subject:
    graph = load_proto(path, weights=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise UserError(
            f"{path} takes {len(inputs)} inputs, but a vision network takes one.",
            "Export the network with its image as the only input.",
        )
    kind = inputs[0].type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim]
    return Subject(
        path,
        "onnx",
        path.name,
        _fixed(shape, inputs[0].name, path),
        np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)),
        {_precision(graph): path},
    )


def _precision(graph: onnx.GraphProto) -> str:
    """Say in what a file computes, by what it holds."""
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        return "int8"
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
    return "fp16" if half else "fp32"


def _descendant(path: Path) -> Subject:
    one, family, config, spec = open_descendant(path)
    shape = (1, *family.input_shape(config, spec))
    name = path.name.removesuffix(".safetensors")
    return Subject(path, "descendant", name, shape, descendant=one)


def _fixed(shape: Sequence[int | str], name: str, path: Path) -> tuple[int, ...]:
    """Take one image where the batch is left open; other sizes cannot be guessed."""
    found = [1 if axis == 0 and not isinstance(n, int) else n for axis, n in enumerate(shape)]
    for axis, size in enumerate(found):
        if not isinstance(size, int) or size < 1:
            raise UserError(
                f'Axis {axis} of the input "{name}" of {path} has no fixed size.',
                "Export it with static shapes.",
            )
    return tuple(int(size) for size in found)
