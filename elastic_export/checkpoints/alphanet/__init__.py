"""Reader of AttentiveNAS and AlphaNet."""

from elastic_export.checkpoints.alphanet.reader import AlphaNetReader

__all__ = ["AlphaNetReader"]
