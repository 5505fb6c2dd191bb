"""What ``inspect`` says of a bundle, on one screen; ``--json`` holds the whole manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from elastic_export.cli.benched import macs, top1
from elastic_export.cli.tables import facts, printable, told_table
from elastic_export.config.transform import Transform
from elastic_export.engine.bundle_readme import preprocess_steps
from elastic_export.report.units import size

__all__ = ["bundle_table"]

_MODELS = (
    "precision",
    "file",
    "size",
    "MACs",
    "top-1 %",
    "2:4 layers",
    "INT8 layers",
    "engine",
    "against torch",
)


def bundle_table(told: Mapping[str, Any]) -> RenderableType:
    """Lay out what a bundle is for, one row a model, then what to know about it.

    Args:
        told: The manifest in its JSON form.
    """
    one, runtime = told["descendant"], told["runtime"]
    genes = one.get("genes", {})
    head = {
        "kind": told["kind"],
        "name": told["name"],
        "target": told["target"],
        "runtime": " ".join(filter(None, (runtime["name"], runtime["version"]))),
        "family": one.get("family"),
        "spec": one.get("spec_id"),
        "genes": ", ".join(f"{name}={value}" for name, value in genes.items()),
        "parameters": macs(one.get("cost", {}).get("params")),
        "input": _ports(told["inputs"]),
        "output": _ports(told["outputs"]),
        "preprocessing": " ".join(preprocess_steps(Transform.model_validate(told["transform"]))),
        "sample": f"{told['sample']['images']} image(s)" if told["sample"] else None,
        "deploy": told["chosen"],
        "made with": ", ".join(f"{name} {version}" for name, version in told["versions"].items()),
        "digest": told["digest"],
    }
    rows = [_row(told, precision, file) for precision, file in told["models"].items()]
    notes = [printable(f"Note: {note}") for note in told["notes"]]
    shown = facts({name: value for name, value in head.items() if value})
    return Group(
        shown, "", told_table(_MODELS, rows), *notes, "--json tells every check and layer."
    )


def _row(told: Mapping[str, Any], precision: str, file: str) -> list[object]:
    checks = told["checks"].get(precision, {})
    patterns = checks.get("patterns")
    engine = told["engines"].get(precision)
    return [
        precision,
        file,
        size(checks.get("bytes")),
        macs(told["descendant"].get("executed_macs", {}).get(precision)),
        top1(told["accuracy"].get(precision)),
        None if patterns is None else len(patterns),
        checks.get("int8_layers"),
        None if engine is None else engine.get("status"),
        _parity(checks.get("parity")),
    ]


def _ports(ports: list[dict[str, Any]]) -> str:
    return "; ".join(
        f"{port['name']}: {port['dtype']}, {' x '.join(map(str, port['shape']))}" for port in ports
    )


def _parity(parity: Mapping[str, Any] | None) -> str | None:
    """Write the largest difference of a logit, relative to the largest logit."""
    if parity is None:
        return None
    return f"{parity['relative_error']:.2g} (at most {parity['tolerance']:.2g})"
