"""Reader of AutoFormer."""

from elastic_export.checkpoints.autoformer.reader import AutoFormerReader

__all__ = ["AutoFormerReader"]
