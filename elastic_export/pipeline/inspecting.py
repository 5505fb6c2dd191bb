"""Say what a file or folder is, and why it cannot be used if it cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elastic_export.checkpoints import import_supernet, load_descendant
from elastic_export.checkpoints.native import read_label
from elastic_export.checkpoints.plain import TimmReader
from elastic_export.checkpoints.reader import Imported, Source
from elastic_export.checkpoints.readers import readers, who_claims
from elastic_export.checkpoints.safe import load_tensors, state_dict_of
from elastic_export.checkpoints.source import check_format
from elastic_export.elastic.supernet import resolve_spec
from elastic_export.engine.bundle import MANIFEST, load_bundle
from elastic_export.errors import UserError
from elastic_export.families import get_family
from elastic_export.pipeline.extracting import cost_of
from elastic_export.report.load import RESULT_FILE

__all__ = ["inspect"]

_OFFICIAL_SPECS = 20
_CHECKPOINTS = (".pth", ".pth.tar", ".pt", ".bin", ".ckpt", ".safetensors", ".onnx")


def inspect(
    path: Path,
    *,
    family: str | None = None,
    format: str = "auto",
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe a supernet, a descendant, a plain checkpoint, an ONNX file or a bundle.

    Args:
        path: A file, or a folder that is a bundle or a checkpoint of several files.
        family: The family a checkpoint must belong to; None to find out.
        format: ``auto`` or the name of a reader.
        config: Settings that a checkpoint does not hold.

    Returns:
        ``kind`` and what is known; ``unusable`` holds why a checkpoint cannot be used yet and
        what would help.

    Raises:
        UserError: There is nothing, or nothing that can be read.
        CheckFailed: A bundle was changed.
    """
    if path.is_dir() and (path / MANIFEST).is_file():
        return _bundle(path)
    if path.suffix == ".onnx":
        return _onnx(path)
    label = read_label(path) if path.suffix == ".safetensors" else None
    if label is not None and label["kind"] == "descendant":
        return _descendant(path)
    if path.is_dir():
        _refuse_results(path)
        if format == "auto" and who_claims(Source(path, config or {}, family)) is None:
            raise _unknown_folder(path)
    check_format(format)
    try:
        found = import_supernet(path, family=family, format=format, config=config or {})
    except UserError as error:
        if label is not None or not path.exists():
            raise
        told = _files(path) if path.is_dir() else _tensors(path)
        told |= _claimed(Source(path, config or {}, family), format)
        return told | {"unusable": {"what": error.what, "fix": error.fix}}
    return _supernet(found)


def _supernet(found: Imported) -> dict[str, Any]:
    supernet = found.supernet
    elastic = any(len(axis.choices) > 1 for axis in supernet.space.axes)
    grouped: dict[str, list[str]] = {}
    for name, reason in found.ignored.items():
        grouped.setdefault(reason, []).append(name)
    return {
        "kind": "supernet" if elastic or found.format == "native" else "plain checkpoint",
        "system": found.system,
        "format": found.format,
        **supernet.describe(),
        "stored": list(found.stored),
        "used": found.used,
        "zeros": found.sparsity,
        "ignored": grouped,
        "notes": list(found.notes),
        "official_costs": _official(found),
    }


def _official(found: Imported) -> dict[str, dict[str, float]]:
    """Costs of the named specs by the counter of the system, where it has one."""
    if found.official is None:
        return {}
    supernet = found.supernet
    names = ["min", "max", *supernet.family.named_specs(supernet.config)]
    count = found.official
    return {name: dict(count(supernet.spec(name))) for name in names[:_OFFICIAL_SPECS]}


def _refuse_results(path: Path) -> None:
    """Say which of our own folders this is, where it is one that holds others."""
    bundles = sorted(p.parent for p in path.glob(f"*/{MANIFEST}"))
    bundles = bundles or sorted(p.parent for p in path.glob(f"*/*/{MANIFEST}"))
    result = path / RESULT_FILE
    if result.is_file():
        first = f"a bundle in it, such as {bundles[0]}, or " if bundles else ""
        raise UserError(
            f"{path} is the folder of a finished build.",
            f"Give {first}see its results with: elastic-export report {result}.",
        )
    if bundles:
        raise UserError(
            f"{path} holds {len(bundles)} bundles.", f"Give one of them, such as {bundles[0]}."
        )
    if not any(path.iterdir()):
        raise UserError(f"{path} is an empty folder.", "Give a checkpoint or a bundle.")


def _unknown_folder(path: Path) -> UserError:
    files = [p for end in _CHECKPOINTS for p in sorted(path.glob(f"*{end}"))]
    return UserError(
        f"{path} is a folder, but neither a bundle nor a checkpoint of several files.",
        f"Give a file in it, such as {files[0]}." if files else "Give a checkpoint or a bundle.",
    )


def _claimed(source: Source, format: str) -> dict[str, str]:
    """Name the system whose marks a checkpoint carries."""
    reader = readers().get(format) or who_claims(source)
    if reader is None or reader.name == TimmReader.name:  # which takes any file
        return {}
    return {"system": reader.system, "format": reader.name}


def _files(path: Path) -> dict[str, Any]:
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    return {"kind": "checkpoint of several files", "files": names}


def _tensors(path: Path) -> dict[str, Any]:
    loaded = load_tensors(path)
    told: dict[str, Any] = {"kind": "checkpoint", "written_as": loaded.format}
    try:
        found = state_dict_of(loaded)
    except UserError:
        found = None
        told["holds"] = sorted(map(str, loaded.content)) if _is_mapping(loaded.content) else []
    if found is not None:
        told["tensors"] = len(found.tensors)
        told["values"] = sum(tensor.numel() for tensor in found.tensors.values())
        told["stored"] = list(found.collections)
        told["others"] = list(found.others)
        told["first"] = {n: list(t.shape) for n, t in list(found.tensors.items())[:5]}
    return told


def _is_mapping(content: object) -> bool:
    return isinstance(content, Mapping)


def _descendant(path: Path) -> dict[str, Any]:
    one = load_descendant(path)
    family = get_family(one.family)
    config = family.Config.model_validate(one.config)
    channels, size, _ = family.input_shape(config, resolve_spec(family, config, one.genes))
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
