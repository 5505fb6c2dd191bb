"""Family ``convnext``: ConvNeXt and ConvNeXt V2."""

from elastic_export.families.convnext.family import (
    ConvNext,
    ConvNextConfig,
    ConvNextStage,
    PlainConvNext,
)

__all__ = ["ConvNext", "ConvNextConfig", "ConvNextStage", "PlainConvNext"]
