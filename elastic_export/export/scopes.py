"""Which module each attention of an exported graph belongs to.

torch's exporter notes for every node the modules it came from. Its own and our rewrites lose such
notes, so the name is read from the raw graph, carried through them on the Softmax, which no rewrite
touches, and given to the nodes of the attention at the end.
"""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

from elastic_export.export.products import find_products
from elastic_export.export.table import AttentionEntry

__all__ = ["mark_attentions", "name_attentions"]

SCOPES = "pkg.torch.onnx.name_scopes"
MARK = "attention of module "


def mark_attentions(graph: ir.Graph) -> None:
    """Name the Softmax of every attention in the exporter's raw graph after its module.

    The module is the one whose forward computes the first product, as in ``quantize.products``. An
    attention whose origin the exporter did not note gets no mark.
    """
    for number, found in enumerate(find_products(graph)):
        module = _module_of(found.first)
        if module is not None:
            found.softmax.name = f"{MARK}{number}:{module}"


def name_attentions(graph: ir.Graph) -> tuple[AttentionEntry, ...]:
    """Name the nodes of every marked attention after its module and return where they are."""
    entries = []
    seen: Counter[str] = Counter()
    for found in find_products(graph):
        mark, _, module = (found.softmax.name or "").partition(":")
        if not mark.startswith(MARK):
            continue
        seen[module] += 1
        label = module if seen[module] == 1 else f"{module}.{seen[module]}"
        found.first.name, found.second.name = f"{label}.first", f"{label}.second"
        found.softmax.name = f"{label}.softmax"
        entries.append(
            AttentionEntry(module, found.first.name, found.softmax.name, found.second.name)
        )
    return tuple(entries)


def _module_of(node: ir.Node) -> str | None:
    """Read the dotted name of the innermost module that a node came from."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, ""))
    except (ValueError, SyntaxError):
        return None
    # The last scope is the operation itself, the first the whole network with no name.
    return scopes[-2] if isinstance(scopes, list) and len(scopes) >= 2 else None
