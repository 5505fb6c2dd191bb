"""Hugging Face transformers: ViT, DeiT, Swin, ResNet, ConvNeXt V1 and V2.

A file, or the folder that ``save_pretrained`` writes; ``config.json`` beside the file is read.
"""

from __future__ import annotations

import re

from elastic_export.checkpoints.plain.folders import hub_config, load_hub
from elastic_export.checkpoints.plain.names import Named, finish, no_classifier, tensor_names
from elastic_export.checkpoints.plain.names_huggingface import RENAMED, kind_of
from elastic_export.checkpoints.plain.settings_huggingface import MODELS, settings_of_config
from elastic_export.checkpoints.reader import Imported, Keys, Reader, Source
from elastic_export.checkpoints.readers import register_reader
from elastic_export.errors import UserError

__all__ = ["HuggingFaceReader"]


@register_reader
class HuggingFaceReader(Reader):
    """Names as ``transformers`` has them, those of its versions before and after 5."""

    name = "huggingface"
    system = "a plain network with the names of Hugging Face transformers"
    companions = ("config.json",)

    def claims(self, source: Source) -> bool:
        """Files by layers that only these networks have, folders by ``config.json``."""
        if source.path.is_dir():
            return "model_type" in hub_config(source.path)
        return kind_of(tensor_names(source)) is not None

    def read(self, source: Source) -> Imported:
        """Rename, and take eps, heads and the like from ``config.json`` where there is one."""
        config = hub_config(source.path)
        if str(config.get("model_type")) not in MODELS:
            if "model_type" in config and source.path.is_dir():
                raise UserError(
                    f"{source.path} is a {config['model_type']}, which no family builds.",
                    f"Model types that are read: {', '.join(MODELS)}.",
                )
            config = {}  # of something else in the same folder
        found = load_hub(source)
        keys = Keys(found.tensors, source.path)
        kind = kind_of(frozenset(keys))
        if kind is None:
            raise UserError(
                f"{source.path} has no names of a ViT, DeiT, Swin, ResNet or ConvNeXt of Hugging "
                "Face transformers.",
                "Leave the format out, and inspect the file to see what it holds.",
            )
        keys.ignore(r"(?:\w+\.)?pooler\..*", "the pooler is not used for classification")
        keys.ignore(r"(?:\w+\.)?embeddings\.mask_token", "used in pre-training alone")
        if not any(re.fullmatch(r"(?:cls_)?classifier(?:\.1)?\.weight", name) for name in keys):
            raise no_classifier(source, "classifier.weight")
        tensors = RENAMED[kind](keys)
        named = Named(kind, tensors, ignored=keys.finish())
        settings_of_config(source, config, named)
        return finish(source, found, named, self.name)
