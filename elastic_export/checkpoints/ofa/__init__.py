"""Reader of Once-for-all: supernets and specialized networks."""

from elastic_export.checkpoints.ofa.reader import OfaReader

__all__ = ["OfaReader"]
