"""Reader of ELSA: N:M supernets of DeiT and Swin."""

from elastic_export.checkpoints.elsa.reader import ElsaReader

__all__ = ["ElsaReader"]
