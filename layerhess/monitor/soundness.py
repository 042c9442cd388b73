"""Looks now and then at what the monitor multiplies by: may it be trusted, and how large is its rounding?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from layerhess.analysis.unknown_torch import refuse_unless_right
from layerhess.analysis.verification import verified
from layerhess.checks import SelfCheck
from layerhess.checks.candidate import Candidate, candidate
from layerhess.checks.rounding import RoundingMeter
from layerhess.checks.survey import Survey
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL
from layerhess.curvature.device import Budget
from layerhess.curvature.matrices import HESSIAN
from layerhess.linalg.bounds import total_rounding
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective

EVERY = 50  # points from one look to the next
GREW = 10.0  # factor by which a norm may change until rounding is measured again


@dataclass(frozen=True)
class _Measured:
    """The absolute rounding of an operator's products, and its norm then."""

    rounding: float
    norm: float


class Soundness:
    """The survey and self-check of :func:`layerhess.analyze`, and measured rounding; at the first point, then seldom.

    Between two looks the rounding is that of the last one, in proportion to the operator's norm.

    Attributes:
        points: since the last look.
    """

    def __init__(self) -> None:
        self.points = 0
        self._found: tuple[Survey, SelfCheck] | None = None
        self._length, self._eps = 1.0, 0.0
        self._measured: dict[str, _Measured] = {}
        self._changed = False

    @property
    def due(self) -> bool:
        """Whether the next point needs a look."""
        return self._found is None or self._changed or self.points >= EVERY

    def look(self, objective: Objective, blocks: Mapping[str, Block], full: Block) -> None:
        """Check data, loss and products as an analysis does (in session).

        Raises:
            InputError, CheckError: what :func:`layerhess.analyze` raises.
        """
        refuse_unless_right(objective.devices)
        self._found = surveyed, checked = verified(objective, HESSIAN, {**blocks, FULL: full})
        self._length, self._eps = surveyed.longest, checked.eps
        self.points, self._changed = 0, False

    def measure(
        self,
        objective: Objective,
        asked: Mapping[str, tuple[Block, Lanczos]],
        memory: Budget,
        make_graph: GraphMaker = HESSIAN.make_graph,
    ) -> None:
        """Measure the rounding of products at the solvers' candidates, after :meth:`look` (in session).

        Args:
            asked: by key, with the solver that has candidates. make_graph: of the matrix.
        """
        assert self._found is not None
        surveyed, checked = self._found
        meter = RoundingMeter(
            objective, surveyed.measured, checked.trace.coarsest, Counters(), make_graph, memory, heavy=False
        )
        known = {key: candidate(block, solver) for key, (block, solver) in asked.items()}
        candidates: dict[str, Candidate] = {key: one for key, one in known.items() if one is not None}
        with meter:
            for key, found in meter.measure(candidates).items():
                self._measured[key] = _Measured(found.worst, asked[key][1].candidates().norm)

    def rounding(self, key: str, solver: Lanczos) -> float:
        """The rounding part of a bound, from the last measurement."""
        norm = solver.candidates().norm
        last = self._measured[key]
        if last.norm > 0.0 and norm > 0.0 and not 1.0 / GREW < norm / last.norm < GREW:
            self._changed = True
        figure = last.rounding * (norm / last.norm if last.norm > 0.0 else 1.0)
        return total_rounding(figure, self._eps, norm, self._length)

    def lacks(self, key: str) -> bool:
        """Whether an operator's rounding was never measured."""
        return key not in self._measured

    @property
    def epsilon(self) -> float:
        """Unit roundoff of the products, times two; 0 before the first look."""
        return self._eps or float(torch.finfo(torch.float64).eps)
