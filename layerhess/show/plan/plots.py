"""The figures of a plan, as one finds them: ``plan.plot()``, ``plan.plot.frontier()``, ``plan.plot.predicted()``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from layerhess.errors import InputError
from layerhess.linalg.described import Described, Description
from layerhess.results.plan import PlanRecord
from layerhess.show import plan as drawn
from layerhess.show.plan import words

if TYPE_CHECKING:
    from layerhess.show.style import Picture

LEAST = 2  # measured plans that are anything to look at


class PlanPlots(Described):
    """Figures of one plan, each a ``matplotlib.figure.Figure`` of its own; pyplot is not touched.

    Kinds of plans are told apart by their shapes as well as by colours that all kinds of colour vision tell apart.
    """

    def __init__(self, plan: PlanRecord) -> None:
        self._plan = plan

    def __call__(self) -> Picture:
        """What each layer gets, beside what it costs alone; ``bits()`` is the same."""
        return self.bits()

    def bits(self) -> Picture:
        """What each layer gets, beside its measured increase of the loss alone, with two standard errors."""
        picture: Picture = drawn.figures.bits(self._plan)
        return picture

    def predicted(self) -> Picture:
        """Predicted against measured increase of every plan that was measured.

        Raises:
            InputError: fewer than two plans were both measured and predicted.
        """
        self._enough([one for one in words.measured_plans(self._plan) if one.predicted > 0.0], "predicted")
        picture: Picture = drawn.figures.predicted(self._plan)
        return picture

    def frontier(self) -> Picture:
        """Size against measured increase of every plan that was measured; a line along the Pareto frontier.

        Raises:
            InputError: fewer than two plans were measured.
        """
        self._enough(words.measured_plans(self._plan), "frontier")
        picture: Picture = drawn.figures.frontier(self._plan)
        return picture

    def _enough(self, found: Sequence[object], name: str) -> None:
        if len(found) < LEAST:
            raise InputError(
                "fewer than two plans were measured, which is nothing to draw",
                where=f"plan.plot.{name}",
                what_to_do="use lh.plan(objective, verify=True)",
            )

    def _describe(self) -> Description:
        return Description("Figures of a plan", ("plot(), .bits(), .predicted(), .frontier()",))
