"""Reader of Elastoformer: nested levels of ViT, ResNet and VGG."""

from elastic_export.checkpoints.elastoformer.reader import ElastoformerReader, guessed_heads

__all__ = ["ElastoformerReader", "guessed_heads"]
