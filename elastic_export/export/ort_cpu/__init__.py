"""The ``ort-cpu`` flavour: what ONNX Runtime's CPU kernels run fastest, with default options.

Activations are asymmetric UINT8, weights symmetric INT8 per output channel (see ``saturation``).
Each file of this package has one purpose and says what it gained on the machine it was measured on
(AMD EPYC with AVX-512 VNNI, ONNX Runtime 1.32, one thread, batch 1).

- ``codes``: which tensors are quantized, and how; readers of one tensor share its codes.
- ``convolutions``: ``QLinearConv`` with everything between convolutions on integers.
- ``maps``: activations, gates and pools between convolutions, on integers.
- ``stems``: a first convolution on few channels, over blocks of pixels.
- ``linears``: ``MatMulIntegerToFloat`` with its bias.
- ``rows``: what only moves values moves bytes instead of floats.
- ``norms``: a scale and bias behind a norm become the norm's own.

Tried and left out, because slower here: ``SkipLayerNormalization`` (0.39 ms against 0.06 ms for an
addition and a norm of 197 x 384 values), ``MultiHeadAttention`` for attention with a bias (windows
of Swin: 1.76 ms against 1.61 ms for the plain operators), and one ``qkv`` product cut apart
afterwards (three products take the same time and no cut).
"""

from __future__ import annotations

import onnx_ir as ir

from elastic_export.export.attention import MICROSOFT, separate_attention
from elastic_export.export.layers import Layer
from elastic_export.export.ort_cpu.codes import Codes
from elastic_export.export.ort_cpu.convolutions import write_convolutions
from elastic_export.export.ort_cpu.linears import write_linears
from elastic_export.export.ort_cpu.norms import absorb_affine
from elastic_export.export.ort_cpu.stems import fold_stems
from elastic_export.export.projections import separate_projections
from elastic_export.export.tokens import select_tokens_early

__all__ = ["write_ort_cpu"]


def write_ort_cpu(model: ir.Model, layers: list[Layer]) -> list[str]:
    """Rewrite a clean FP32 model in place.

    Args:
        model: What ``export_fp32`` wrote.
        layers: What ``join`` found in it.

    Returns:
        One sentence for each rewrite beyond quantization.

    Raises:
        CheckFailed: A convolution's output range is unknown (BatchNorm folded after calibration).
    """
    graph = model.graph
    chosen = separate_attention(graph, [layer for layer in layers if layer.is_int8])
    separated = separate_projections(graph, chosen)
    moved = select_tokens_early(graph)
    stems = fold_stems(graph, separated)
    norms = absorb_affine(graph)
    codes = Codes(graph)
    maps = write_convolutions(codes, [la for la in stems if la.entry.op == "Conv"], stems)
    linears = write_linears(codes, [layer for layer in stems if layer.entry.op != "Conv"])
    model.opset_imports[MICROSOFT] = 1
    told = {
        "{} nodes of the last block compute only the token that is classified.": moved,
        "{} products replace projections that were cut apart.": _added(chosen, separated),
        "{} first convolution reads blocks of pixels as channels.": _changed(separated, stems),
        "{} norms take in the scale and bias behind them.": norms,
        "{} activations, gates and pools between convolutions work on integers.": maps,
        "{} GELU take their tanh form, within a quarter of the INT8 step.": linears.gelus,
        "{} products read tokens that were moved as bytes.": linears.moved,
    }
    return [sentence.format(count) for sentence, count in told.items() if count]


def _added(before: list[Layer], after: list[Layer]) -> int:
    known = {layer.entry.node for layer in before}
    return sum(layer.entry.node not in known for layer in after)


def _changed(before: list[Layer], after: list[Layer]) -> int:
    return sum(old is not new for old, new in zip(before, after, strict=True))
