"""What :func:`layerhess.plan` returns: a plan, with methods to show, save and export it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from torch import Tensor

from layerhess.errors import InputError
from layerhess.planning.export.export import export
from layerhess.results import plan_file
from layerhess.results.options import options_of
from layerhess.results.plan import PlanRecord
from layerhess.show import plan as drawn
from layerhess.show.page.failed import page_or_reason
from layerhess.show.plan.plots import PlanPlots
from layerhess.show.plan.table import as_text


@dataclass(frozen=True, repr=False)
class Plan(PlanRecord):
    """An option for every planned weight, and what it was held against.

    The fields are those of :class:`layerhess.results.plan.PlanRecord`. Display, storage and export are imported here,
    so that the record does not depend on them.
    """

    def save(self, folder: str | Path) -> Path:
        """Write plan.json, table.csv and report.html into a folder, atomically as a whole."""
        return plan_file.save(self, folder, lambda plan: page_or_reason(lambda: drawn.page.as_html(plan)))

    def export(self, kind: str, path: str | Path) -> list[str]:
        """Write the plan for another library: "torchao", "transformers", "gguf" or "nncf".

        See :func:`layerhess.planning.export.export.export`.
        """
        return export(self, kind, path)

    @property
    def plot(self) -> PlanPlots:
        """Figures: ``plot()``, ``plot.frontier()``, ``plot.predicted()``; see :class:`~.PlanPlots`."""
        return PlanPlots(self)

    def __str__(self) -> str:
        return as_text(self)


Plan.__doc__ = PlanRecord.__doc__  # help() says what each field holds


def load_plan(folder: str | Path, functions: Iterable[Callable[[Tensor], Tensor]] = ()) -> Plan:
    """Read a saved plan, every number as it was saved.

    Args:
        functions: those among its options, which are saved by name only; :func:`layerhess.apply_plan` needs them.

    Raises:
        InputError: no plan there, a damaged one, or one of a newer version; a function that is none of its options.
    """
    record = plan_file.load(folder)
    known = {option.name: option for option in options_of(list(functions))} if functions else {}
    odd = [name for name in known if name not in {option.name for option in record.options}]
    if odd:
        raise InputError(
            f"the plan has no option {odd[0]!r}",
            where="functions",
            what_to_do="give functions of the names that its options have: "
            + ", ".join(option.name for option in record.options),
        )
    content = {field.name: getattr(record, field.name) for field in fields(record)}
    content["choice"] = {name: known.get(option.name, option) for name, option in record.choice.items()}
    content["options"] = tuple(known.get(option.name, option) for option in record.options)
    return Plan(**content)
