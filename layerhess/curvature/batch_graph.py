"""The interface of one batch's graph: what every kind of curvature matrix offers to a pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from layerhess.curvature.counters import Counters
from layerhess.objective.objective import Objective


class BatchGraph(Protocol):
    """One batch's share of a curvature matrix A, kept so that it can be multiplied again.

    Attributes:
        loss_sum, count: of the batch.
    """

    loss_sum: float
    count: float

    @property
    def nbytes(self) -> int:
        """Bytes held in addition to what autograd saved."""

    @property
    def gradient(self) -> dict[str, Tensor | None]:
        """Of the loss sum, by parameter; None where there is no dependence."""

    @property
    def differentiable(self) -> list[Tensor]:
        """The first derivatives that products differentiate again."""

    def product(
        self, names: Sequence[str], vector: dict[str, Tensor], rows: Sequence[str] | None = None
    ) -> list[Tensor | None]:
        """The batch's share of A[rows, names] v, not divided by the count; one tensor per row name.

        Args:
            names: the parameters that ``vector`` has parts for. vector: parameter-shaped, in the parameters' dtypes.
            rows: the parameters whose components are returned; ``names`` by default.

        Returns:
            Parameter-shaped tensors; None where there is no dependence.
        """

    def products(
        self, names: Sequence[str], vectors: dict[str, Tensor], rows: Sequence[str] | None = None
    ) -> list[Tensor | None]:
        """The same for s vectors, (s, *shape) each in and out."""


def one_by_one(
    graph: BatchGraph, names: Sequence[str], vectors: dict[str, Tensor], rows: Sequence[str] | None = None
) -> list[Tensor | None]:
    """:meth:`BatchGraph.products` from single products."""
    count = len(vectors[names[0]])
    if count == 1:
        alone = graph.product(names, {name: vectors[name][0] for name in names}, rows)
        return [None if part is None else part.unsqueeze(0) for part in alone]
    made = [graph.product(names, {name: vectors[name][i] for name in names}, rows) for i in range(count)]
    stacked: list[Tensor | None] = []
    for parts in zip(*made, strict=True):
        known = next((part for part in parts if part is not None), None)
        if known is None:
            stacked.append(None)
        else:
            stacked.append(torch.stack([torch.zeros_like(known) if part is None else part for part in parts]))
    return stacked


def add_part(total: dict[str, Tensor], name: str, part: Tensor) -> None:
    """Add a parameter's part to its total; the first one is stored itself, not copied."""
    total[name] = total[name] + part if name in total else part


GraphMaker = Callable[[Objective, Any, Iterable[str], Counters], BatchGraph]
