"""FP32 ONNX from a plain module: torch's exporter, made clean, named and reproducible.

The clean file is what every flavour is written from, so it has to say where each weight went: the
exporter's own optimiser renames and merges initializers, which is why ours runs instead (see
``simplify``) and keeps the export table.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from elastic_export.errors import CheckFailed, UserError
from elastic_export.export.files import save_model
from elastic_export.export.graph import constant_of
from elastic_export.export.scopes import mark_attentions, name_attentions
from elastic_export.export.simplify import fold_weight_transposes, optimise
from elastic_export.export.table import Exported, ExportTable, TableEntry
from elastic_export.quantize.calibrate import model_digest

__all__ = ["INPUT_NAME", "OPSETS", "OUTPUT_NAME", "export_fp32"]

INPUT_NAME = "input"
OUTPUT_NAME = "logits"

OPSETS = range(18, 23)
"""torch's exporter writes 18 when asked for less; from 23 on it writes the ``Attention`` op, which
TensorRT-RTX parses but has no kernel for."""

QUIETED = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")

AXES = {"Conv": (0, 1), "MatMul": (1, 0)}
"""Output and reduction axis of a weight by node; ``Gemm`` depends on transB."""


def export_fp32(
    module: nn.Module,
    sample: Tensor,
    path: Path,
    *,
    opset: int = 20,
    dynamic_batch: bool = False,
) -> Exported:
    """Write a plain module as one FP32 ONNX file with input ``input`` and output ``logits``.

    Exporting the same weights twice gives the same bytes. Weights keep their parameter names; each
    ``Linear`` and ``Conv2d`` gives its module name to its node, and each attention to its products
    and its Softmax (``blocks.0.attn.first``, ``.softmax``, ``.second``). At opset 20 GELU is one
    ``Gelu``; LayerNorm is one ``LayerNormalization`` always; attention is MatMul, Softmax, MatMul.

    Args:
        module: Takes one ``(B, C, H, W)`` float32 tensor, returns one tensor. It is run in eval
            mode and left as it was.
        sample: One input; its shape becomes the graph's.
        path: The file to write; whole or not at all.
        opset: 18 to 22. At 18 and 19 GELU is written with ``Erf``.
        dynamic_batch: Leave the first dimension open.

    Returns:
        The path, the export table and the opset.

    Raises:
        UserError: The module cannot be traced, or the opset cannot be written.
        CheckFailed: A weight is missing, shared by several nodes, or not finite.
    """
    if opset not in OPSETS:
        raise UserError(
            f"FP32 export writes opset {OPSETS.start} to {OPSETS.stop - 1}, not {opset}.",
            f"Ask for {OPSETS.start} and lower the file for older runtimes."
            if opset < OPSETS.start
            else f"Ask for {OPSETS.stop - 1} or less.",
        )
    _check_finite(module)
    model = _trace(module, sample, opset, dynamic_batch)
    mark_attentions(model.graph)
    transposed = fold_weight_transposes(model.graph)
    with _quiet():
        optimise(model)
    table = _build_table(module, model.graph, transposed)
    table = replace(table, attentions=name_attentions(model.graph))
    _name_nodes(model.graph, table)
    written = model.opset_imports.get("")
    if written != opset:
        raise CheckFailed(
            f"The exporter wrote opset {written} where opset {opset} was asked for.",
            f"Install a torch version that writes opset {opset}, or ask for opset {written}.",
        )
    save_model(model, path)
    return Exported(Path(path), table, opset)


def _trace(module: nn.Module, sample: Tensor, opset: int, dynamic_batch: bool) -> ir.Model:
    modes = {part: part.training for part in module.modules()}
    inputs, shapes = sample.detach(), None
    if dynamic_batch:
        # torch.export takes a dimension of size 1 for a constant.
        inputs = inputs[:1].repeat(2, *[1] * (inputs.ndim - 1))
        shapes = ({0: torch.export.Dim("batch")},)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                (inputs,),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=shapes,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"torch cannot export {type(module).__name__} with an input of shape "
            f"{tuple(sample.shape)}: {_root_cause(error)}.",
            "Run the module on that input first; its forward must take one tensor, return one "
            "tensor, and not depend on the values in it.",
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode
    assert program is not None
    model = program.model
    if len(model.graph.inputs) != 1 or len(model.graph.outputs) != 1:
        raise UserError(
            f"{type(module).__name__} has {len(model.graph.inputs)} inputs and "
            f"{len(model.graph.outputs)} outputs where one of each is wanted.",
            "Wrap it in a module that takes the images and returns the logits.",
        )
    shape = model.graph.inputs[0].shape
    if dynamic_batch and shape is not None and isinstance(shape[0], int):
        raise UserError(
            f"The forward of {type(module).__name__} fixes the batch size, so it cannot stay open.",
            "Use x.shape[0] there, not len(x) or a stored number; or export a fixed batch size.",
        )
    return model


def _root_cause(error: BaseException) -> str:
    """Return the first line of the innermost error, which is the one that tells."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about its own progress off the user's terminal."""
    loggers = [logging.getLogger(name) for name in QUIETED]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _check_finite(module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckFailed(
                f'"{name}" holds NaN or infinite values.',
                "Look at the training that produced it; nothing was written.",
            )


def _build_table(module: nn.Module, graph: ir.Graph, transposed: set[str]) -> ExportTable:
    """Find the node of every ``Linear`` and ``Conv2d`` weight."""
    entries: dict[str, TableEntry] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            parameter = f"{name}.weight"
            flipped = parameter in transposed
            weight = layer.weight.detach().cpu().numpy()
            entries[parameter] = _entry(graph, parameter, weight, flipped)
    return ExportTable(entries, model_digest(module))


def _entry(graph: ir.Graph, parameter: str, weight: np.ndarray, flipped: bool) -> TableEntry:
    value = graph.initializers.get(parameter)
    if value is None or not value.uses():
        raise CheckFailed(
            f'The weight "{parameter}" is not in the exported graph.',
            "The layer is unused in the forward pass, or its weight is computed from another "
            "tensor; export a plain module that uses each of its layers.",
        )
    uses = list(value.uses())
    if len(uses) != 1:
        raise CheckFailed(
            f'The weight "{parameter}" is read by {len(uses)} nodes where one is allowed.',
            "Call each layer once in the forward pass.",
        )
    node, index = uses[0].node, uses[0].idx
    if node.op_type == "Gemm":
        axes = (0, 1) if node.attributes.get_int("transB", 0) else (1, 0)
    elif node.op_type in AXES:
        axes = AXES[node.op_type]
    else:
        raise CheckFailed(
            f'The weight "{parameter}" feeds a {node.op_type} node, not Conv, MatMul or Gemm.',
            "Use the layer as it is in the forward pass, without reshaping its weight.",
        )
    array = constant_of(value)
    assert array is not None
    same = np.array_equal(array, weight.T if flipped else weight)
    return TableEntry(
        parameter=parameter,
        initializer=parameter,
        node=parameter.rpartition(".")[0],
        op=node.op_type,
        input_index=index,
        output_axis=axes[0],
        reduction_axis=axes[1],
        transposed=flipped,
        folded=not same,
    )


def _name_nodes(graph: ir.Graph, table: ExportTable) -> None:
    """Name the nodes of layers after their modules and number the others by what they do."""
    kept = {name for e in table.attentions for name in (e.first, e.softmax, e.second)}
    taken = {entry.module for entry in table.entries.values()}
    named = {
        id(next(iter(graph.initializers[entry.initializer].uses())).node): entry.module
        for entry in table.entries.values()
    }
    counts: dict[str, int] = {}
    for node in graph:
        own = node.name if node.name in kept else named.get(id(node))
        while own is None:
            number = counts.get(node.op_type, 0)
            counts[node.op_type] = number + 1
            label = f"{node.op_type}_{number}"
            own = None if label in taken else label
        node.name = own
