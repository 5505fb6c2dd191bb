"""SparsifyViT: pruned checkpoints, and a dense one pruned by its YAML and its allocators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from case import Case, Counted

from elastic_export.checkpoints.safe import load_tensors, state_dict_of
from elastic_export.sparsity.allocation import allocate, masks_of

DISTILLED = "distilled_"


def cases(folder: Path, fixture: Mapping[str, Any]) -> Iterator[Case]:
    """Each row from the file that was pruned, and again from the dense file."""
    heads = {"heads": [fixture["model"]["heads"]]}
    for key in fixture["tensors"]:
        if not key.endswith(".logits"):
            continue
        row = key.removesuffix(".logits")
        facts = fixture["rows"].get(row, {})
        official = {}
        if "get_model_sparsity_official_density" in facts:
            official = {"density": facts["get_model_sparsity_official_density"]}
        masks = {
            f"{name.removeprefix(f'{row}.mask.')}.weight": name
            for name in fixture["tensors"]
            if name.startswith(f"{row}.mask.")
        }
        for name, source, config in _ways(folder, fixture, row):
            # A dense file is nothing of SparsifyViT's, which counts nothing of it.
            counted = {} if row.endswith("dense") else official
            yield Case(
                name,
                source,
                heads | config,
                "max",
                "input" if "input" in fixture["tensors"] else f"{row}.input",
                key,
                official=counted,
                masks=masks,
            )


def counted(folder: Path, fixture: Mapping[str, Any]) -> Iterator[Counted]:
    """The allocators' shares and counts, layer by layer."""
    for row, facts in fixture["rows"].items():
        source = _dense(folder, fixture, row)
        if "@" not in row or source is None:
            continue
        method, _, sparsity = row.removeprefix(DISTILLED).partition("@")
        layers = list(facts["nnz"])
        shares = facts.get("allocator_amounts") or {}
        official = {f"kept of {k}": 1.0 - v for k, v in shares.items()}
        official |= {f"values of {k}": v for k, v in facts["nnz"].items()}

        def count(
            source: Path = source,
            method: str = method,
            sparsity: float = float(sparsity),
            layers: list[str] = layers,
        ) -> dict[str, float]:
            tensors = state_dict_of(load_tensors(source), prefer=("model",)).tensors
            weights = {layer: tensors[f"{layer}.weight"] for layer in layers}
            found = allocate(method, weights, sparsity)
            masks = masks_of(weights, found)
            return {f"kept of {k}": 1.0 - v for k, v in found.items()} | {
                f"values of {k}": int(mask.sum()) for k, mask in masks.items()
            }

        yield Counted(row, count, {k: v for k, v in official.items() if v})


def _ways(
    folder: Path, fixture: Mapping[str, Any], row: str
) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Name, file and settings of every way to get to a row."""
    plain = row.removeprefix(DISTILLED)
    dense = _dense(folder, fixture, row)
    if plain == "dense":
        if dense is not None:
            yield row, dense, {}
        return
    config = None
    for name, facts in fixture["checkpoints"].items():
        told = Path(facts["config"]).stem if "config" in facts else facts.get("allocator", "")
        same = told.removeprefix(DISTILLED) == plain
        if not same or name.startswith(DISTILLED) != row.startswith(DISTILLED):
            continue
        yield f"{row}, masks in the file", folder / name, {}
        if "config" in facts:
            config = yaml.safe_load((folder / facts["config"]).read_text())
            yield f"{row}, masks and YAML", folder / name, config
    facts = fixture["rows"].get(row, {})
    if config is None and "level" in facts:
        level = list(facts["level"].values())
        config = {"sparsity": {"mode": facts["mode"], "level": level}}
    if dense is not None and "@" in plain:
        method, _, sparsity = plain.partition("@")
        allocation = {"method": method, "sparsity": float(sparsity)}
        yield f"{row}, allocated", dense, {"allocation": allocation}
    elif dense is not None and config is not None:
        yield f"{row}, YAML on the dense file", dense, config


def _dense(folder: Path, fixture: Mapping[str, Any], row: str) -> Path | None:
    """The dense file of a row's variant, wherever its name says "distil"."""
    for name in fixture["checkpoints"]:
        if "dense" in name and ("distil" in name) == row.startswith(DISTILLED):
            return folder / name
    return None
