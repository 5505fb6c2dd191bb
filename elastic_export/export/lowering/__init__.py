"""Lower a clean graph to the opset that an older runtime reads.

Asking torch's exporter for opset 13 or 17 gives 18, and the general converters fail on these graphs
or write invalid ones. What our FP32 graphs hold is small enough for a table: each operator that
changed between the two opsets is rewritten with operators that have not (``decompose``,
``signatures``), and anything else that the wanted opset does not know is an error that names it.
After a lowering, every node is held against onnx's own schema of the wanted opset.

A runtime of that age chooses its precisions itself, so the nodes that overflow FP16 are marked for
it (``pins``).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx
import onnx_ir as ir

from elastic_export.errors import CheckFailed
from elastic_export.export.files import load_model, save_model
from elastic_export.export.lowering.decompose import DECOMPOSED, FIRST_OPSET
from elastic_export.export.lowering.pins import SUFFIX, pin, pinned_nodes
from elastic_export.export.lowering.signatures import lower_signature
from elastic_export.export.lowering.weights import INT8_WEIGHTS, quantize_while_building
from elastic_export.export.simplify import tidy

__all__ = ["INT8_WEIGHTS", "LOWEST", "SUFFIX", "lower", "lower_file", "pinned_nodes"]

LOWEST = 13
"""What TensorRT 8.2 (JetPack 4.6) reads; the first opset with per-channel QuantizeLinear."""


def lower(
    model: ir.Model, opset: int, *, without: Collection[str] = (), target: str = ""
) -> list[str]:
    """Rewrite a model to an older opset, in place.

    Args:
        model: What ``export_fp32`` wrote, with static shapes, or a flavour made from it.
        opset: 13 or later; a model that is not newer only loses what ``without`` names.
        without: Operators the runtime does not know although the opset does, such as
            ``LayerNormalization`` for TensorRT 8.5; ``int8-weights`` where it takes no stored INT8
            weights, which then are quantized while the engine is built.
        target: Who wants it, to be named in errors: ``orin-nano-8gb@jp5.1``.

    Returns:
        One sentence for each kind of rewrite, such as ``"25 LayerNormalization were decomposed."``.
        ``pinned_nodes`` lists the nodes of the written file that must run in FP32.

    Raises:
        CheckFailed: A node has no form in that opset; its operator, its name and the target are
            named, with what can be done.
    """
    if opset < LOWEST:
        raise CheckFailed(
            f"Opset {opset} has no per-channel quantization, and graphs are lowered to {LOWEST} at "
            "the least.",
            f"Use a runtime that reads opset {LOWEST}.",
        )
    notes = []
    if INT8_WEIGHTS in without:
        notes += quantize_while_building(model)
    counts: dict[str, int] = {}
    for node in list(model.graph):
        if node.domain or (
            FIRST_OPSET.get(node.op_type, 0) <= opset and node.op_type not in without
        ):
            continue
        rewrite = DECOMPOSED.get(node.op_type)
        if rewrite is None:
            raise _impossible(node, opset, node.op_type in without, target)
        rewrite(node)
        if node.graph is None:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
        elif node.op_type in without:
            raise _impossible(node, opset, True, target)
    if model.opset_imports.get("", 0) > opset:
        for node in model.graph:
            lower_signature(node, opset)
        model.opset_imports[""] = opset
        for node in model.graph:
            _check(node, opset, target)
    notes += [
        f"{count} {op} {'was' if count == 1 else 'were'} decomposed."
        for op, count in sorted(counts.items())
    ]
    if pins := pin(model):
        notes.append(
            f"{len(pins)} nodes overflow FP16 and must run in FP32; their names end in {SUFFIX}."
        )
    return notes


def lower_file(
    source: Path, path: Path, opset: int, *, without: Collection[str] = (), target: str = ""
) -> list[str]:
    """Write a lowered copy of a file; see :func:`lower`."""
    model = load_model(source)
    notes = lower(model, opset, without=without, target=target)
    tidy(model)
    save_model(model, path)
    return notes


def _impossible(node: ir.Node, opset: int, unknown: bool, target: str) -> CheckFailed:
    who = target or "the runtime"
    reason = f"{who} does not know" if unknown else f"opset {opset} does not have"
    wanted = f" {target} reads opset {opset}." if target and not unknown else ""
    return CheckFailed(
        f'The node "{node.name}" is a {node.op_type}, which {reason}, and no rewrite of it is '
        f"known.{wanted}",
        "Choose a target with a newer runtime, or a network without this operator.",
    )


def _check(node: ir.Node, opset: int, target: str) -> None:
    """Hold one node against the schema that the opset has for its operator."""
    if node.domain:
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError as error:
        raise _impossible(node, opset, False, target) from error
    unknown = sorted(set(node.attributes) - set(schema.attributes))
    if unknown or len(node.inputs) > schema.max_input:
        what = f"the attribute {unknown[0]}" if unknown else f"{len(node.inputs)} inputs"
        raise CheckFailed(
            f'The node "{node.name}" ({node.op_type}) has {what}, which opset {opset} does not '
            f"know{f' and {target} therefore does not read' if target else ''}.",
            "Choose a target with a newer runtime.",
        )
