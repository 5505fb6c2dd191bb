"""Family ``swin``: Swin Transformer."""

from elastic_export.families.swin.family import PlainSwin, Swin, SwinConfig, SwinStage

__all__ = ["PlainSwin", "Swin", "SwinConfig", "SwinStage"]
