"""Family ``vit``: DeiT and ViT."""

from elastic_export.families.vit.family import PlainVit, Vit, VitConfig

__all__ = ["PlainVit", "Vit", "VitConfig"]
