"""Rounding of weights to integers with shared scales, step by step as torchao rounds and stores them.

For weights of up to 8 bits in float32, bfloat16 and float16 the result is bit-equal to what torchao's
``IntxUnpackedToInt8Tensor`` gives back: every step is done in the weight's own dtype, in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layerhess.results.options import Quantize

SHRINKING = tuple(1.0 - step / 100.0 for step in range(96))  # shares of the whole range that "mse" tries, 1 first
CHUNK = 1 << 16  # weights whose errors are looked at together
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Codes:
    """Integers and what they stand for: the weight is (values - zero) * scale.

    Attributes:
        values: integers in a floating dtype, in the shape of the weight.
        scale, zero: one number for each block, in the shape (rows of blocks, columns of blocks, ...).
        block: the sides of a block, one for each dimension of the weight.
    """

    values: Tensor
    scale: Tensor
    zero: Tensor
    block: tuple[int, ...]

    def weight(self) -> Tensor:
        """What the integers stand for."""
        return _meant(_in_blocks(self.values, self.block), _spread(self.scale), _spread(self.zero)).reshape(
            self.values.shape
        )


def bounds(bits: int) -> tuple[int, int]:
    """Smallest and largest integer of so many bits.

    >>> bounds(4), bounds(1)
    ((-8, 7), (-1, 0))
    """
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def block_of(option: Quantize, shape: Sequence[int]) -> tuple[int, ...]:
    """Sides of the blocks of a weight that share a scale.

    A channel is all of a place along dimension 0; a group is so many neighbours along dimension 1, every place of the
    other dimensions apart, as torchao has it for convolutions.
    """
    if option.granularity == "tensor":
        return tuple(shape)
    size = option.group_size
    return (1, *shape[1:]) if size is None else (1, size, *(1 for _ in shape[2:]))


def why_not(option: Quantize, shape: Sequence[int]) -> str:
    """Why a weight of this shape cannot be quantised so; "" if it can."""
    if not math.prod(shape):
        return "it has no weights"
    if option.granularity != "tensor" and len(shape) < 2:
        return f"a scale for each {option.granularity} needs two dimensions, and it has {len(shape)}"
    size = option.group_size
    if size is not None and shape[1] % size:
        return f"its {shape[1]} weights along dimension 1 are no multiple of the group of {size}"
    return ""


def codes(option: Quantize, weight: Tensor) -> Codes:
    """The integers, scales and zero points of a weight.

    Symmetric: s = max|w| / ((qmax - qmin) / 2) and no zero point. Asymmetric: s = (max - min) / (qmax - qmin), max and
    min taken with zero, and the zero point qmin - round(min / s). Where a block is zero, s is the dtype's smallest
    normal number. "mse" multiplies s of every block by that of 1.00, 0.99, ..., 0.05 which leaves the least squared
    error; the first of equals, so that it is never worse than "minmax".

    More than 8 bits are counted in float32 where the weights are in half precision, which has no such integers.

    Args:
        weight: finite, in a floating dtype, of a shape that :func:`why_not` has nothing against.
    """
    if option.bits > 8 and weight.dtype in HALVES:
        weight = weight.float()
    block = block_of(option, weight.shape)
    blocks = _in_blocks(weight.contiguous(), block)
    scale, zero = _whole_range(option, blocks)
    if option.scale == "mse":
        rows = in_rows(weight.contiguous(), block)
        scale = _of_least_error(option, rows, scale.reshape(-1, 1), zero.reshape(-1, 1)).reshape(scale.shape)
    counts = tuple(n // side for n, side in zip(weight.shape, block, strict=True))
    values = _rounded(option, blocks, scale, zero).reshape(weight.shape)
    return Codes(values, scale.reshape(counts), zero.reshape(counts), block)


def quantized(option: Quantize, weight: Tensor) -> Tensor:
    """The weight as its integers give it back, in its own dtype.

    >>> import torch
    >>> from layerhess.results.options import Quantize
    >>> quantized(Quantize(2), torch.tensor([[-3.0, -1.0, 0.4, 3.0]]))  # steps of 3 / 1.5, -2 to 1 of them
    tensor([[-4.,  0.,  0.,  2.]])
    """
    return codes(option, weight).weight().to(weight.dtype)


def in_rows(weight: Tensor, block: tuple[int, ...]) -> Tensor:
    """A row for each block, with all of its weights: (blocks, weights of a block)."""
    blocks = _in_blocks(weight, block)
    order = [*range(0, blocks.ndim, 2), *range(1, blocks.ndim, 2)]
    return blocks.permute(order).reshape(-1, math.prod(block))


def _in_blocks(weight: Tensor, block: tuple[int, ...]) -> Tensor:
    """In the shape (blocks, side, blocks, side, ...): two dimensions for each of the weight's."""
    return weight.reshape([part for n, side in zip(weight.shape, block, strict=True) for part in (n // side, side)])


def _spread(numbers: Tensor) -> Tensor:
    """One number for each block, in the shape (blocks, 1, blocks, 1, ...)."""
    return numbers.reshape([part for n in numbers.shape for part in (n, 1)])


def _sides(blocks: Tensor) -> list[int]:
    return list(range(1, blocks.ndim, 2))


def _whole_range(option: Quantize, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point by the largest and the smallest weight of each block."""
    least, most = bounds(option.bits)
    low = blocks.amin(_sides(blocks), keepdim=True).clamp(max=0.0)
    high = blocks.amax(_sides(blocks), keepdim=True).clamp(min=0.0)
    smallest = torch.finfo(blocks.dtype).smallest_normal
    if option.symmetric:
        scale = (torch.maximum(-low, high) / ((most - least) / 2.0)).clamp(min=smallest)
        return scale, torch.zeros_like(scale)
    scale = ((high - low) / float(most - least)).clamp(min=smallest)
    return scale, (least - torch.round(low / scale)).clamp(least, most)


def _rounded(option: Quantize, blocks: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return (torch.round(blocks * (1.0 / scale)) + zero).clamp(*bounds(option.bits))


def _meant(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return (values - zero) * scale


def _of_least_error(option: Quantize, rows: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The scale among the shares of ``scale`` that leaves the least squared error, summed in float64, in each row.

    Rows are looked at in pieces that a processor's cache holds.
    """
    smallest = torch.finfo(rows.dtype).smallest_normal
    some = max(1, CHUNK // rows.shape[1])
    found = []
    for weights, whole, zeros in zip(*(torch.split(t, some) for t in (rows, scale, zero)), strict=True):
        tried = torch.stack([(whole * share).clamp(min=smallest) for share in SHRINKING])
        errors = torch.zeros(tried.shape, dtype=torch.float64, device=rows.device)
        for piece in torch.split(weights, CHUNK, dim=1):
            for error, one in zip(errors, tried, strict=True):
                missed = _meant(_rounded(option, piece, one, zeros), one, zeros).double().sub_(piece)
                error += missed.square_().sum(1, keepdim=True)
        found.append(tried.gather(0, errors.argmin(0, keepdim=True))[0])
    return torch.cat(found)
