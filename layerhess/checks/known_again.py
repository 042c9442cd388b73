"""A few examples that are the same in any order, batches and processes, and products on them.

By these a run that goes on knows its derivative again: a loss of the same value may have another one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerhess.checks.sample import counting_parts
from layerhess.checks.symmetry import start
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass, Request
from layerhess.curvature.device import beside, is_out_of_memory
from layerhess.curvature.question import weighted_sums
from layerhess.objective import batches
from layerhess.objective.blocks import Block
from layerhess.objective.example_digests import Digests
from layerhess.objective.group import Group
from layerhess.objective.objective import Objective
from layerhess.objective.sent_batches import of_all_ranks

MOST = 8  # examples
APART = {torch.float64: 1e-6, torch.float32: 1e-2}  # of a product made elsewhere: more than rounding
APART_AT_ALL = 0.3  # in half precision, and by differences
Summary = dict[str, list[float]]  # tensor -> norm of its part of a product, and random sums of it


class FewExamples:
    """The examples of the smallest digests. A batch that cannot be cut counts as half of all that are kept."""

    def __init__(self) -> None:
        self._kept: list[tuple[tuple[int, int], Any]] = []  # digest and size

    def offer(self, batch: Any, digests: Digests) -> None:
        """Take the next batch.

        Args:
            digests: (n,) of its examples; (1,) of a batch that cannot be cut.
        """
        whole = not batches.leading_size(batch)
        for place in np.argsort(digests, kind="stable")[:MOST]:
            digest, size = int(digests[place]), MOST // 2 if whole else 1
            if sum(size for (_, size), _ in self._kept) >= MOST and digest >= self._kept[-1][0][0]:
                break
            self._keep([*self._kept, ((digest, size), batch if whole else batches.take(batch, torch.tensor([place])))])

    def meet(self, group: Group, device: torch.device) -> None:
        """After the last batch: the same examples on all ranks, from what each has."""
        self._keep(list(itertools.chain(*of_all_ranks(self._kept, group, device))))

    @property
    def digest(self) -> str:
        """Of all of them, in hexadecimal."""
        return f"{sum(digest for (digest, _), _ in self._kept) % (1 << 64):016x}"

    @property
    def halves(self) -> list[list[Any]]:
        """The examples in two parts, each of one batch where they have the same shapes."""
        own = [batch for _, batch in self._kept]
        parts = [part for part in (own[::2], own[1::2]) if part]
        return [part if (one := batches.joined(part)) is None else [one] for part in parts]

    def _keep(self, every: list[tuple[tuple[int, int], Any]]) -> None:
        every.sort(key=lambda one: one[0])
        sizes = itertools.accumulate(size for (_, size), _ in every)
        self._kept = [one for one, size in zip(every, sizes, strict=True) if size <= MOST]


def summaries(
    objective: Objective, halves: Sequence[Sequence[Any]], full: Block, seed: int, make_graph: GraphMaker,
    most: int | None,
) -> list[Summary]:  # fmt: skip
    """Of the products of the full matrix on each half with a random vector (in session).

    Args:
        seed: of the vector. most: examples at a time, where they may be cut.

    Returns:
        One a half; none where a product cannot be made, as by a model that takes whole batches only.

    Raises:
        RuntimeError, MemoryError: out of memory, where examples may be cut.
    """
    found = []
    vector = start(full, FULL, seed, device=beside(full, objective.parameters))[None]
    vector = vector if objective.dtype == torch.float64 else vector.float()
    for half in halves:
        pieces = [part for one in half for part in (counting_parts(objective, one, most) if most else [one])]
        # A run that goes on has the same counts as one that was never stopped: these products are beside it.
        data_pass = DataPass(objective.narrowed(pieces), list(full.parameters), Counters(), make_graph=make_graph)
        try:
            found.append(_summary(full, data_pass.run({FULL: Request(full, vector)})[FULL]))
        except Exception as error:  # user code that needs whole batches can raise anything
            if most and is_out_of_memory(error):
                raise
            return []
    return found


def _summary(full: Block, product: Tensor) -> Summary:
    rows = {name: part.reshape(-1) for name, part in full.split(product).items()}
    return {name: [float(torch.linalg.vector_norm(row)), *weighted_sums(row)[1:]] for name, row in rows.items()}
