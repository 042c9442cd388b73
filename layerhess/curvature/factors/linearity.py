"""Finds the parameters in which an output is piecewise linear, by a walk over its autograd graph."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch.autograd.function import BackwardCFunction

from layerhess.curvature.autograd_graph import inputs_first

# Linear in all inputs together, or piecewise so: what depends linearly on a block still does after them.
PIECEWISE_LINEAR = frozenset({
    # sums and means
    "Add", "Sub", "Rsub", "Neg", "Sum", "Mean", "Cumsum",
    # the same numbers in another shape or place
    "View", "Reshape", "ReshapeAlias", "UnsafeView", "Alias", "AsStrided", "Clone", "Contiguous", "ToCopy", "Permute",
    "Transpose", "T", "Movedim", "Squeeze", "Unsqueeze", "Expand", "Repeat", "Flip", "Roll", "Diagonal", "Slice",
    "Select", "Index", "IndexSelect", "Gather", "Cat", "Stack", "Unbind", "Split", "SplitWithSizes", "Chunk", "Unfold",
    "Im2Col", "Col2Im", "PixelShuffle", "ConstantPadNd", "ReflectionPad1D", "ReflectionPad2D", "ReplicationPad1D",
    "ReplicationPad2D", "UpsampleNearest1D", "UpsampleNearest2D", "UpsampleLinear1D", "UpsampleBilinear2D",
    # piecewise linear functions
    "Relu", "LeakyRelu", "Threshold", "Hardtanh", "Clamp", "ClampMin", "ClampMax", "Abs", "Maximum", "Minimum", "Max",
    "Min", "Amax", "Amin", "Where", "MaskedFill", "MaxPool1D", "MaxPool2DWithIndices", "MaxPool3DWithIndices",
    "AvgPool1D", "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "AdaptiveMaxPool2D",
    "AdaptiveMaxPool3D",
})  # fmt: skip
# (position of the terms that are linear alone, positions of the two factors)
PRODUCTS = {
    "Mul": ((), (0, 1)),
    "Mm": ((), (0, 1)),
    "Bmm": ((), (0, 1)),
    "Mv": ((), (0, 1)),
    "Dot": ((), (0, 1)),
    "Addmm": ((0,), (1, 2)),
    "Baddbmm": ((0,), (1, 2)),
    "Addcmul": ((0,), (1, 2)),
    "Convolution": ((2,), (0, 1)),
    "PreluKernel": ((), (0, 1)),
}
OWN = re.compile(r"(?:.*::)?(\w+?)Backward\d+")  # how autograd names the nodes of torch's own operations


def kind(node: Any) -> str:
    """An autograd node's operation: "Convolution" for ConvolutionBackward0; "" for what is none of torch's own.

    A custom function may have any name, but no number after it. Complex numbers do not count: abs of them is smooth.
    """
    made = OWN.fullmatch(str(node.name()))
    if made is None or isinstance(node, BackwardCFunction):
        return ""
    if any(meta.dtype.is_complex for meta in getattr(node, "_input_metadata", ())):
        return ""
    return made[1]


def not_linear(root: Any, sources: Mapping[Any, int], affine: Collection[Any] = ()) -> int:
    """The blocks, as bits, in which the tensor at ``root`` may not be piecewise linear.

    Blocks enter at ``sources``, at each of which the output is linear in the block. A block is struck off where an
    unlisted operation depends on it, where two factors of a product both depend on it, and where it enters what depends
    on it already. In the blocks that are left, the second derivative of the output is zero wherever it exists (Botev,
    Ritter & Barber 2017, section 4).

    Args:
        root: an autograd node. sources: node -> bits of the blocks that enter there. affine: nodes that are linear
            whatever their kind.
    """
    reach: dict[Any, int] = {}
    struck = 0
    for node in inputs_first(root):
        before = [0 if following is None else reach[following] for following, _ in node.next_functions]
        depends = 0
        for bits in before:
            depends |= bits
        if depends and node not in affine:
            struck |= _struck(kind(node), before, depends)
        own = sources.get(node, 0)
        struck |= depends & own
        reach[node] = depends | own
    return struck


def _struck(operation: str, before: list[int], depends: int) -> int:
    if operation in PIECEWISE_LINEAR:
        return 0
    if operation == "Div" and len(before) == 2:
        return before[1]
    if (places := PRODUCTS.get(operation)) is None:
        return depends
    alone, (left, right) = places
    known = {*alone, left, right}
    first, second = (before[i] if i < len(before) else 0 for i in (left, right))
    other = 0
    for i, bits in enumerate(before):
        other |= 0 if i in known else bits
    return (first & second) | other
