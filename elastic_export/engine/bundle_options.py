"""How a bundle's files are built by a runtime's Python module on this machine."""

from __future__ import annotations

import json
import re
from typing import Any

from elastic_export.engine.adapters.releases import TITLES
from elastic_export.engine.builder import BuildOptions, EngineBuilder
from elastic_export.engine.bundle import Bundle
from elastic_export.engine.bundle_manifest import damaged
from elastic_export.engine.device_plan import PLAN
from elastic_export.errors import UserError

__all__ = ["options_for", "weakly_typed"]

_AGAIN = "Export it for a target with that runtime: elastic-export export DESCENDANT --target."


def options_for(bundle: Bundle, precision: str, builder: EngineBuilder) -> BuildOptions:
    """Tell how one model of a bundle is built.

    A bundle for TensorRT says it in its ``device.json``, by release. One for TensorRT-RTX needs no
    plan: its graphs say every precision themselves.

    Raises:
        UserError: The bundle has no such model, or it is not in a form that this builder takes.
        CheckFailed: The bundle's plan is not one.
    """
    bundle.model(precision)
    what = f"{TITLES[builder.runtime]} {builder.version}"
    if bundle.manifest.runtime.name == "onnxruntime":
        raise UserError(
            f"The bundle {bundle.folder} is for ONNX Runtime, and its files are not in the form "
            f"that {what} builds.",
            _AGAIN,
        )
    releases = _releases(bundle, precision)
    if releases is None:
        return BuildOptions(sparse=True)
    try:
        entry = _entry(releases, builder)
        if entry is None:
            raise UserError(
                f"The {precision} model of {bundle.folder} was not made for {what}"
                f"{_made_for(releases)}.",
                _AGAIN,
            )
        told = entry["api"]
        return BuildOptions(
            typing="strong" if told["strong"] else "weak",
            fp16=told["fp16"],
            int8=told["int8"],
            pins=tuple(told["pins"]),
            sparse=told["sparse"],
            dla=told.get("dla"),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise damaged(bundle.folder, PLAN, f"is no plan ({type(error).__name__})") from error


def weakly_typed(bundle: Bundle, precision: str) -> dict[str, Any]:
    """What a builder that may choose precisions is allowed for one model.

    Returns:
        ``fp16`` and ``int8``, both false for a graph that says its precisions itself.
    """
    releases = _releases(bundle, precision) or [{}]
    told = releases[0].get("api") or {}
    return {name: bool(told.get(name)) for name in ("fp16", "int8")}


def _releases(bundle: Bundle, precision: str) -> list[dict[str, Any]] | None:
    """Return the releases that a plan names for a model; None where the bundle has no plan."""
    if PLAN not in bundle.manifest.files:
        return None
    try:
        plan = json.loads((bundle.folder / PLAN).read_bytes())
        return [dict(each) for each in plan["precisions"][precision]["releases"]]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(bundle.folder, PLAN, f"is no plan ({type(error).__name__})") from error


def _entry(releases: list[dict[str, Any]], builder: EngineBuilder) -> dict[str, Any] | None:
    if builder.runtime == "tensorrt-rtx":
        # Any will do: only the weak typing of older releases is beyond TensorRT-RTX.
        return next((each for each in releases if each["api"]["strong"]), None)
    numbers = [int(part) for part in re.findall(r"\d+", builder.version)[:2]]
    for each in releases:
        if each["first"] <= numbers <= each["last"]:
            return each
    return None


def _made_for(releases: list[dict[str, Any]]) -> str:
    spans = ["{}.{} to {}.{}".format(*each["first"], *each["last"]) for each in releases]
    return f", but for TensorRT {', '.join(spans)}" if spans else ""
