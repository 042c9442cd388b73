"""A run that may go on where another stopped: its journal, what it must have in common with it, and a result there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from layerhess.analysis import identity
from layerhess.analysis.identity import IDENTITY, Content
from layerhess.analysis.result import Analysis, load
from layerhess.checks.findings import SelfCheck
from layerhess.checks.survey import Survey
from layerhess.curvature.counters import Counters
from layerhess.curvature.journal import Journal
from layerhess.errors import InputError
from layerhess.objective.blocks import Partition
from layerhess.objective.objective import Objective
from layerhess.results import store

_LEAST_ROOM = 1 << 20  # bytes on the disk that are left for the report and the numbers


class Resumption:
    """The journal of a run, if it has an output folder.

    Args:
        out: the output folder; None for no journal, and on all ranks but the first. resume: go on from its journal, if
            there is one. settings, versions: of the run.

    Attributes:
        wanted: some rank writes down what this run finds. journal: of the run. identity: what is known of the run by
            now. examples: two parts of a few, by which the derivative is known again.

    Raises:
        InputError: the journal there cannot be read.
    """

    def __init__(
        self,
        objective: Objective,
        divided: Partition,
        settings: Mapping[str, Any],
        versions: Mapping[str, str],
        counters: Counters,
        *,
        out: Path | None,
        resume: bool,
    ) -> None:
        self._objective = objective
        self._out = out
        self._resume = resume
        self._group = objective.group
        path = None if out is None else store.journal_path(out)
        self.journal = Journal(path, counters, resume=resume, group=self._group, machine=identity.machine(objective))
        self.wanted = self._group.agreed(out is not None)
        self._content = Content()
        self._call = partial(identity.of_call, objective, divided, settings, versions)
        self.identity: dict[str, Any] = {}
        self.examples: list[list[Any]] = []

    def witness(self) -> Callable[[Any], None]:
        """Begins anew with the data: to be shown every batch of it once."""
        self._content = Content()
        return self._content.see if self.wanted else lambda batch: None

    def meet(self, surveyed: Survey) -> Analysis | None:
        """Compare with the run to be resumed (in session); its result, if it is there and finished.

        Raises:
            InputError: the journal, or the result that would be replaced, is of another run.
        """
        if not self.wanted:
            return None
        digest = self._content.with_others(self._group)
        self._content.few.meet(self._group, self._objective.device)
        self.examples = self._content.few.halves
        self.identity = {**self._call(), "data": identity.of_data(surveyed, digest)}
        return self._group.agreed(self._group.tried(self._found)) if self._resume else None

    def _found(self) -> Analysis | None:
        if self._out is None:  # the first rank looks
            return None
        self._compare(self.journal.known, str(self.journal.path or ""))
        found = store.settings_of(self._out).get(IDENTITY)
        if found is None:
            return None
        analysis = None if self._differs(found) else load(self._out)
        if analysis is not None and not analysis.partial:
            return analysis
        if self.journal.known is None:
            self._compare(found, str(self._out))
        return None

    def begin(self, surveyed: Survey, checked: SelfCheck, numbers: int) -> dict[str, Any]:
        """Write down passes from now on; what a result's settings are to say of this run.

        Args:
            numbers: about how many the result will hold.

        Raises:
            InputError: the run that is to be resumed had another derivative.
        """
        derivative = identity.of_derivative(self._content.few.digest, checked) if self.wanted else {}
        if then := (self.journal.known or {}).get(identity.DERIVATIVE):
            self._refuse(identity.other_derivative(then, derivative), str(self.journal.path or ""))
        self.journal.begin(
            {**self.identity, identity.DERIVATIVE: derivative}, _LEAST_ROOM + numbers * self._objective.dtype.itemsize
        )
        return {IDENTITY: self.identity} if self._out is not None else {}

    def ended(self) -> None:
        """The result is there: nothing is left beside it."""
        self.journal.remove()
        if self._out is not None:
            store.tidy(self._out)

    def refused(self) -> None:
        """The run is refused: nothing to go on from, unless it has passes of this data, or went on with another."""
        if self.journal.known is None and self.journal.active and (self.journal.spoilt or not self.journal.passes):
            self.journal.remove()

    @property
    def how(self) -> str:
        """How to go on with this run once it has stopped, to be added to a sentence; "" where one cannot."""
        return ", and resume goes on from there" if self.journal.passes else ""

    @property
    def note(self) -> str:
        """A sentence where this run goes on with another."""
        return f"resumed: {self.journal.passes} passes are known from {self.journal.path}" if self.journal.known else ""

    def _differs(self, other: Mapping[str, Any]) -> str:
        return identity.difference(other, self.identity, self._objective.dtype)

    def _compare(self, other: Mapping[str, Any] | None, where: str) -> None:
        if other is not None:
            self._refuse(self._differs(other), where)

    def _refuse(self, what: str, where: str) -> None:
        if what:
            raise InputError(
                f"the run that is to be resumed is another one: {what}",
                where=where,
                what_to_do="give what it was given, choose another output folder, or begin anew without resume",
            )
