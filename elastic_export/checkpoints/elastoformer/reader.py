"""Elastoformer: nested levels of a ViT or CNN, one state dict each, and their pruning metadata.

Source: sudaksh14/Elastoformer on GitHub (no paper). Torch-Pruning ranks the channels once, the
smallest network is trained alone, and each larger one is trained around the frozen smaller one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elastic_export.checkpoints.elastoformer.files import (
    Experiment,
    find_experiment,
    has_levels,
    is_level,
    is_metadata,
)
from elastic_export.checkpoints.elastoformer.index import GroupOf, kept_channels, read_step
from elastic_export.checkpoints.elastoformer.names import (
    Plain,
    knows,
    plain_name,
    read_plain,
    rebuilt_plan,
)
from elastic_export.checkpoints.reader import Imported, Reader, Source
from elastic_export.checkpoints.readers import register_reader
from elastic_export.checkpoints.safe import load_tensors, state_dict_of
from elastic_export.errors import UserError, did_you_mean
from elastic_export.families.counters.elastoformer import torch_pruning_counts
from elastic_export.families.nested.build import Nesting, Rung, nest, same_in_all_parts
from elastic_export.families.nested.network import Network
from elastic_export.families.nested.vgg import VggNetwork
from elastic_export.families.nested.vit import VitNetwork
from elastic_export.space import Spec

__all__ = ["ElastoformerReader", "guessed_heads"]

_OPTIONS = ("heads", "experiment", "norm_eps")
# Hugging Face's ViTConfig; the system's own code keeps it and no file holds it.
_NORM_EPS = 1e-12
_UNTRAINED = "values from before training; the levels' own files hold the trained ones"
# What the system trains anew at every level.
_NOT_SHARED = ("cls_token", "pos_embed", "head.", "fc.", "classifier.", "bn", "norm")


@register_reader
class ElastoformerReader(Reader):
    """A folder with the levels of one experiment and their metadata, or one level alone."""

    name = "elastoformer"
    system = "Elastoformer (sudaksh14/Elastoformer)"
    companions = ("*_Level_*.pth",)

    def claims(self, source: Source) -> bool:
        """Files named as the system names levels; a file must also hold such a network."""
        path = source.path
        if path.is_dir():
            return has_levels(path)
        if is_metadata(path):
            return True
        try:
            return is_level(path) and knows(source.keys()) is not None
        except UserError:
            return True  # Reading says what is wrong with the file.

    def read(self, source: Source) -> Imported:
        """Put the levels into one store; see :func:`nest`."""
        _, options, settings = source.split_config((), _OPTIONS)
        experiment = find_experiment(source.path, _text(options.get("experiment")))
        eps = _positive(options.get("norm_eps", _NORM_EPS))
        levels: list[Plain] = []
        for _, path in sorted(experiment.levels.items()):
            if is_metadata(path):
                raise UserError(f"{path} is pruning metadata.", "Give the folder with the levels.")
            levels.append(read_plain(state_dict_of(load_tensors(path)).tensors, path, eps))
        network = _common(levels, experiment)
        heads = _heads(network, levels, options)
        ignored = {
            f"{experiment.levels[n].name}: {key}": reason
            for n, level in zip(sorted(experiment.levels), levels, strict=True)
            for key, reason in level.ignored.items()
        }
        sizes = [level.sizes for level in levels]
        kept = [{g: tuple(range(n)) for g, n in sizes[0].items()}]
        notes: list[str] = []
        if len(levels) > 1:
            steps = {n: read_step(path) for n, path in experiment.metadata.items()}
            kept, notes = kept_channels(steps, sizes, _groups_by_name(network))
            ignored |= {
                f"{step.path.name}: {key}": _UNTRAINED
                for step in steps.values()
                for key in step.ignored
            }
        rungs = [
            Rung(level.tensors, level.sizes, channels, count)
            for level, channels, count in zip(levels, kept, heads, strict=True)
        ]
        nesting = nest(network, _settings(levels[-1], settings, source), rungs)
        supernet = nesting.supernet

        def official(spec: Spec) -> Mapping[str, float]:
            return torch_pruning_counts(supernet.config, spec)

        return Imported(
            supernet,
            self.name,
            stored=tuple(path.name for _, path in sorted(experiment.levels.items())),
            ignored=ignored,
            notes=(*notes, *_notes(network, rungs, nesting, options)),
            official=official,
        )


def guessed_heads(inner: int) -> int:
    """The head count that the system's own code guesses: the largest of 6, 8, 10, 12 that divides.

    Raises:
        UserError: None does.
    """
    fitting = [count for count in (6, 8, 10, 12) if inner % count == 0]
    if not fitting:
        raise UserError(
            f"None of 6, 8, 10 and 12 heads divides the query width {inner}, so the original code "
            "has no guess for it.",
            "Give the number of heads that the network was pruned with, --set heads=3.",
        )
    return fitting[-1]


def _common(levels: Sequence[Plain], experiment: Experiment) -> Network:
    """What all levels share; a VGG's levels may differ in form."""
    last = levels[-1].network
    if isinstance(last, VggNetwork) and all(isinstance(p.network, VggNetwork) for p in levels):
        plan = rebuilt_plan(levels[0].tensors)
        forms = []
        for number, level in enumerate(levels):
            assert isinstance(level.network, VggNetwork)
            form = level.network.forms[0]
            rebuilt = form.model_copy(update={"plan": plan})
            if number and form.norm and rebuilt.places() == form.places():
                form = rebuilt
            forms.append(form)
        same = all(form == forms[0] for form in forms)
        last = last.model_copy(update={"forms": tuple(forms[:1] if same else forms)})
        others = [level.network.model_copy(update={"forms": last.forms}) for level in levels]
    else:
        others = [level.network for level in levels]
    for path, other in zip(experiment.levels.values(), others, strict=True):
        if other != last:
            raise UserError(
                f"{path.name} differs from the largest level in more than widths.",
                "Levels of one experiment have the same layers; check that the files belong "
                "together.",
            )
    return last


def _groups_by_name(network: Network) -> GroupOf:
    """Layers in metadata have the names of the original network, which the core keeps."""
    layout = network.layout(0)
    arch = "vit" if isinstance(network, VitNetwork) else "cnn"

    def group_of(layer: str, side: str) -> str | None:
        name = plain_name(arch, f"{layer}.weight")
        if name not in layout:
            raise UserError(
                f"The metadata names a layer {layer}, which the levels do not have.",
                "The files are not of one experiment.",
            )
        dims = layout[name]
        axis = 1 if side == "in" and len(dims) > 1 else 0
        dim = dims[axis]
        return None if dim is None or (axis and network.repeats(name) > 1) else dim.group

    return group_of


def _heads(
    network: Network, levels: Sequence[Plain], options: Mapping[str, Any]
) -> list[int | None]:
    given = options.get("heads")
    if not isinstance(network, VitNetwork):
        if given is not None:
            raise UserError("These levels are a CNN, which has no heads.", "Leave heads out.")
        return [None] * len(levels)
    if given is None:
        raise UserError(
            "The number of heads is not stored in these files.",
            "Give it as model.config.heads in a recipe, or with --set heads=12 on the command line "
            "(12 for ViT-B and DeiT-B; a list gives each level its own, from the core on). The "
            "original code guesses the largest of 6, 8, 10, 12 that divides the query width; "
            "heads=official does the same.",
        )
    inner = [level.sizes["blocks.0.inner"] for level in levels]
    counts = given if isinstance(given, list | tuple) else [given] * len(levels)
    if given == "official":
        counts = [guessed_heads(width) for width in inner]
    if len(counts) != len(levels):
        raise UserError(
            f"heads lists {len(counts)} numbers, but there are {len(levels)} levels.",
            "Give one number, or one for each level from the core on.",
        )
    for number, (level, count) in enumerate(zip(levels, counts, strict=True), 1):
        widths = {n for group, n in level.sizes.items() if group.endswith(".inner")}
        if type(count) is not int or count < 1 or any(width % count for width in widths):
            raise UserError(
                f"{count!r} heads do not divide the query width of level {number}, "
                f"{' or '.join(map(str, sorted(widths)))}.",
                "Give the number of heads that the network was pruned with.",
            )
    return list(counts)


def _settings(largest: Plain, settings: Mapping[str, Any], source: Source) -> dict[str, Any]:
    facts: dict[str, Any] = {"image_size": 224, **largest.facts}
    for key, value in settings.items():
        if key in largest.facts and value != largest.facts[key]:
            raise UserError(
                f"{key} is set to {value}, but {source.path} has {largest.facts[key]}.",
                f"Leave {key} out of model.config.",
            )
        if key not in (*facts, "specs"):
            raise UserError(
                f'The format elastoformer has no setting "{key}".',
                did_you_mean(key, [*_OPTIONS, *facts, "specs"]),
            )
        facts[key] = value
    return facts


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(
            f"norm_eps is {value!r}, where a small number above 0 is needed.",
            "Leave it out for Hugging Face's 1e-12.",
        )
    return float(value)


def _notes(
    network: Network, rungs: Sequence[Rung], nesting: Nesting, options: Mapping[str, Any]
) -> list[str]:
    notes = []
    heads = [rung.heads for rung in rungs if rung.heads is not None]
    if heads:
        source = "as the original code guesses" if options["heads"] == "official" else "as given"
        notes.append(f"Heads of each level: {', '.join(map(str, heads))}, {source}.")
        groups = [group for group in network.groups(0) if group.endswith(".inner")]
        for count in sorted(set(heads)):
            kept = [[rung.kept[group] for rung in rungs] for group in groups]
            if not all(same_in_all_parts(levels, count) for levels in kept):
                notes.append(
                    f"With {count} heads the levels do not keep the same offsets of every head, so "
                    "the network was pruned with another number; rows are taken one by one."
                )
    largest = len(rungs)
    for number, differing in enumerate(nesting.differences[:-1], 1):
        drifted = {
            name: size
            for name, size in differing.items()
            if not any(part.startswith(_NOT_SHARED) for part in _stems(name))
        }
        total = len(rungs[number - 1].tensors)
        notes.append(
            f"Level {number}: {total - len(differing)} of {total} tensors are slices of level "
            f"{largest}, bit by bit; {len(differing)} are stored for this level."
        )
        if drifted:
            worst = max(drifted, key=lambda name: drifted[name])
            notes.append(
                f"Level {number}: {len(drifted)} tensors that are frozen in training differ from "
                f"level {largest}, {worst} by {drifted[worst]:.2g}."
            )
    return notes


def _stems(name: str) -> list[str]:
    """The ends of a dotted name from which a part begins: ``a.b.c``, ``b.c``, ``c``."""
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]
