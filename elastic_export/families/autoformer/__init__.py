"""Family ``autoformer``."""

from elastic_export.families.autoformer.family import AutoFormer, AutoFormerConfig, PlainAutoFormer

__all__ = ["AutoFormer", "AutoFormerConfig", "PlainAutoFormer"]
