"""What :func:`layerhess.analyze` returns: the result of an analysis, with methods to show, draw and save it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from layerhess import show
from layerhess.results import plan_file, store
from layerhess.results.atomic_folder import rewrite
from layerhess.results.history import History, is_history, load_history
from layerhess.results.plan import PlanRecord
from layerhess.results.spectrum import AnalysisRecord
from layerhess.show.frame import to_frame
from layerhess.show.notebook import as_html
from layerhess.show.page.failed import page_or_reason
from layerhess.show.plots import Plots
from layerhess.show.table import as_text

if TYPE_CHECKING:
    import pandas as pd

SAME_LOSS = 1e-4  # relative: the mean loss of the same weights and data, added up in other ways


@dataclass(frozen=True, repr=False)
class Analysis(AnalysisRecord):
    """Everything one call of :func:`layerhess.analyze` found.

    The fields are those of :class:`layerhess.results.spectrum.AnalysisRecord`. Display and storage are imported here,
    so that the record does not depend on them.
    """

    def to_frame(self, table: str = "eigenvalues") -> pd.DataFrame:
        """One row per eigenvalue; ``table=`` "blocks" (traces and what follows), "density", "diagonal", "coupling".

        Needs pandas; see :func:`layerhess.show.frame.to_frame` for the columns.
        """
        return to_frame(self, table)

    def save(self, path: str | Path) -> Path:
        """Write analysis.json, vectors.safetensors and report.html into the folder ``path``, atomically as a whole."""
        return store.save(self, path, _page)

    @property
    def plot(self) -> Plots:
        """Figures: ``plot()``, ``plot.eigenvalues()``, ``plot.density()``, ``plot.coupling()``, ``plot.mass()``.

        See :class:`layerhess.show.plots.Plots`.
        """
        return Plots(self)

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)


Analysis.__doc__ = AnalysisRecord.__doc__  # help() says what each field holds


def load(path: str | Path) -> Analysis:
    """Read a saved analysis; after a crash while it was being replaced, the complete one.

    Args:
        path: the folder that ``save()`` or ``--out`` was given.

    Returns:
        The analysis, every float64 and every eigenvector component as it was saved.

    Raises:
        InputError: no analysis there, damaged or altered files, or a schema of a newer version.
    """
    record = store.load(path)
    return Analysis(**{field.name: getattr(record, field.name) for field in fields(record)})


def rewrite_report(path: str | Path) -> Path:
    """Make report.html again from the saved numbers, with this version's layout; the rest is untouched.

    Args:
        path: the folder of an analysis, of a plan, or of a monitor.

    Returns:
        The report's absolute path.

    Raises:
        InputError: as for :func:`load` and :meth:`Analysis.save`.
    """
    if is_history(path):
        return history_page(path, load_history(path))
    if plan_file.is_plan(path):
        return plan_file.replace_report(path, show.plan.page.as_html(plan_file.load(path)))
    return with_plan(path)


def with_plan(path: str | Path, plan: PlanRecord | None = None) -> Path:
    """Make the report of a saved analysis again, with the section of a plan.

    Args:
        path: the analysis' folder.
        plan: of the same model; None: that in the folder's own folder "plan", if it is of the same loss.

    Returns:
        The report's absolute path.

    Raises:
        InputError: as for :func:`load` and :meth:`Analysis.save`.
    """
    analysis, inside = load(path), Path(path).expanduser() / plan_file.INSIDE
    if plan is None and plan_file.is_plan(inside):
        found = plan_file.load(inside)
        # A folder that was analysed again, of other weights or data, keeps the plan that was in it.
        plan = found if math.isclose(found.loss, analysis.loss, rel_tol=SAME_LOSS) else None
    return store.replace_report(path, show.report.as_html(analysis, plan))


def history_page(folder: str | Path, history: History) -> Path:
    """Write a monitor's curves into its folder as report.html; its absolute path.

    Raises:
        OSError: it cannot be written.
    """
    page = Path(folder).expanduser().resolve() / store.REPORT
    rewrite(page, show.history_page.as_html(history).encode())
    return page


def _page(record: AnalysisRecord) -> str:
    """The report, or a page that says why there is none."""
    return page_or_reason(lambda: show.report.as_html(record))
