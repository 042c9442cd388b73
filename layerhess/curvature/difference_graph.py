"""Hessian-vector products of one batch by central differences of its gradient, for what has no second derivative."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from layerhess.curvature.batch_graph import one_by_one
from layerhess.curvature.counters import Counters
from layerhess.curvature.gradient_sum import add_gradient
from layerhess.curvature.matrices import HESSIAN, CurvatureMatrix
from layerhess.objective.containers import tensors
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import kept_values

USUAL = {torch.float64: 2.0**-14, torch.float32: 2.0**-8}  # steps
COARSE = 2.0**-4  # the same in half precision
KINKED = {torch.float64: 2.0**-22, torch.float32: 2.0**-11}  # where there are kinks to cross


class Differences:
    """Makes graphs whose products are (g(theta + r v) - g(theta - r v)) / 2r.

    A step is relative to the length of the block's parameters, and one for all of its vectors: products are the more
    alike to those of one matrix.

    Attributes:
        steps: a block's parameters -> its step. errors: the same -> relative error of its products, where measured.
        smooth: the network has no kinks. factor: of all steps.
    """

    def __init__(self) -> None:
        self.smooth = True
        self.steps: dict[tuple[str, ...], float] = {}
        self.errors: dict[tuple[str, ...], float] = {}
        self.factor = 1.0

    def __call__(self, objective: Objective, batch: Any, names: Iterable[str], counters: Counters) -> DifferenceGraph:
        """One batch's share of the Hessian."""
        return DifferenceGraph(objective, batch, names, counters, self)

    def doubled(self) -> Differences:
        """With twice the steps: |F(2r) - F(r)| tracks the error of F(r)."""
        made = Differences()
        made.__dict__.update(self.__dict__)
        made.factor = 2.0 * self.factor
        return made

    def usual(self, dtype: torch.dtype) -> float:
        """The step of a block for which none was chosen."""
        return (USUAL if self.smooth else KINKED).get(dtype, COARSE)

    def length(self, objective: Objective, names: Sequence[str]) -> float:
        """r ||v|| for a block."""
        step = self.steps.get(tuple(names), self.usual(objective.dtype))
        own = math.hypot(*(_norm(objective.parameters[name]) for name in names))
        if own == 0.0:  # weights that begin at zero: as long as others of that number
            every = math.hypot(*map(_norm, objective.parameters.values())) or math.sqrt(objective.numel)
            own = every * math.sqrt(sum(objective.parameters[name].numel() for name in names) / objective.numel)
        return self.factor * step * own


class DifferenceGraph:
    """One batch, whose gradient is evaluated on both sides of the weights by every product; nothing is kept of it.

    Torch's own first derivative is used, in the model's precision: two gradients a product. The weights move, and are
    put back bit by bit.

    Args:
        objective: in session. batch: a prepared batch. names: the parameters that products will be asked for.
        counters: counts a forward and a backward for every gradient. differences: the steps.
    """

    def __init__(
        self, objective: Objective, batch: Any, names: Iterable[str], counters: Counters, differences: Differences
    ) -> None:
        self._objective, self._batch, self._names = objective, batch, list(names)
        self._counters, self._differences = counters, differences
        self.differentiable: list[Tensor] = []
        with torch.no_grad():
            loss, self.count = objective.terms(batch)
        counters.count("forwards")
        self.loss_sum = float(loss.detach().double())

    @property
    def nbytes(self) -> int:
        """Bytes of the batch."""
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors(self._batch))

    @property
    def gradient(self) -> dict[str, Tensor | None]:
        """Of the loss sum, by parameter; evaluated anew."""
        total: dict[str, Tensor] = {}
        self._add(self._names, total, 1.0)
        return {name: total.get(name) for name in self._names}

    def product(
        self, names: Sequence[str], vector: dict[str, Tensor], rows: Sequence[str] | None = None
    ) -> list[Tensor | None]:
        """The batch's share of H[rows, names] v; see :meth:`layerhess.curvature.batch_graph.BatchGraph.product`."""
        rows = names if rows is None else rows
        self._counters.count("products")
        size = math.hypot(*(_norm(vector[name]) for name in names))
        if size == 0.0:
            return [torch.zeros_like(self._objective.parameters[name]).detach() for name in rows]
        step = self._differences.length(self._objective, names) / size
        moving = {name: self._objective.parameters[name] for name in names}
        total: dict[str, Tensor] = {}
        with kept_values(moving.values()) as values:
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    for (name, parameter), value in zip(moving.items(), values, strict=True):
                        parameter.copy_(value).add_(vector[name].to(parameter), alpha=sign * step)
                self._add(rows, total, sign / (2.0 * step))
        return [total.get(name) for name in rows]

    def products(
        self, names: Sequence[str], vectors: dict[str, Tensor], rows: Sequence[str] | None = None
    ) -> list[Tensor | None]:
        """The same for s vectors, one after the other."""
        return one_by_one(self, names, vectors, rows)

    def _add(self, names: Sequence[str], total: dict[str, Tensor], weight: float) -> None:
        with torch.enable_grad():
            loss, _ = self._objective.terms(self._batch)
        self._counters.count("forwards")
        if loss.requires_grad:
            parameters = self._objective.parameters
            add_gradient(loss, {name: parameters[name] for name in names}, total, weight, parameters.values())
            self._counters.count("backwards")


def by_differences() -> CurvatureMatrix:
    """The Hessian, with products by differences whose steps are yet to be chosen."""
    return replace(HESSIAN, make_graph=Differences())


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
