"""Families of networks: one file each gives space, plain module and layout."""

from elastic_export.families.registry import families, get_family

__all__ = ["families", "get_family"]
