"""Elastic checkpoints in; verified, sparse, quantized and measured networks out."""

__version__ = "0.1.0"
