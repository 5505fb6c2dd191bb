"""Once-for-all: supernets of both key generations, and folders of specialized networks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, cast

from elastic_export.checkpoints.ofa.infer import Shapes, infer_mbv3
from elastic_export.checkpoints.ofa.infer_resnet import infer_resnet
from elastic_export.checkpoints.ofa.names import (
    canonical_names,
    is_supernet,
    mbv3_name,
    resnet_name,
)
from elastic_export.checkpoints.ofa.netconfig import read_image_size, read_net
from elastic_export.checkpoints.ofa.special import special_mbv3
from elastic_export.checkpoints.ofa.special_resnet import special_resnet
from elastic_export.checkpoints.reader import Imported, Keys, Reader, Source
from elastic_export.checkpoints.readers import register_reader
from elastic_export.checkpoints.safe import StateDict, load_tensors, state_dict_of
from elastic_export.config.base import Schema
from elastic_export.elastic import Supernet
from elastic_export.elastic.family import Family
from elastic_export.errors import UserError
from elastic_export.families import get_family
from elastic_export.families.counters.ofa import official_counts
from elastic_export.families.ofa.mbv3_config import STAGES
from elastic_export.families.ofa.resnet50d_config import BASE_DEPTHS
from elastic_export.families.registry import family_config

__all__ = ["OfaReader"]

_RECALIBRATE = (
    "The BatchNorm statistics fit no single network of a supernet: estimate them anew after "
    "extraction (the authors average the biased variance over 2000 training images)."
)


class _Kind(NamedTuple):
    """How one family is told, inferred and named."""

    family: str
    net: str
    marks: tuple[str, ...]
    infer: Callable[[Shapes, Mapping[str, Any], bool], dict[str, Any]]
    special: Callable[[Any], dict[str, Any]]
    official_name: Callable[[Any, str], str]
    assumed: Mapping[str, str]


def _mbv3(config: Any, name: str) -> str:
    depths = [max(config.depths(stage)) for stage in range(1, len(STAGES) + 1)]
    return mbv3_name(name, depths, config.expands)


def _resnet(config: Any, name: str) -> str:
    depths = [config.blocks(stage) for stage in range(1, len(BASE_DEPTHS) + 1)]
    return resnet_name(name, depths, config.keeps_stem(max(config.stem_depths)))


_CHOICES = {
    "expand_ratio_list": "expansions below the largest",
    "depth_list": "depths below the largest",
    "resolution": "input sizes",
    "bn_eps": "the BatchNorm epsilon",
}
_KINDS = (
    _Kind(
        "ofa_mbv3",
        "MobileNetV3",
        ("final_expand_layer.conv.weight", "feature_mix_layer.conv.weight"),
        infer_mbv3,
        special_mbv3,
        _mbv3,
        _CHOICES,
    ),
    _Kind(
        "ofa_resnet50d",
        "ResNets",
        (
            "input_stem.0.conv.conv.weight",
            "input_stem.0.conv.weight",
        ),
        infer_resnet,
        special_resnet,
        _resnet,
        {"width_mult_list": "widths below the largest", **_CHOICES},
    ),
)


@register_reader
class OfaReader(Reader):
    """Files ``{"state_dict"}`` of supernets, and folders with ``net.config`` and ``init``."""

    name = "ofa"
    system = "Once-for-all (Cai et al., arXiv 1908.09791; mit-han-lab/once-for-all)"

    def claims(self, source: Source) -> bool:
        """A folder with ``net.config``, or keys of one of the supernets."""
        if source.path.is_dir():
            return (source.path / "net.config").is_file()
        return any(_kind(group) is not None for group in source.names)

    def read(self, source: Source) -> Imported:
        """Read a supernet, or one specialized network.

        Raises:
            UserError: A tensor or a field is missing or unknown, or a setting contradicts the file.
        """
        if source.path.is_dir():
            return _specialized(source)
        found = state_dict_of(source.loaded, prefer=("state_dict",))
        kind = _kind(found.tensors)
        if kind is None:
            raise UserError(
                f"{source.path} has the names of no Once-for-all MobileNetV3 or ResNet50D.",
                "ProxylessNAS supernets are not read; inspect tells what the file holds.",
            )
        family = get_family(kind.family)
        given = _checked(family, source.config)
        names = canonical_names(found.tensors, source.path)
        shapes = {name: tuple(found.tensors[key].shape) for name, key in names.items()}
        empty = next((names[name] for name, shape in shapes.items() if 0 in shape), None)
        if empty is not None:
            raise UserError(f"{empty} in {source.path} is empty.", "Use another copy of the file.")
        elastic = is_supernet(found.tensors)
        config = family_config(family, _json(kind.infer(shapes, given, elastic)))
        notes = [_RECALIBRATE] if elastic else ["The file holds one network, without choices."]
        assumed = [
            f"{said} ({name} {_said(getattr(config, name))})"
            for name, said in kind.assumed.items()
            if (elastic or not name.endswith("_list"))
            and name not in given
            and not (name == "resolution" and "image_size" in given)
        ]
        if assumed:
            notes.append(
                f"The file does not tell {', '.join(assumed)}: the published values are assumed; "
                "give others as settings."
            )
        return _imported(source, found, names, kind, config, notes)


def _specialized(source: Source) -> Imported:
    net = read_net(source.path / "net.config")
    kind = next(kind for kind in _KINDS if kind.net == net.name)
    settings = kind.special(net)
    family = get_family(kind.family)
    size = read_image_size(source.path)
    given = _checked(family, source.config)
    wanted = given.get("image_size", max(given.get("resolution", (size or 0,))))
    if not wanted:
        raise UserError(
            f"{source.path} has no run.config, so the input size is not known.",
            "Give it as model.config.image_size in a recipe, or with --set image_size=224.",
        )
    settings |= {"image_size": size or wanted, "specs": given.get("specs", {})}
    config = family_config(family, _json(settings))
    for name, value in given.items():
        if getattr(config, name) != value:
            raise UserError(
                f"The settings say {_said(value)} for {name}, but the folder says "
                f"{_said(getattr(config, name))}.",
                f"Leave {name} out; a specialized network has no choices.",
            )
    init = source.path / "init"
    if not init.is_file():
        raise UserError(
            f"{source.path} has no file init, which holds the weights.", "Copy the whole folder."
        )
    found = state_dict_of(load_tensors(init), prefer=("state_dict",))
    names = canonical_names(found.tensors, init)
    return _imported(source, found, names, kind, config, ["One network, without choices."])


def _imported(
    source: Source,
    found: StateDict,
    names: Mapping[str, str],
    kind: _Kind,
    config: Schema,
    notes: list[str],
) -> Imported:
    family = get_family(kind.family)
    keys = Keys(found.tensors, source.path)
    stored = family.stored(config)
    tensors = {}
    for name, tensor in (*stored.named_parameters(), *stored.named_buffers()):
        key = names.get(official := kind.official_name(config, name), official)
        if keys.shape(key) != tuple(tensor.shape):
            raise UserError(
                f"{key} in {source.path} has the shape {keys.shape(key)}, but these settings need "
                f"{tuple(tensor.shape)}.",
                "Correct the settings given, or leave them out to have them read from the file.",
            )
        tensors[name] = keys.take(key)
    return Imported(
        Supernet.of_state(family, config, tensors),
        "ofa",
        stored=found.collections,
        used=found.name,
        ignored=keys.finish(),
        notes=tuple(notes),
        official=lambda spec: official_counts(cast("Any", family), config, spec),
    )


def _kind(names: Collection[str]) -> _Kind | None:
    return next((kind for kind in _KINDS if any(mark in names for mark in kind.marks)), None)


def _checked(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """The user's settings, of the right types; a single number counts as a list of one."""
    if "arch" in config:
        raise UserError(
            "The setting arch is read from net.config and cannot be given.",
            "Write an arch as a spec instead: ks, e and d are names of axes.",
        )
    given = {
        name: [value] if name.endswith("_list") and isinstance(value, int | float) else value
        for name, value in config.items()
    }
    checked = family_config(family, given)
    return {name: getattr(checked, name) for name in given}


def _json(settings: Mapping[str, Any]) -> dict[str, Any]:
    if "image_size" in settings and "resolution" not in settings:
        return {**settings, "resolution": (settings["image_size"],)}
    return dict(settings)


def _said(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
