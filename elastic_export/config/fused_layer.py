"""A fused layer: what one kernel of a built engine computes and moves, as data."""

from __future__ import annotations

from typing import Literal

from elastic_export.config.base import Schema

__all__ = ["FusedLayer", "Kind", "Read", "with_batch"]

Kind = Literal[
    "conv", "gemm", "product", "attention", "softmax", "norm", "pool", "elementwise", "movement"
]
_BATCHED = ("product", "attention")


class Read(Schema):
    """Elements that the layer of that index wrote and another reads; -1 is the network's input."""

    layer: int
    elements: int


class FusedLayer(Schema):
    """One kernel, by what fusing an ONNX file leaves of it. Sizes count elements, not bytes.

    Attributes:
        name: The ONNX node that gives the kernel its work.
        kind: ``product`` multiplies two computed tensors; ``attention`` is two products with the
            Softmax between them; ``movement`` only moves values.
        nodes: All ONNX nodes in it.
        reads: Computed tensors that it reads.
        weights: Elements of constants that it reads: weights, biases, tables.
        output: Elements that it writes.
        macs: Multiply-adds by the convention of the project.
        m: Rows of the matrix product: positions of all images; queries of an attention.
        n: Columns: output channels of a group; keys of an attention.
        k: What is summed over; the head size of an attention.
        groups: Independent products of that size.
        int8: INT8 may be used: wide enough, not grouped, more than one position an image.
        eligible_2_4: The reduction axis is a multiple of four and the layer is not grouped.
        sparse: The weight holds 2:4 along that axis.
    """

    name: str
    kind: Kind
    nodes: tuple[str, ...] = ()
    reads: tuple[Read, ...] = ()
    weights: int = 0
    output: int
    macs: int = 0
    m: int = 0
    n: int = 0
    k: int = 0
    groups: int = 1
    int8: bool = False
    eligible_2_4: bool = False
    sparse: bool = False

    @property
    def input(self) -> int:
        """Elements of computed tensors that are read."""
        return sum(read.elements for read in self.reads)


def with_batch(layers: list[FusedLayer], images: int) -> list[FusedLayer]:
    """Turn the layers of one image into those of a batch: everything grows but the weights."""
    return [_batched(layer, images) for layer in layers]


def _batched(layer: FusedLayer, images: int) -> FusedLayer:
    rows = {"groups": layer.groups * images} if layer.kind in _BATCHED else {"m": layer.m * images}
    reads = tuple(Read(layer=r.layer, elements=r.elements * images) for r in layer.reads)
    grown = {"reads": reads, "output": layer.output * images, "macs": layer.macs * images}
    return layer.model_copy(update={**grown, **rows})
