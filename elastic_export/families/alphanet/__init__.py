"""Family ``alphanet``: AttentiveNAS and AlphaNet."""

from elastic_export.families.alphanet.family import AlphaNet, AlphaNetConfig, PlainAlphaNet

__all__ = ["AlphaNet", "AlphaNetConfig", "PlainAlphaNet"]
