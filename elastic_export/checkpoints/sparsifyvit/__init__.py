"""Reader of SparsifyViT: one-shot pruned DeiT."""

from elastic_export.checkpoints.sparsifyvit.reader import SparsifyVitReader

__all__ = ["SparsifyVitReader"]
