"""A supernet is its parameters plus a table of slice rules; a descendant is a function of them."""

from elastic_export.elastic.descendant import Descendant
from elastic_export.elastic.extract import extract
from elastic_export.elastic.family import Dim, Family
from elastic_export.elastic.recalibrate import has_batchnorm, recalibrate
from elastic_export.elastic.supernet import Supernet

__all__ = [
    "Descendant",
    "Dim",
    "Family",
    "Supernet",
    "extract",
    "has_batchnorm",
    "recalibrate",
]
