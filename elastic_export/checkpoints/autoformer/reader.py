"""Checkpoints of AutoFormer: ``{"model", "optimizer", "lr_scheduler", "epoch", "scaler", "args"}``.

What the tensors cannot tell comes from ``args`` (the command line of the training), from the
system's YAML (``SUPERNET``, ``SEARCH_SPACE``, ``RETRAIN``) or from settings; where two of them
disagree, nothing is assumed. Source: microsoft/Cream, folder AutoFormer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from elastic_export.checkpoints.autoformer.yaml import YAML_KEYS, Choices, read_yaml
from elastic_export.checkpoints.reader import Imported, Keys, Reader, Source
from elastic_export.checkpoints.readers import register_reader
from elastic_export.checkpoints.safe import state_dict_of
from elastic_export.elastic import Supernet
from elastic_export.errors import UserError
from elastic_export.families.autoformer.config import BOUNDS, AutoFormerConfig
from elastic_export.families.counters.autoformer import autoformer_flops, autoformer_params
from elastic_export.families.published import published
from elastic_export.families.registry import family_config, get_family
from elastic_export.space import Spec

__all__ = ["AutoFormerReader"]

_MARKS = ("patch_embed_super.proj.weight", "blocks.0.attn_layer_norm.weight")
_RENAMED = ((r"patch_embed_super\.(proj\.\w+)", r"patch_embed.\1"),)
_KEPT = (
    r"cls_token|pos_embed|(norm|head)\.\w+"
    r"|blocks\.\d+\.(attn\.(qkv|proj)|attn_layer_norm|ffn_layer_norm|fc1|fc2)\.\w+"
    r"|blocks\.\d+\.attn\.rel_pos_embed_[kv]\.embeddings_table_[vh]"
)
_ARGS = {
    "gp": "gp",
    "change_qkv": "change_qkv",
    "relative_position": "relative_position",
    "no_abs_pos": "no_abs_pos",
    "max_relative_position": "max_relative_position",
    "input_size": "image_size",
    "patch_size": "patch_size",
    "nb_classes": "num_classes",
}
"""Names of the command line and ours."""
_TABLE = "blocks.0.attn.rel_pos_embed_k.embeddings_table_v"
_IN_FILE = "the args in the file"
_UNTOLD = ("gp", "change_qkv")
"""Flags that leave no trace in names and shapes."""


@register_reader
class AutoFormerReader(Reader):
    """Supernets of AutoFormer, with or without the arguments they were trained with."""

    name = "autoformer"
    system = "AutoFormer (microsoft/Cream, arXiv 2107.00651)"
    reasons = MappingProxyType({"args": "settings of the training; its flags were read"})

    def claims(self, source: Source) -> bool:
        """Files with AutoFormer's names for the patch embedding and the norms of a block."""
        return any(group.issuperset(_MARKS) for group in source.names)

    def read(self, source: Source) -> Imported:
        """Read the supernet; ``RETRAIN`` of the YAML becomes the spec ``retrain``."""
        theirs, _, given = source.split_config(YAML_KEYS)
        found = state_dict_of(source.loaded, prefer=("model", "state_dict"))
        keys = Keys(found.tensors, source.path)
        content = source.content
        args = content.get("args") if isinstance(content, Mapping) else None
        facts = _Facts(str(source.path))
        facts.learn("the tensors", _shapes(keys))
        facts.learn(_IN_FILE, _arguments(args))
        choices = read_yaml(theirs)
        facts.learn("SUPERNET", choices.supernet)
        offered = {key: value for key, value in given.items() if key in BOUNDS}
        facts.learn("the settings", {k: v for k, v in given.items() if k not in (*BOUNDS, "specs")})
        _fit(facts, keys)
        facts.complete()
        notes = [_origin(facts)]
        lists = _lists(facts, choices, offered, notes)
        specs = given.get("specs", {})
        if choices.retrain and isinstance(specs, Mapping):
            specs = {"retrain": choices.retrain, **specs}
        elif isinstance(args, Mapping) and args.get("mode") == "retrain":
            notes.append(
                "The file was trained in mode retrain, so only the network of its RETRAIN is "
                "trained; give the YAML that has it."
            )
        family = get_family("autoformer")
        config = family_config(family, {**facts.values, **lists, "specs": specs})
        assert isinstance(config, AutoFormerConfig)
        tensors = keys.rename(*_RENAMED, (f"({_KEPT})", r"\1"))
        supernet = Supernet.of_state(family, config, tensors)
        _check_specs(supernet)
        return Imported(
            supernet,
            self.name,
            stored=found.collections,
            used=found.name,
            ignored=keys.finish(),
            notes=tuple(note for note in notes if note),
            official=lambda spec: _official(config, spec),
        )


class _Facts:
    """Settings collected from several places, which must agree."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self.told_by: dict[str, str] = {}

    def learn(self, place: str, facts: Mapping[str, Any]) -> None:
        """Take what one place says.

        Raises:
            UserError: Another place says something else.
        """
        for name, value in facts.items():
            if name in self.values and self.values[name] != value:
                fix = f"Correct {name}, or leave it out: the file tells it."
                if place == _IN_FILE:
                    fix = "The args are of another network; save the model alone and give settings."
                raise UserError(
                    f"{name} is {value} by {place}, but {self.values[name]} by "
                    f"{self.told_by[name]} ({self.path}).",
                    fix,
                )
            self.values[name] = value
            self.told_by.setdefault(name, place)

    def complete(self) -> None:
        """Ask for what nothing tells.

        Raises:
            UserError: Something is missing.
        """
        missing = [flag for flag in _UNTOLD if flag not in self.values]
        if missing:
            listed = " and ".join(missing)
            flags = " ".join(f"--set {flag}=true" for flag in missing)
            raise UserError(
                f"{self.path} does not say whether the supernet was trained with {listed}: the "
                "file holds no args, and names and shapes of the tensors are the same either way.",
                f"Give what the training used, for example {flags} as in the published supernets, "
                f"or {listed} in model.config.",
            )
        for name, where, other in (
            ("image_size", "no position embedding and no args tell it", ""),
            (
                "super_heads",
                "no SUPERNET is given and no relative position tables tell it",
                ", or by the YAML of the supernet (SUPERNET and SEARCH_SPACE)",
            ),
        ):
            if name not in self.values:
                raise UserError(
                    f"{self.path} does not tell {name}: {where}.",
                    f"Give it with --set {name}=..., as {name} in model.config{other}.",
                )


def _shapes(keys: Keys) -> dict[str, Any]:
    """What names and shapes tell."""
    width, in_chans, patch, _ = _of_rank(keys, "patch_embed_super.proj.weight", 4)
    blocks = {int(m[1]) for name in keys if (m := re.match(r"blocks\.(\d+)\.", name))}
    if blocks != set(range(len(blocks))) or not blocks:
        raise UserError(
            "The file does not hold all blocks from 0 on.",
            "It is incomplete or of another system; inspect tells what it holds.",
        )
    facts: dict[str, Any] = {
        "patch_size": patch,
        "in_chans": in_chans,
        "num_classes": _of_rank(keys, "head.weight", 2)[0],
        "super_width": width,
        "super_depth": len(blocks),
        "qkv_bias": "blocks.0.attn.qkv.bias" in keys,
        "no_abs_pos": "pos_embed" not in keys,
    }
    if "pos_embed" in keys:
        patches = _of_rank(keys, "pos_embed", 3)[1] - 1
        side = round(patches**0.5)
        if side * side != patches or not side:
            raise UserError(
                f"The position embedding has {patches} patch entries, which is not a square grid.",
                "Only square inputs are read; convert the checkpoint first.",
            )
        facts["image_size"] = side * patch
    facts["relative_position"] = _TABLE in keys
    if _TABLE in keys:
        facts["max_relative_position"] = _of_rank(keys, _TABLE, 2)[0] // 2 - 1
    return facts


def _fit(facts: _Facts, keys: Keys) -> None:
    """Sizes that shapes tell after rounding: as given, if that gives the shapes, else derived.

    Raises:
        UserError: The given size gives another shape.
    """
    hidden, width = _of_rank(keys, "blocks.0.fc1.weight", 2)
    ratio = hidden / width
    exact = ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
    checks = [("super_mlp_ratio", exact, lambda value: int(width * value) == hidden)]
    if _TABLE in keys:
        units = max(_of_rank(keys, _TABLE, 2)[1], 1)
        checks.append(("super_heads", width // units, lambda value: width // value == units))
    for name, derived, fits in checks:
        given = facts.values.get(name, derived)
        if not isinstance(given, int | float) or given < 1 or not fits(given):
            raise UserError(
                f"{name} is {given} by {facts.told_by[name]}, but {derived:g} by the tensors "
                f"({facts.path}).",
                f"Correct {name}, or leave it out: the file tells it.",
            )
        facts.learn(facts.told_by.get(name, "the tensors"), {name: given})


def _of_rank(keys: Keys, name: str, rank: int) -> tuple[int, ...]:
    shape = keys.shape(name)
    if len(shape) != rank:
        raise UserError(
            f"{name} has shape {shape}, where {rank} dimensions are needed.",
            "The file is not an AutoFormer checkpoint, or is damaged.",
        )
    return shape


def _arguments(args: Any) -> dict[str, Any]:
    """The arguments that matter; the limit of relative positions only where there are any."""
    if not isinstance(args, Mapping):
        return {}
    facts = {ours: args[name] for name, ours in _ARGS.items() if name in args}
    if not facts.get("relative_position"):
        facts.pop("max_relative_position", None)
    return facts


def _lists(
    facts: _Facts, choices: Choices, given: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """The choices: from the settings, from SEARCH_SPACE, or those of a published supernet."""
    lists: dict[str, Any] = {**choices.space, **given}
    missing = [name for name in BOUNDS if name not in lists]
    if missing:
        known = _published(facts.values)
        if known is None:
            raise UserError(
                f"{facts.path} does not hold the search space: {', '.join(missing)}.",
                "Give the YAML of the supernet (SUPERNET and SEARCH_SPACE), or "
                + " ".join(f"--set {name}=[...]" for name in missing)
                + ".",
            )
        title, entry = known
        lists = {**_joined(entry["choices"], *entry["subnets"].values()), **lists}
        notes.append(
            f"The sizes are those of the published supernet {title}, so its space is used."
        )
    if choices.retrain:
        lists = _joined(lists, choices.retrain)
        notes.append("The values of RETRAIN are among the choices; its network is spec retrain.")
    return lists


def _joined(lists: Mapping[str, Any], *specs: Mapping[str, Any]) -> dict[str, Any]:
    """Add the values of specs to lists of choices."""
    joined = dict(lists)
    for name in BOUNDS:
        values = [item for spec in specs for item in _listed(spec[name])]
        listed = _listed(joined[name])
        # What is no number stays as it is; the family's check says so.
        if all(isinstance(item, int | float) for item in listed):
            joined[name] = sorted({*listed, *values})
    return joined


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _published(sizes: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    for title, entry in published("autoformer").items():
        if all(sizes.get(name) == value for name, value in entry["supernet"].items()):
            return title, entry
    return None


def _origin(facts: _Facts) -> str:
    flags = ", ".join(f"{f} {facts.values[f]} ({facts.told_by[f]})" for f in _UNTOLD)
    return f"Flags that names and shapes do not show: {flags}."


def _check_specs(supernet: Supernet) -> None:
    """Refuse named specs that are not in the space before anyone asks for them."""
    for name in supernet.family.named_specs(supernet.config):
        supernet.spec(name)


def _official(config: AutoFormerConfig, spec: Spec) -> dict[str, float]:
    return {
        "params": autoformer_params(config, spec),
        "flops": autoformer_flops(config, spec),
    }
