"""One interface for any single operator: a network's matrix, a block of it, a NumPy array, anything with a matvec."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerhess.analysis.operators import BlockOperator, Operator
from layerhess.checks.candidate import Candidate, candidate
from layerhess.checks.rounding import RoundingMeter
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass, Request
from layerhess.curvature.device import Budget, beside, budget, places
from layerhess.curvature.not_finite import refuse_not_finite
from layerhess.errors import InputError
from layerhess.linalg.bounds import SMALLEST_NORM, total_rounding, unit_rounding
from layerhess.linalg.eigen.process import Process, Source
from layerhess.linalg.long_rows import Space
from layerhess.linalg.random_vectors import random_signs, random_unit
from layerhess.objective.blocks import Block


def check_operator(op: Any) -> int:
    """The dimension n of an operator: a square matrix, or an object with a square ``shape`` and ``matvec``.

    Raises:
        InputError: it is neither.
    """
    shape = getattr(op, "shape", None)
    applies = isinstance(op, np.ndarray) or hasattr(op, "matvec")
    if shape is None or len(shape) != 2 or shape[0] != shape[1] or not applies:
        raise InputError(
            f"the operator is {type(op).__name__}, without a square shape and matvec",
            where="op",
            what_to_do="pass lh.Hessian(objective), hessian.block(name), or an object with shape and matvec",
        )
    return int(shape[0])


class SingleOperator:
    """One operator that multiplies rows, with its rounding error; a network's data and loss are checked first.

    Args:
        op: see :func:`check_operator`. n: its dimension. seed: of the random vectors. stack: takes what must be closed
            at the end.

    Attributes:
        directions, signs: draw number -> random unit vector, Rademacher vector, (n,) float64; independent.
        length: the most terms that a product sums up.
        spec: the block, for a network's operator. eps: unit roundoff of the products, times two.
        unchecked: a network's operator with ``check=False``: its rounding is assumed, not measured.
        device: of the vectors; space: of stored ones. memory: what was free when this began, and dtype: of the model,
            for a network's operator.

    Raises:
        InputError, CheckError: as raised by the survey and the self-check.
    """

    def __init__(self, op: Any, n: int, seed: int, stack: ExitStack) -> None:
        self._op = op.block(FULL) if isinstance(op, Operator) else op
        self._meter: RoundingMeter | None = None
        self._data_pass: DataPass | None = None
        self._first: tuple[Tensor, Tensor] | None = None
        self.unchecked = False
        self.length = 1.0
        self.eps = float(np.finfo(np.float64).eps)
        self.device, self.space = torch.device("cpu"), Space(n)
        self.memory, self.dtype = Budget(1 << 62), torch.float64
        if isinstance(self._op, BlockOperator):
            parent = self._op.parent
            objective = parent.objective
            self.device = beside(self._op.spec, objective.parameters)
            self.space = Space(n, places=places(self._op.spec, objective.parameters))
            stack.enter_context(objective.group.together())
            self.memory, self.dtype = budget(objective.devices, group=objective.group), objective.dtype
            known = parent.verify()
            self.eps, self.unchecked = torch.finfo(objective.dtype).eps, known is None
            self._data_pass = stack.enter_context(parent.unchecked.session(self.memory))
            if known is not None:
                surveyed, checked = known
                coarsest = checked.trace.coarsest
                self.length, self.eps = surveyed.longest, checked.eps
                make = parent.curvature.make_graph
                self._meter = stack.enter_context(
                    RoundingMeter(objective, surveyed.measured, coarsest, Counters(), make, self.memory)
                )
        elif not isinstance(op, np.ndarray) and getattr(op, "dtype", None) in (np.dtype(np.float32), torch.float32):
            self.eps = float(np.finfo(np.float32).eps)
        name = getattr(self._op, "name", "operator")
        self.spec: Block | None = self._op.spec if isinstance(self._op, BlockOperator) else None
        self.directions: Source = lambda number: random_unit(n, seed, name, number, self.device)
        self.signs: Source = lambda number: random_signs(n, seed, name, number, self.device)

    def said(self, status: str) -> str:
        """A status, which says so where nothing was checked."""
        return f"{status}; the operator is unchecked" if self.unchecked else status

    def relative_rounding(self) -> float:
        """Relative rounding error of the products; for a network measured at the first vector and at its product."""
        floor = unit_rounding(self.eps, self.length)
        if self._meter is None or self.spec is None or self._first is None:
            return floor
        row, product = self._first
        size, length = float(torch.linalg.vector_norm(product)), float(torch.linalg.vector_norm(row))
        if size == 0.0 or length == 0.0:
            return floor
        vectors = torch.stack([row / length, product / size])
        asked = {self.spec.name: Candidate(self.spec, vectors, size / length)}
        return max(floor, self._meter.measure(asked)[self.spec.name].norm / (size / length))

    def apply(self, rows: Tensor) -> Tensor:
        """(s, n) products, float64.

        Raises:
            InputError: one of them is NaN or infinite, for a network's operator with the batch; all are so small that
                their squares vanish, for any other operator.
        """
        products = self._products(rows)
        if self._data_pass is not None and self.spec is not None:
            refuse_not_finite(self._data_pass, {self.spec.name: Request(self.spec, rows)}, {self.spec.name: products})
        if self._first is None and len(rows):
            self._first = rows[0], products[0]
        if not bool(torch.isfinite(products).all()):
            raise InputError(
                "a product of the operator is NaN or infinite", where="op", what_to_do="repair the operator"
            )
        if self.spec is None and 0.0 < (largest := float(products.abs().max())) < SMALLEST_NORM:
            raise InputError(
                "the operator is so small that squares of its products vanish",
                where=f"products with entries up to {largest:.1e}",
                what_to_do="multiply the operator by a number, and divide the results by it",
            )
        return products

    def _products(self, rows: Tensor) -> Tensor:
        if isinstance(self._op, BlockOperator):
            return self._op.rows(rows)
        if isinstance(self._op, np.ndarray):
            return torch.from_numpy(np.asarray((self._op @ rows.numpy().T).T, dtype=np.float64))
        return torch.stack([torch.as_tensor(np.asarray(self._op.matvec(row.numpy()))).double() for row in rows])

    def rounding(self, process: Process) -> float:
        """Absolute error of a product at the candidates: measured for a network, a few eps ||A|| for a matrix."""
        candidates = process.candidates()
        if self._meter is None or not isinstance(self._op, BlockOperator):
            figure = 4.0 * self.eps * math.sqrt(candidates.vectors.shape[1]) * candidates.norm
        else:
            asked = candidate(self._op.spec, process)
            figure = 0.0 if asked is None else self._meter.measure({self._op.name: asked})[self._op.name].worst
        return total_rounding(figure, self.eps, candidates.norm, self.length)
