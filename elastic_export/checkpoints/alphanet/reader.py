"""Checkpoints of AttentiveNAS and AlphaNet: ``{"epoch", "args", "state_dict", ...}``.

The search space lies in the YAML of the training (``supernet_config``), which ``args`` may repeat.
Blocks are numbered through in the file; which stage they belong to follows from the largest depths.
Source: facebookresearch/AttentiveNAS and facebookresearch/AlphaNet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from elastic_export.checkpoints.alphanet.yaml import YAML_KEYS, read_models, read_supernet
from elastic_export.checkpoints.reader import Imported, Keys, Reader, Source
from elastic_export.checkpoints.readers import register_reader
from elastic_export.checkpoints.safe import state_dict_of
from elastic_export.elastic import Supernet
from elastic_export.errors import UserError
from elastic_export.families.alphanet.config import AlphaNetConfig
from elastic_export.families.counters.alphanet import alphanet_mflops, alphanet_params
from elastic_export.families.registry import family_config, get_family

__all__ = ["AlphaNetReader"]

_MARKS = {
    "first_conv.conv.conv.weight",
    "blocks.0.mobile_inverted_conv.depth_conv.conv.conv.weight",
    "classifier.linear.linear.weight",
}
_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_LAYERS = (
    (r"mobile_inverted_conv\.inverted_bottleneck\.conv\.conv\.weight", "conv_pw.weight"),
    (rf"mobile_inverted_conv\.inverted_bottleneck\.bn\.bn\.{_NORM}", r"bn1.\g<1>"),
    (r"mobile_inverted_conv\.depth_conv\.conv\.conv\.weight", "conv_dw.weight"),
    (rf"mobile_inverted_conv\.depth_conv\.bn\.bn\.{_NORM}", r"bn2.\g<1>"),
    (
        r"mobile_inverted_conv\.depth_conv\.se\.fc\.(reduce|expand)\.(weight|bias)",
        r"se.conv_\g<1>.\g<2>",
    ),
    (r"mobile_inverted_conv\.point_linear\.conv\.conv\.weight", "conv_pwl.weight"),
    (rf"mobile_inverted_conv\.point_linear\.bn\.bn\.{_NORM}", r"bn3.\g<1>"),
    (r"shortcut\.conv\.conv\.weight", "shortcut.weight"),
)
"""Names within a block and ours."""
_ENDS = (
    (r"first_conv\.conv\.conv\.weight", "conv_stem.weight"),
    (rf"first_conv\.bn\.bn\.{_NORM}", r"bn_stem.\g<1>"),
    (r"last_conv\.(final_expand_layer\.)?conv\.conv\.weight", "conv_head.weight"),
    (rf"last_conv\.(?:final_expand_layer\.)?bn\.bn\.{_NORM}", r"bn_head.\g<1>"),
    (r"last_conv\.feature_mix_layer\.conv\.conv\.weight", "conv_mix.weight"),
    (r"classifier\.linear\.linear\.(weight|bias)", r"classifier.\g<1>"),
)
_NOTES = (
    "The BatchNorm statistics in the file fit no network: estimate them anew after extraction "
    "(the systems average 64 batches of 256 training images).",
    "The weights that AttentiveNAS and AlphaNet published are under CC-BY-NC 4.0, which allows no "
    "commercial use.",
)
_HOW = "Give the YAML the supernet was trained by, which holds supernet_config."


@register_reader
class AlphaNetReader(Reader):
    """Supernets of AttentiveNAS and AlphaNet, whose files are alike."""

    name = "alphanet"
    system = "AttentiveNAS / AlphaNet (facebookresearch, arXiv 2011.09011 and 2102.07954)"
    reasons = MappingProxyType({"args": "settings of the training; its search space was read"})

    def claims(self, source: Source) -> bool:
        """Files with the doubled names of a dynamic convolution and of its block."""
        return any(group >= _MARKS for group in source.names)

    def read(self, source: Source) -> Imported:
        """Read the supernet by the YAML given, by the args in the file, or as the published one."""
        theirs, _, given = source.split_config(YAML_KEYS)
        found = state_dict_of(source.loaded, prefer=("state_dict",))
        keys = Keys(found.tensors, source.path)
        args = source.content.get("args")
        settings, origin = _settings(theirs, args if isinstance(args, Mapping) else {})
        _agree(settings, _shapes(keys), "the tensors")
        specs = given.get("specs", {})
        if isinstance(specs, Mapping):
            specs = {**read_models(theirs.get("pareto_models")), **specs}
        chosen = {**settings, **given, "specs": specs}
        if "resolution" in given and "image_size" not in given:
            chosen["image_size"] = _largest(given["resolution"])
        family = get_family("alphanet")
        config = family_config(family, chosen)
        assert isinstance(config, AlphaNetConfig)
        keys.ignore(r".*\.bn_tracking\.[01]\..*", "statistics of two networks, kept for logging")
        try:
            tensors = keys.rename(*_ENDS) | _blocks(keys, config)
            ignored = keys.finish()
            supernet = Supernet.of_state(family, config, tensors)
        except UserError as error:
            if "resolution" in settings:
                raise
            raise UserError(
                f"{source.path} does not say its search space, and its tensors are not those of "
                "the published one.",
                _HOW,
            ) from error
        _check_specs(supernet)
        return Imported(
            supernet,
            self.name,
            stored=found.collections,
            used=found.name,
            ignored=ignored,
            notes=(f"Search space: {origin}.", *_NOTES),
            official=lambda spec: {
                "mflops": alphanet_mflops(config, spec),
                "params": alphanet_params(config, spec),
            },
        )


def _settings(theirs: Mapping[str, Any], args: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Family settings from the YAML and the args, and in words where the space comes from."""
    merged: dict[str, Any] = {}
    for place, part in (("the args in the file", args), ("the YAML", theirs)):
        told: dict[str, Any] = {}
        if "supernet_config" in part:
            told |= read_supernet(part["supernet_config"])
        told |= {
            ours: part[name]
            for name, ours in (("n_classes", "num_classes"), ("bn_eps", "bn_eps"))
            if name in part
        }
        if "bn_eps" in told:
            told["bn_eps"] = _number("bn_eps", told["bn_eps"])
        _agree(merged, told, place)
        merged |= told
    places = [
        place
        for place, part in (("the YAML", theirs), ("the args in the file", args))
        if "supernet_config" in part
    ]
    return merged, places[0] if places else "the published one, as the file holds no other"


def _agree(known: dict[str, Any], told: Mapping[str, Any], place: str) -> None:
    """Take what one place says.

    Raises:
        UserError: It contradicts what is known.
    """
    for name, value in told.items():
        if known.setdefault(name, value) != value:
            raise UserError(
                f"{name} is {value} by {place}, but {known[name]} by what else is given.",
                "Give the YAML this supernet was trained by.",
            )


def _shapes(keys: Keys) -> dict[str, Any]:
    classes, stem = (
        keys.shape("classifier.linear.linear.weight"),
        keys.shape("first_conv.conv.conv.weight"),
    )
    if len(classes) != 2 or len(stem) != 4:
        raise UserError(
            f"The classifier has shape {classes} and the first convolution {stem}, where 2 and 4 "
            "dimensions are needed.",
            "The file is damaged, or of another system.",
        )
    return {"num_classes": classes[0], "in_chans": stem[1]}


def _blocks(keys: Keys, config: AlphaNetConfig) -> dict[str, Tensor]:
    """The tensors of the blocks, moved into their stages; unknown names stay in ``keys``."""
    named = [(name, m) for name in keys if (m := re.fullmatch(r"blocks\.(\d+)\.(.*)", name))]
    numbers = {int(match[1]) for _, match in named}
    depths = [max(stage.depth) for stage in config.stages]
    if numbers != set(range(sum(depths))):
        raise UserError(
            f"The file holds {len(numbers)} blocks, but its supernet_config has {sum(depths)}.",
            _HOW,
        )
    places = [f"stages.{s}.{b}." for s, depth in enumerate(depths) for b in range(depth)]
    tensors: dict[str, Tensor] = {}
    for name, match in named:
        for pattern, ours in _LAYERS:
            if re.fullmatch(pattern, match[2]):
                layer = re.sub(pattern, ours, match[2])
                tensors[places[int(match[1])] + layer] = keys.take(name)
                break
    return tensors


def _check_specs(supernet: Supernet) -> None:
    """Refuse named specs that are not in the space before anyone asks for them."""
    for name in supernet.family.named_specs(supernet.config):
        supernet.spec(name)


def _number(name: str, value: Any) -> float:
    """A number; YAML reads 1e-5, without a dot, as text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {value!r}, which is no number.", "Correct the YAML.") from None


def _largest(resolution: Any) -> Any:
    """The largest of well-formed choices; anything else is for the family's check to refuse."""
    listed = resolution if isinstance(resolution, list | tuple) else [resolution]
    numbers = [v for v in listed if isinstance(v, int)]
    return max(numbers) if numbers else 1
