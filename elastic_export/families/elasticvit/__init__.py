"""Family ``elasticvit``."""

from elastic_export.families.elasticvit.family import (
    ConvStage,
    ElasticVit,
    ElasticVitConfig,
    TokenStage,
    from_arch,
)

__all__ = ["ConvStage", "ElasticVit", "ElasticVitConfig", "TokenStage", "from_arch"]
