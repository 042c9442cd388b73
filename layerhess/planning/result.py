"""What :func:`layerhess.plan` returns: a plan, with methods to show, save and export it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from layerhess.results import plan_file
from layerhess.results.plan import PlanRecord


@dataclass(frozen=True, repr=False)
class Plan(PlanRecord):
    """A plan; the fields are those of :class:`layerhess.results.plan.PlanRecord`."""

    def save(self, folder: str | Path) -> Path:
        """Write plan.json, table.csv and report.html into a folder, atomically as a whole."""
        return plan_file.save(self, folder)


def load_plan(folder: str | Path) -> Plan:
    """Read a saved plan.

    Raises:
        InputError: no plan there, a damaged one, or one of a newer version.
    """
    record = plan_file.load(folder)
    return Plan(**{field.name: getattr(record, field.name) for field in fields(record)})
