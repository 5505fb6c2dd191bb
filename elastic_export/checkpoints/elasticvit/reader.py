"""Checkpoints of ElasticViT's supernet, with or without its configuration.

Source: Tang et al., ElasticViT (arXiv 2303.09730); facts from microsoft/Moonlit, folder ElasticViT.
"""

from __future__ import annotations

import re
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from elastic_export.checkpoints.elasticvit.settings import read_settings
from elastic_export.checkpoints.elasticvit.sizes import Sizes, sizes_of
from elastic_export.checkpoints.reader import Imported, Keys, Reader, Source
from elastic_export.checkpoints.readers import register_reader
from elastic_export.checkpoints.safe import state_dict_of
from elastic_export.elastic import Supernet
from elastic_export.elastic.rules_windows import relative_position_index
from elastic_export.errors import UserError
from elastic_export.families import get_family
from elastic_export.families.counters.elasticvit import elasticvit_mflops
from elastic_export.families.elasticvit import ElasticVitConfig
from elastic_export.space import Spec

__all__ = ["ElasticVitReader"]

MARKS = ("first_conv.weight", "conv_stem.layers.0.0.dw_conv.weight", "classifer.weight")
"""Names that every supernet of the system holds; the last is spelled so there."""

REASONS = {
    "bank": "subnets that training remembered, with their losses",
    "arch": "the name of the supernet",
    "extras": "scores of the training run",
    "state_dict": "the system evaluates model_ema wherever it is present",
    "model_ema": "empty",
}
"""Why the other entries of a file are left out."""

IN_BLOCK = {
    "norm1": "attn.norm",
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "dw_v_conv": "attn.v_conv",
    "attention_bias": "attn.bias_table",
    "reduction": "reduction",
}
"""What the parts of a transformer block's first half are called here."""

INDEX = r"feature_exactor\.(\d+)\.layers\.(\d+)\.relative_position_index"


@register_reader
class ElasticVitReader(Reader):
    """``state_dict`` or ``model_ema`` of a training checkpoint, or a bare state dict."""

    name = "elasticvit"
    system = "ElasticViT (microsoft/Moonlit)"
    reasons = MappingProxyType(REASONS)

    def claims(self, source: Source) -> bool:
        """A collection with the stem, and the classifier spelled as there."""
        return any(group.issuperset(MARKS) for group in source.names)

    def read(self, source: Source) -> Imported:
        """Take the averaged weights where there are any; sizes come from shapes and settings."""
        found = state_dict_of(source.loaded, prefer=("model_ema", "state_dict", "model"))
        keys = Keys(found.tensors, source.path)
        sizes = sizes_of(keys, source.path)
        settings = read_settings(source, sizes)
        config = settings.config
        _check_indices(keys, source, sizes)
        supernet = Supernet.of_state(get_family("elasticvit"), config, _renamed(keys))
        counter = partial(_official, config, head=settings.head, talking=settings.talking)
        return Imported(
            supernet,
            self.name,
            stored=found.collections,
            used=found.name,
            ignored=keys.finish(),
            notes=settings.notes,
            official=counter,
        )


def _official(
    config: ElasticVitConfig, spec: Spec, *, head: str, talking: tuple[bool, ...]
) -> dict[str, float]:
    return {"flops_m": elasticvit_mflops(config, spec, head=head, talking=talking)}


def _check_indices(keys: Keys, source: Source, sizes: Sizes) -> None:
    """Compare the stored indices with those the slice rules use; then they are not needed."""
    for name in keys:
        match = re.fullmatch(INDEX, name)
        if match is None or int(match[1]) >= len(sizes.stages):
            continue
        side = sizes.stages[int(match[1])].side
        stored = keys.take(name)
        if stored.shape != (side**2, side**2) or not torch.equal(
            stored.long(), relative_position_index(side)
        ):
            raise UserError(
                f"{name} of {source.path} does not number the relative positions of a "
                f"{side} x {side} map row by row.",
                "The file is of another version of the system and would be read wrongly.",
            )
        keys.ignored[name] = "an index that follows from the size of the map; it was checked"


def _renamed(keys: Keys) -> dict[str, Tensor]:
    """Every tensor with a name this reader knows, under its name in the family."""
    renamed: dict[str, Tensor] = {}
    for name in keys:
        new = _new_name(name)
        if new is not None:
            renamed[new] = keys.take(name)
    return renamed


def _new_name(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] in ("first_conv", "first_conv_bn", "pre_head_0", "pre_head_norm_0", "pre_head_1"):
        return name
    if parts[0] == "classifer":
        return ".".join(["classifier", *parts[1:]])
    if match := re.fullmatch(r"conv_stem\.layers\.(\d+)\.0\.(.+)", name):
        return f"stem.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"feature_exactor\.(\d+)\.layers\.(\d+)\.0\.(.+)", name):
        return f"stages.{match[1]}.{match[2]}.{match[3]}"
    if match := re.fullmatch(r"feature_exactor\.(\d+)\.layers\.(\d+)\.([^.]+)((?:\..+)?)", name):
        stage, layer, part, rest = match.groups()
        block, second = divmod(int(layer), 2)
        if second and part in ("norm1", "fc1", "fc2"):
            return f"stages.{stage}.{block}.ffn.{part.replace('norm1', 'norm')}{rest}"
        if not second and part in IN_BLOCK:
            return f"stages.{stage}.{block}.{IN_BLOCK[part]}{rest}"
    return None
