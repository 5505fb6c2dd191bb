"""The quantize stage, a file for each of its parts.

``weights`` smooths, calibrates and trains; ``accuracy`` keeps the guard; ``placing`` keeps INT8
where it is measured to be faster; ``trials`` writes the files the last two measure; ``stage`` puts
them in order and into the store.
"""

from elastic_export.pipeline.quantizing.stage import (
    check_placement,
    quantize,
    record_for,
    weights_change,
)

__all__ = ["check_placement", "quantize", "record_for", "weights_change"]
