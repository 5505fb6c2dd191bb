"""Say what a file or folder is, and why it cannot be used if it cannot."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from elastic_export.checkpoints import import_supernet, load_descendant
from elastic_export.checkpoints.native import read_label
from elastic_export.checkpoints.safe import load_tensors, state_dict_of
from elastic_export.engine.bundle import load_bundle
from elastic_export.errors import UserError
from elastic_export.families import get_family
from elastic_export.pipeline.exporting import cost_of

__all__ = ["inspect"]


def inspect(path: Path) -> dict[str, Any]:
    """Describe a supernet, a descendant, a plain checkpoint, an ONNX file or a bundle.

    Returns:
        ``kind`` and what is known; ``unusable`` holds why a checkpoint cannot be used yet and
        what would help.

    Raises:
        UserError: There is nothing, or nothing that can be read.
        CheckFailed: A bundle was changed.
    """
    if path.is_dir():
        return _bundle(path)
    if path.suffix == ".onnx":
        return _onnx(path)
    label = read_label(path) if path.suffix == ".safetensors" else None
    if label is not None and label["kind"] == "descendant":
        return _descendant(path)
    try:
        found = import_supernet(path, config={})
    except UserError as error:
        if label is not None:
            raise
        return _tensors(path, error)
    return {
        "kind": "supernet" if found.format == "native" else "plain checkpoint",
        "format": found.format,
        **found.supernet.describe(),
        "stored": list(found.stored),
        "zeros": found.sparsity,
    }


def _tensors(path: Path, error: UserError) -> dict[str, Any]:
    found = state_dict_of(load_tensors(path))
    return {
        "kind": "checkpoint",
        "tensors": len(found.tensors),
        "values": sum(tensor.numel() for tensor in found.tensors.values()),
        "stored": list(found.collections),
        "first": {name: list(t.shape) for name, t in list(found.tensors.items())[:5]},
        "unusable": {"what": error.what, "fix": error.fix},
    }


def _descendant(path: Path) -> dict[str, Any]:
    one = load_descendant(path)
    family = get_family(one.family)
    channels, size, _ = family.input_shape(family.Config.model_validate(one.config))
    return {
        "kind": "descendant",
        "family": one.family,
        "spec_id": one.spec_id,
        "spec": one.genes,
        "batchnorm_folded": one.folded,
        "patterns": one.patterns,
        **cost_of(one, channels, size).model_dump(),
    }


def _bundle(path: Path) -> dict[str, Any]:
    manifest = load_bundle(path).manifest
    return {"kind": "bundle", **manifest.model_dump(mode="json", exclude={"files"})}


def _onnx(path: Path) -> dict[str, Any]:
    import onnx

    from elastic_export.engine.runners import OrtRunner

    OrtRunner(path)  # refuses what cannot be loaded, with the reason
    model = onnx.load(path, load_external_data=False)
    sizes = {
        onnx.TensorProto.DataType.Name(kind): count
        for kind, count in Counter(t.data_type for t in model.graph.initializer).items()
    }
    return {
        "kind": "onnx",
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "nodes": dict(Counter(node.op_type for node in model.graph.node).most_common()),
        "initializers": sizes,
        "bytes": path.stat().st_size,
    }
