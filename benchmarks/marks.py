"""What a figure should reach: a bar and a goal, and whether it is met."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Mark"]


@dataclass(frozen=True)
class Mark:
    """A bar, and a goal beyond it where there is one; `below`: smaller is better."""

    bar: float
    goal: float | None = None
    below: bool = False

    def met(self, value: float) -> bool:
        """Whether the bar is met."""
        return self._reaches(value, self.bar)

    def verdict(self, value: float) -> str:
        """For example "bar >= 8: met, goal >= 12: missed"."""
        named = [("bar", self.bar), *([] if self.goal is None else [("goal", self.goal)])]
        sign = "<=" if self.below else ">="
        return ", ".join(f"{n} {sign} {x:g}: {'met' if self._reaches(value, x) else 'missed'}" for n, x in named)

    def _reaches(self, value: float, mark: float) -> bool:
        return value <= mark if self.below else value >= mark
