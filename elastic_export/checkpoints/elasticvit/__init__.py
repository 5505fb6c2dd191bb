"""Reader of ElasticViT."""

from elastic_export.checkpoints.elasticvit.reader import ElasticVitReader

__all__ = ["ElasticVitReader"]
