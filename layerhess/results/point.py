"""What the monitor finds at one step of the training: a reading of every block, and of the whole model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from layerhess.linalg.described import Described, Description, called
from layerhess.linalg.numbers import counted, number, with_bound
from layerhess.results.spectrum import FULL_NAME as FULL

COLUMNS = ("step", "block", "lambda_max", "bound", "missed_factor", "products", "gradients")
OPTIMIZER_COLUMNS = ("preconditioned", "preconditioned_bound", "threshold", "ratio")
WHOLE = ("step", "products", "gradients")  # columns of integers


@dataclass(frozen=True, repr=False)
class Reading(Described):
    """The largest eigenvalue of one block, or of the whole model, at one step.

    Attributes:
        block: its name; "(full)" for the whole model.
        lambda_max: a Rayleigh quotient, at most the largest eigenvalue (but for rounding). bound: absolute; an
            eigenvalue lies within ``bound`` of ``lambda_max``: residual plus rounding. missed_factor: a larger
            eigenvalue is excluded from this multiple of ``lambda_max`` on, except with a probability of 1 %; NaN where
            that is not positive.
        products: Hessian-vector products spent on this row. gradients: gradients of all the data at this point, which
            all rows share. Those of the checks are in neither.
        preconditioned: largest eigenvalue of P^-1/2 H P^-1/2, see :mod:`layerhess.monitor.preconditioner`;
            preconditioned_bound: as ``bound``. threshold: above it the optimizer is unstable on the quadratic model.
            ratio: preconditioned / threshold. NaN but for the whole model, with an optimizer.
    """

    block: str
    lambda_max: float
    bound: float
    missed_factor: float
    products: int
    gradients: int
    preconditioned: float = math.nan
    preconditioned_bound: float = math.nan
    threshold: float = math.nan
    ratio: float = math.nan

    def _describe(self) -> Description:
        of = "the whole model" if self.block == FULL else called(self.block)
        facts = []
        if math.isfinite(self.missed_factor):
            facts.append(f"none above {number(self.missed_factor, 3)} times that, except with a probability of 1 %")
        if math.isfinite(self.preconditioned):
            facts.append(
                f"preconditioned {with_bound(self.preconditioned, self.preconditioned_bound)}, {number(self.ratio, 3)} "
                f"times the threshold {number(self.threshold)}"
            )
        facts.append(f"{counted(self.products, 'product')}, {counted(self.gradients, 'gradient')}")
        return Description(f"lambda_max of {of}: {with_bound(self.lambda_max, self.bound)}", tuple(facts))

    def metrics(self) -> dict[str, float]:
        """What loggers get: "curvature/<block>/lambda_max" and "/bound"; and what is known of the optimizer."""
        named = {"lambda_max": self.lambda_max, "bound": self.bound}
        named |= {name: getattr(self, name) for name in OPTIMIZER_COLUMNS}
        return {f"curvature/{self.block}/{name}": value for name, value in named.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Point:
    """All readings at one step.

    Attributes:
        step: of the training. readings: by block, in model order, the whole model ("(full)") last.
        seconds: that it took. checked: whether the operators were checked at this point.
    """

    step: int
    readings: Mapping[str, Reading]
    seconds: float
    checked: bool = False

    @property
    def full(self) -> Reading | None:
        """The whole model's; None where it was not asked for."""
        return self.readings.get(FULL)

    def metrics(self) -> dict[str, float]:
        """All that loggers get."""
        return {name: value for reading in self.readings.values() for name, value in reading.metrics().items()}

    def __repr__(self) -> str:
        """The step and its sharpest rows."""
        rows = sorted(self.readings.values(), key=lambda reading: -reading.lambda_max)
        shown = [f"  {called(r.block)}: lambda_max = {r.lambda_max:.4g} +- {r.bound:.1g}" for r in rows[:4]]
        more = [f"  and {len(rows) - 4} more blocks"] if len(rows) > 4 else []
        return "\n".join([f"Point at step {self.step}, {self.seconds:.2g} s", *shown, *more])
