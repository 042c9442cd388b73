"""Gradients of many output directions with respect to layers' outputs, several at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from layerhess.curvature.device import is_out_of_memory

# Numbers in the largest output of a layer for all directions that go back together. Small outputs are faster together,
# since every operation has a fixed cost. Large ones are slower: allocators return blocks of this size to the system and
# must get new pages for the next operation (glibc does so from 32 MiB on).
TOGETHER = 1 << 22


def sensitivities(output: Tensor, edges: Sequence[Any], sizes: Sequence[int], seeds: Tensor) -> list[Tensor | None]:
    """d <seed_q, output> / d y for every seed and every edge y; None where the output does not depend on it.

    Args:
        output: (N, ...), its graph is kept. edges: gradient edges of the y. sizes: how many numbers each has.
        seeds: (Q, *output.shape).

    Returns:
        For each edge (Q, *y.shape).
    """
    step = max(1, TOGETHER // max(sizes, default=1))
    if step >= len(seeds):
        return _backward(output, edges, seeds)
    held: list[Tensor | None] = []
    for start in range(0, len(seeds), step):
        found = _backward(output, edges, seeds[start : start + step])
        if not start:
            held = [None if part is None else part.new_empty((len(seeds), *part.shape[1:])) for part in found]
        for whole, part in zip(held, found, strict=True):
            if whole is not None and part is not None:
                whole[start : start + step] = part
    return held


def _backward(output: Tensor, edges: Sequence[Any], seeds: Tensor) -> list[Tensor | None]:
    """All seeds at once, or one by one where there is one only or torch cannot batch a backward."""
    if len(seeds) > 1:
        try:
            return list(
                torch.autograd.grad(output, edges, seeds, retain_graph=True, allow_unused=True, is_grads_batched=True)
            )
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
    rows = [torch.autograd.grad(output, edges, seed, retain_graph=True, allow_unused=True) for seed in seeds]
    if len(rows) == 1:
        return [None if part is None else part.unsqueeze(0) for part in rows[0]]
    return [None if parts[0] is None else torch.stack(parts) for parts in zip(*rows, strict=True)]
