"""The left half of the flow: supernet, search, and each descendant up to its sparse weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elastic_export.artifacts.store import Artifact
from elastic_export.checkpoints import import_supernet, save_descendant, save_supernet
from elastic_export.checkpoints.source import identity
from elastic_export.data.evaluate import top1
from elastic_export.elastic import Descendant, Supernet, extract, has_batchnorm, recalibrate
from elastic_export.elastic.fold import fold_batchnorm
from elastic_export.elastic.supernet import resolve_spec
from elastic_export.errors import CheckFailed
from elastic_export.families.registry import family_config, get_family
from elastic_export.pipeline.flow import Flow
from elastic_export.pipeline.workshop import (
    DESCENDANT,
    SUPERNET,
    Workshop,
    checkpoint_path,
    model_settings,
)
from elastic_export.search import evolve
from elastic_export.space import Spec
from elastic_export.sparsity import check_patterns, check_skip, make_masks
from elastic_export.train import finetune, train_supernet

__all__ = ["Named", "descend", "frozen_masks", "make_supernet", "wanted_specs"]

# Folding rounds differently; a wrong fold is off by orders of magnitude more.
_FOLD_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Named:
    """A descendant to make: its name in tables, its spec, its accuracy in the search if any.

    ``spec`` is None in a dry run where the search has not been done yet.
    """

    name: str
    spec: Spec | None
    search_accuracy: float | None = None


def make_supernet(flow: Flow, shop: Workshop) -> Artifact | None:
    """Train the recipe's supernet, or import its checkpoint."""
    recipe = shop.recipe
    model = recipe.model
    if model.checkpoint is not None:
        path = checkpoint_path(recipe)
        settings = model_settings(recipe)
        config: dict[str, Any] = {
            "file": identity(path),
            "family": model.family,
            "format": model.format,
            "config": settings,
        }

        def bring(folder: Path, work: Path) -> dict[str, Any]:
            found = import_supernet(path, family=model.family, format=model.format, config=settings)
            shop.check_fits(found.supernet.family, found.supernet.config)
            save_supernet(found.supernet, folder / SUPERNET)
            return {
                "format": found.format,
                "system": found.system,
                "stored": list(found.stored),
                "used": found.used,
                "sparsity": found.sparsity,
                "ignored": found.ignored,
                "notes": list(found.notes),
            }

        return flow.do("import", path.name, config=config, inputs=[], make=bring)

    assert model.family is not None  # the recipe's own validation
    family = get_family(model.family)
    chosen = family_config(family, model_settings(recipe))
    shop.check_fits(family, chosen)
    for wanted in recipe.descend.specs:
        resolve_spec(family, chosen, wanted)  # a wrong one is told before the training
    train = recipe.train
    assert train is not None  # the recipe's own validation

    def learn(folder: Path, work: Path) -> dict[str, Any]:
        supernet = Supernet.create(family, chosen, seed=recipe.seed)
        shop.suit_threads(supernet)
        report = train_supernet(
            supernet,
            shop.data.train,
            train,
            seed=recipe.seed,
            work=work,
            device=shop.device,
            progress=shop.progress,
        )
        save_supernet(supernet, folder / SUPERNET)
        return asdict(report)

    # How often the state is saved does not change the result.
    steps = train.model_dump(mode="json", exclude={"checkpoint_every"})
    config = {
        "family": family.name,
        "model": chosen.model_dump(mode="json", exclude={"specs"}),
        "train": steps,
        "seed": recipe.seed,
        "data": shop.data_digests["train"],
        "device": shop.device,
    }
    return flow.do(
        "train", f"{family.name} supernet", config=config, inputs=[], make=learn, tools=["torch"]
    )


def wanted_specs(flow: Flow, shop: Workshop, supernet: Artifact | None) -> list[Named]:
    """The recipe's own specs, then those the search finds, smallest first; no spec twice."""
    descend = shop.recipe.descend
    named: list[Named] = []
    for i, wanted in enumerate(descend.specs):
        name = wanted if isinstance(wanted, str) else f"given{i + 1}"
        spec = None if supernet is None else shop.supernet(supernet).spec(wanted)
        named.append(Named(name, spec))
    if descend.search is not None:
        named += _search(flow, shop, supernet)
    kept: list[Named] = []
    for one in named:
        if one.spec is None or all(one.spec != other.spec for other in kept):
            kept.append(one)
    return kept


def _search(flow: Flow, shop: Workshop, supernet: Artifact | None) -> list[Named]:
    search = shop.recipe.descend.search
    assert search is not None
    data = shop.data_digests

    def look(folder: Path, work: Path) -> dict[str, Any]:
        assert supernet is not None
        net = shop.supernet(supernet)
        result = evolve(
            net.space,
            net.costs_of_genes,
            lambda specs: [_score(shop, net, spec) for spec in specs],
            search,
            seed=shop.recipe.seed,
            work=work,
            progress=shop.progress,
        )
        found = {
            kind: [{"genes": dict(c.spec), "macs": c.macs, "accuracy": c.accuracy} for c in group]
            for kind, group in (("kept", result.kept), ("evaluated", result.evaluated))
        }
        (folder / "search.json").write_text(json.dumps(found, indent=1))
        return {"kept": len(result.kept), "evaluated": len(result.evaluated)}

    config = {
        "search": search,
        "seed": shop.recipe.seed,
        "data": [data["search"], data["train"]],
        "device": shop.device,
    }
    artifact = flow.do(
        "search",
        f"{search.keep} MAC bands",
        config=config,
        inputs=[supernet],
        make=look,
        tools=["torch"],
    )
    if artifact is None or supernet is None:
        return [Named(f"d{i + 1}", None) for i in range(search.keep)]
    kept = json.loads((artifact.path / "search.json").read_text())["kept"]
    space = shop.supernet(supernet).space
    kept.sort(key=lambda one: one["macs"])
    return [
        Named(f"d{i + 1}", space.canonical(one["genes"]), one["accuracy"])
        for i, one in enumerate(kept)
    ]


def _score(shop: Workshop, net: Supernet, spec: Spec) -> float:
    """Top-1 on the search split; with BatchNorm, after extraction and recalibration."""
    if not has_batchnorm(net.activate(spec).skeleton):
        return top1(lambda x: net.forward(spec, x), shop.data_of(spec).search)
    module = extract(net, spec).module
    recalibrate(module, shop.recalibration_batches(spec), variance=net.family.bn_variance)
    return top1(module, shop.data_of(spec).search)


def descend(
    flow: Flow, shop: Workshop, supernet: Artifact | None, named: Named
) -> tuple[Artifact | None, Artifact | None]:
    """Extract, fine-tune, fold and sparsify one descendant.

    Returns:
        The folded dense descendant and the sparse one (the dense one again where the recipe asks
        for no sparsity).
    """
    recipe, data = shop.recipe, shop.data_digests
    norms = {"train": data["train"], "seed": recipe.seed}

    def cut(folder: Path, work: Path) -> dict[str, Any]:
        assert supernet is not None
        assert named.spec is not None
        net = shop.supernet(supernet)
        one = extract(net, named.spec)
        batches = shop.recalibration_batches(one.genes)
        change = recalibrate(one.module, batches, variance=net.family.bn_variance)
        save_descendant(one, folder / DESCENDANT)
        return {"name": named.name, "spec_id": one.spec_id, "recalibration_change": change}

    source = supernet if named.spec is not None else None
    genes = None if named.spec is None else dict(named.spec)
    current = flow.do(
        "extract", named.name, config={"genes": genes, **norms}, inputs=[source], make=cut
    )
    if recipe.finetune is not None:
        tuning = recipe.finetune
        before = current

        def tune(folder: Path, work: Path) -> dict[str, Any]:
            assert before is not None
            assert supernet is not None
            one = shop.descendant(before)
            report = finetune(
                one.module,
                shop.data_of(one.genes).train,
                tuning,
                seed=recipe.seed,
                masks=frozen_masks(one),
                teacher=shop.teacher(supernet) if tuning.distill else None,
                device=shop.device,
                progress=shop.progress,
            )
            save_descendant(one, folder / DESCENDANT)
            return asdict(report)

        current = flow.do(
            "finetune",
            named.name,
            config={"finetune": tuning, **norms, "device": shop.device},
            inputs=[before, supernet],
            make=tune,
            tools=["torch"],
        )
    dense = flow.do(
        "fold",
        named.name,
        config={},
        inputs=[current],
        make=lambda folder, work: _fold(shop, current, folder),
    )
    if recipe.sparsify is None:
        return dense, dense
    sparse = flow.do(
        "sparsify",
        named.name,
        config={"sparsify": recipe.sparsify, **norms, "device": shop.device},
        inputs=[dense, supernet],
        tools=["torch"],
        make=lambda folder, work: _sparsify(shop, dense, supernet, folder),
    )
    return dense, sparse


def _fold(shop: Workshop, current: Artifact | None, folder: Path) -> dict[str, Any]:
    assert current is not None
    one = shop.descendant(current)
    pairs = get_family(one.family).fold_pairs(one.module)
    x, _ = next(iter(shop.data_of(one.genes).search.batches(8)))
    with torch.no_grad():
        before = one.module(x)
        fold_batchnorm(one.module, pairs)
        after = one.module(x)
    error = float((after - before).abs().max() / before.abs().max().clamp_min(1e-12))
    if not error <= _FOLD_TOLERANCE:
        raise CheckFailed(
            f"Folding BatchNorm changed the logits by {error:.1e} of the largest one.",
            "A running variance may be near zero: recalibrate with more training images.",
        )
    one.folded = True
    save_descendant(one, folder / DESCENDANT)
    return {"folded": len(pairs), "relative_error": error}


def frozen_masks(one: Descendant) -> dict[str, Tensor]:
    """Masks of the patterns a descendant already has."""
    return {name: one.module.get_parameter(name).detach() != 0 for name in one.patterns}


def _sparsify(
    shop: Workshop, dense: Artifact | None, supernet: Artifact | None, folder: Path
) -> dict[str, Any]:
    assert dense is not None
    assert supernet is not None
    asked = shop.recipe.sparsify
    assert asked is not None
    one = shop.descendant(dense)
    if "skip" in asked.model_fields_set:
        check_skip(one.module, asked.skip)
    masks = {**frozen_masks(one), **make_masks(one.module, asked.pattern, asked.skip)}
    for name, zeros_stay in frozen_masks(one).items():
        masks[name] = masks[name] & zeros_stay
    with torch.no_grad():
        for name, mask in masks.items():
            one.module.get_parameter(name).mul_(mask)
    told: dict[str, Any] = {"layers": len(masks), "pattern": asked.pattern}
    if asked.finetune is not None:
        report = finetune(
            one.module,
            shop.data_of(one.genes).train,
            asked.finetune,
            seed=shop.recipe.seed,
            masks=masks,
            teacher=shop.teacher(supernet) if asked.finetune.distill else None,
            device=shop.device,
            progress=shop.progress,
        )
        told |= asdict(report)
    one.patterns = {**dict.fromkeys(masks, asked.pattern), **one.patterns}
    check_patterns(one.module.state_dict(), one.patterns)
    save_descendant(one, folder / DESCENDANT)
    return told
