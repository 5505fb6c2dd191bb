"""Plain networks with timm's parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elastic_export.checkpoints.plain.folders import hub_config, load_hub
from elastic_export.checkpoints.plain.names import ARCH, finish
from elastic_export.checkpoints.plain.names_timm import from_timm
from elastic_export.checkpoints.reader import Imported, Reader, Source
from elastic_export.checkpoints.readers import register_reader

__all__ = ["TimmReader"]


@register_reader
class TimmReader(Reader):
    """Names and shapes as ``timm.create_model(...).state_dict()`` has them."""

    name = "timm"
    system = "a plain network with timm's names"
    companions = ("config.json",)

    def claims(self, source: Source) -> bool:
        """Anything that is a file; what it is not, :meth:`read` says.

        Of folders, those that timm saves for the Hugging Face hub.
        """
        return not source.path.is_dir() or "architecture" in hub_config(source.path)

    def read(self, source: Source) -> Imported:
        """Find the family by its marks, its config by shapes and the settings given."""
        found = load_hub(source)
        config = hub_config(source.path) if source.path.is_dir() else {}
        if isinstance(config.get("architecture"), str) and ARCH not in source.config:
            source = Source(
                source.path, {**source.config, ARCH: config["architecture"]}, source.family
            )
        named = from_timm(source, found.tensors)
        size = _input_size(config)
        if size is not None and named.family in ("resnet", "vgg", "convnext"):
            named.assumed["image_size"] = size
        return finish(source, found, named, self.name)


def _input_size(config: Mapping[str, Any]) -> int | None:
    """The side of the images that timm's ``config.json`` was evaluated on."""
    told = config.get("pretrained_cfg")
    shape = told.get("input_size") if isinstance(told, Mapping) else None
    return int(shape[-1]) if isinstance(shape, list) and isinstance(shape[-1], int) else None
