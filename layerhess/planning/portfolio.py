"""Measures candidate plans and takes the best; every plan is measured once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from layerhess.planning.candidates import Candidate, Plan, Search
from layerhess.planning.measuring.meter import Measurement, Meter
from layerhess.planning.rows_file import RowsFile

STEPS_AT_ONCE = 4  # plans that are measured together in the last search


class Portfolio:
    """Plans that were measured, by choice.

    Attributes:
        candidates: by name, in the order in which they were added; several may be the same plan.
    """

    def __init__(self, meter: Meter, search: Search, rows: RowsFile) -> None:
        self._meter, self._search, self._rows = meter, search, rows
        self._measured: dict[Plan, Measurement] = {}
        self.candidates: dict[str, Candidate] = {}

    def add(self, candidates: Iterable[Candidate | None]) -> None:
        """Measure those that are new."""
        found = [candidate for candidate in candidates if candidate is not None]
        self.measure([candidate.choice for candidate in found])
        for candidate in found:
            self.candidates.setdefault(candidate.name, candidate)

    def measure(self, plans: Iterable[Plan]) -> list[Measurement]:
        """The measurements of plans, those of new ones in one pass over the data."""
        asked = list(plans)
        new = [plan for plan in dict.fromkeys(asked) if plan not in self._measured]
        name = f"plans {';'.join(','.join(map(str, plan)) for plan in new)}"
        found = self._rows.known(name, len(new)) if new else []
        if found is None:
            found = self._meter.measure([self._search.layers.choice(plan) for plan in new])
            self._rows.keep(name, found)
        self._measured.update(zip(new, found, strict=True))
        return [self._measured[plan] for plan in asked]

    def know(self, plan: Plan, measured: Measurement) -> None:
        """A plan that was measured elsewhere."""
        self._measured.setdefault(plan, measured)

    def value(self, plan: Plan) -> float:
        """The measured increase of the mean loss; inf where it is not finite."""
        found = self._meter.increase(self._measured[plan]).value
        return found if math.isfinite(found) else math.inf

    def best(self, plans: Iterable[Plan] | None = None) -> Plan | None:
        """The plan within the budget of the smallest measured increase, the smaller one of equals; None without one.

        Where the budget is a cap on the increase, the smallest plan below it.
        """
        budget = self._search.budget
        known = [plan for plan in (self._measured if plans is None else plans) if self._search.fits(plan)]
        if budget.increase is None:
            return min(known, key=lambda plan: (self.value(plan), budget.size_bytes(plan)), default=None)
        below = [plan for plan in known if self.value(plan) <= budget.increase]
        return min(below, key=lambda plan: (budget.size_bytes(plan), self.value(plan)), default=None)

    @property
    def plans(self) -> tuple[Plan, ...]:
        """All that were measured."""
        return tuple(self._measured)

    def measurement(self, plan: Plan) -> Measurement:
        """Of a plan that was measured."""
        return self._measured[plan]

    def improve(self, start: Plan, ranked: Sequence[Plan], room: float) -> Plan:
        """Measure plans, the most promising first, for as long as there is room; the best of them and the start."""
        best = start
        for begin in range(0, len(ranked), STEPS_AT_ONCE):
            part = [plan for plan in ranked[begin : begin + STEPS_AT_ONCE] if plan not in self._measured]
            if not part:
                continue
            if room < len(part):
                break
            self.measure(part)
            room -= len(part)
            found = self.best([*part, best])
            if found is None or found == best:
                break
            best = found
        return best
