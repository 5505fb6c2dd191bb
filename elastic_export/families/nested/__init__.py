"""Family ``nested``: levels that lie within one another."""

from elastic_export.families.nested.family import (
    Nested,
    NestedConfig,
    override_name,
    tensors_of,
    unfold,
)

__all__ = ["Nested", "NestedConfig", "override_name", "tensors_of", "unfold"]
