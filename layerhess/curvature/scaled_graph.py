"""D A D for a diagonal matrix D, of any kind of matrix A: one batch's share, such as of a preconditioned Hessian."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from layerhess.curvature.batch_graph import BatchGraph, GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.objective.objective import Objective


class ScaledGraph:
    """A batch's graph whose products are those of D A D.

    Args:
        inner: the graph of A. diagonal: D by parameter, parameter-shaped.
    """

    def __init__(self, inner: BatchGraph, diagonal: Mapping[str, Tensor]) -> None:
        self._inner, self._diagonal = inner, diagonal
        self.loss_sum, self.count = inner.loss_sum, inner.count

    @property
    def nbytes(self) -> int:
        """Of the graph of A."""
        return self._inner.nbytes

    @property
    def gradient(self) -> dict[str, Tensor | None]:
        """Of the loss sum, not scaled."""
        return self._inner.gradient

    @property
    def differentiable(self) -> list[Tensor]:
        """Of the graph of A."""
        return self._inner.differentiable

    def product(
        self, names: Sequence[str], vector: dict[str, Tensor], rows: Sequence[str] | None = None
    ) -> list[Tensor | None]:
        """The batch's share of (D A D)[rows, names] v."""
        made = self._inner.product(names, {name: self._scaled(name, vector[name]) for name in names}, rows)
        return self._all_scaled(names if rows is None else rows, made)

    def products(
        self, names: Sequence[str], vectors: dict[str, Tensor], rows: Sequence[str] | None = None
    ) -> list[Tensor | None]:
        """The same for s vectors."""
        made = self._inner.products(names, {name: self._scaled(name, vectors[name]) for name in names}, rows)
        return self._all_scaled(names if rows is None else rows, made)

    def _scaled(self, name: str, part: Tensor) -> Tensor:
        return part * self._diagonal[name].to(dtype=part.dtype, device=part.device)

    def _all_scaled(self, names: Sequence[str], parts: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [None if part is None else self._scaled(name, part) for name, part in zip(names, parts, strict=True)]


class Scaled:
    """Makes such graphs.

    Args:
        make: of the graphs of A. diagonal: D by parameter.
    """

    def __init__(self, make: GraphMaker, diagonal: Mapping[str, Tensor]) -> None:
        self._make, self._diagonal = make, diagonal

    def __call__(self, objective: Objective, batch: Any, names: Iterable[str], counters: Counters) -> ScaledGraph:
        """One batch's share of D A D."""
        return ScaledGraph(self._make(objective, batch, names, counters), self._diagonal)
