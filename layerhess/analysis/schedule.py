"""Runs all solvers together: merges their requests, so that one pass over the data makes every block's products."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from layerhess.analysis.progress import Progress, Snapshot
from layerhess.analysis.tasks import Task
from layerhess.checks.candidate import Candidate
from layerhess.checks.rounding import RoundingMeter
from layerhess.curvature.data_pass import DataPass, Request
from layerhess.curvature.not_finite import refuse_large_powers, refuse_not_finite
from layerhess.linalg.bounds import SMALLEST_NORM, random_bound, zero_bound, zero_level
from layerhess.objective.blocks import Block

PROBE = "(probe)"  # no block has this name
NOISE = 2000.0  # times eps: a relative residual this small may be rounding, so rounding is measured


class Estimator(Protocol):
    """An estimator that runs along with the solvers: its requests join their passes.

    Its keys must not be block names; they begin with a parenthesis by convention.
    """

    @property
    def done(self) -> bool:
        """True when it needs no more products."""

    def requests(self) -> dict[str, Request]:
        """What it needs next; empty while it waits for something else."""

    def tell(self, products: Mapping[str, torch.Tensor]) -> None:
        """The products of what it last asked for, by its own keys."""


@dataclass
class Schedule:
    """Runs the tasks of a wave in lockstep, wave after wave.

    Where the tasks' bases may stay, the first group of estimators runs along with them; else all run after them, group
    by group.

    Attributes:
        data_pass: over the whole data. meter: for rounding. tol, exclude: relative. eps: of the coarsest dtype in the
            graph.
        length: the most terms summed up in one batch.
        full_block: the block of all parameters, for the norm that zero blocks are compared with.
        probe: a random unit vector (1, P) for that norm. max_passes, time_limit: limits after which it stops.
        check_unsampled: the self-check of blocks whose products vanished on the sample but not on all data; returns the
            names of those to leave out, or raises.
        estimators: groups of estimators, those of a group share the passes.
    """

    data_pass: DataPass
    meter: RoundingMeter
    tasks: list[Task]
    tol: float
    eps: float
    length: float
    full_block: Block
    probe: Callable[[], torch.Tensor]
    check_unsampled: Callable[[dict[str, Block], float], Collection[str]]
    max_passes: int
    time_limit: float | None
    started: float
    exclude: float | None = None
    estimators: Sequence[Sequence[Estimator]] = ()
    progress: Progress | None = None
    stopped: str = ""
    passes: int = 0
    _now: list[Task] = field(default_factory=list)
    _along: Sequence[Estimator] = ()
    _full_norm: float | None = None

    def run(self) -> None:
        """Run until every task is done or has spent its products, or a limit is reached (:attr:`stopped`)."""
        waves: list[tuple[list[Task], Sequence[Estimator]]] = [
            ([task for task in self.tasks if task.wave == number], ())
            for number in range(1 + max((task.wave for task in self.tasks), default=0))
        ]
        groups = list(self.estimators)
        if groups and all(task.kept for task in self.tasks):
            waves[0] = waves[0][0], groups.pop(0)
        waves += [([], group) for group in groups]
        begin = self.data_pass.counters.clock()
        for self._now, self._along in waves:
            if self.stopped:
                break
            for task in self._now:
                task.begin()
            self._run_wave(begin)
            for task in self._now:
                if not task.done and task.told:
                    self._give_best(task)
                task.release()

    def _run_wave(self, begin: float) -> None:
        clock = self.data_pass.counters.clock
        while (open_tasks := self._open(self._now)) or not all(estimator.done for estimator in self._along):
            if self.passes >= self.max_passes:
                self.stopped = f"max_passes={self.max_passes} was reached"
            if self.time_limit is not None and self._late(self.passes, self.time_limit):
                self.stopped = f"time_limit={self.time_limit:g} s was reached"
            if self.stopped:
                break
            self._step(open_tasks)
            self.passes += 1
            self._report(self.passes, (clock() - begin) / self.passes)

    def judge_unfinished(self) -> None:
        """Make certificates for an interrupted run, without another product."""
        for task in self._now:
            if not task.done and task.told:
                task.judge(self.tol, self.eps, self.length, self.exclude)

    def _late(self, passes: int, limit: float) -> bool:
        journal = self.data_pass.journal
        late = self.data_pass.objective.group.agreed(not journal.replaying and self._elapsed > limit)
        return bool(journal.settled(f"after {passes} passes time_limit={limit:g} was over", late))

    @property
    def _elapsed(self) -> float:
        """Seconds, those of the run that is resumed included."""
        counters = self.data_pass.counters
        return counters.clock() - self.started + counters.earlier

    @staticmethod
    def _open(tasks: Sequence[Task]) -> list[Task]:
        return [task for task in tasks if not task.done and not task.spent]

    def _step(self, tasks: list[Task]) -> None:
        requests = {task.name: Request(task.block, task.ask()) for task in tasks}
        estimating = [(estimator, estimator.requests()) for estimator in self._along if not estimator.done]
        for _, asked in estimating:
            requests.update(asked)
        testing = [task for task in tasks if task.zero_test is not None]
        if testing and self._full_norm is None:
            requests[PROBE] = Request(self.full_block, self.probe())
        products = self.data_pass.run(requests)
        refuse_not_finite(self.data_pass, requests, products)
        for estimator, asked in estimating:
            told = {key: products[key] for key in asked}
            refuse_large_powers(told)
            estimator.tell(told)
        if PROBE in requests:
            self._full_norm = float(torch.linalg.vector_norm(products.pop(PROBE)))
        requests.clear()
        for task in tasks:
            task.tell(products.pop(task.name))
        if testing:
            assert self._full_norm is not None
            self._settle_zero_tests(testing, self._full_norm)
        self._settle([task for task in tasks if not task.done and task.zero_test is None and task.told])

    def _settle_zero_tests(self, testing: list[Task], full_norm: float) -> None:
        level = zero_level(self.eps, full_norm)
        unseen = self._unseen(testing) if level == 0.0 else {}
        for task in testing:
            assert task.zero_test is not None
            if task.block.name not in self.data_pass.touched:
                task.zero_bound, task.done = 0.0, True
            elif task.name in unseen:
                task.zero_bound, task.done = unseen[task.name], True
            else:
                task.zero_bound = zero_bound(level, task.zero_test.norm, task.block.numel)
                task.done = task.zero_bound is not None
            task.vanished, task.zero_test = task.zero_test.norm == 0.0, None
        unsampled = {task.name: task.block for task in testing if not task.done}
        if unsampled:
            refused = self.check_unsampled(unsampled, full_norm)
            for task in testing:
                task.done = task.done or task.name in refused

    def _unseen(self, tasks: list[Task]) -> dict[str, float]:
        """Zero bounds where even the full product is 0: in another precision it may not be."""
        rows = {t.name: Candidate(t.block, t.zero_test.ask(), 0.0) for t in tasks if t.zero_test is not None}
        seen = self.meter.measure(rows)
        return {task.name: max(random_bound(seen[task.name].norm, task.block.numel), SMALLEST_NORM) for task in tasks}

    def _settle(self, tasks: list[Task]) -> None:
        self._measure([t for t in tasks if t.rounding is None and (t.process.proposes or self._noisy(t))])
        # A search may have read the whole matrix since.
        self._measure([task for task in tasks if task.process.proposes and task.half_measured])
        for task in tasks:
            if task.rounding is not None and task.process.proposes:
                task.judge(self.tol, self.eps, self.length, self.exclude)
                task.done = True

    def _noisy(self, task: Task) -> bool:
        return bool(getattr(task.process, "relative_residual", math.inf) <= max(NOISE * self.eps, self.meter.noise))

    def _measure(self, tasks: list[Task]) -> None:
        if not tasks:
            return
        others = [t for t in self._now if t not in tasks and t.told and not t.done and t.rounding is None]
        known = {task.name: one for task in [*tasks, *others] if (one := task.candidate()) is not None}
        asked = {task.name: known.pop(task.name) for task in tasks}
        measured = self.meter.measure(asked, known)
        for task in tasks:
            task.settle(measured[task.name], self.eps, self.length)

    def _give_best(self, task: Task) -> None:
        in_time = self.time_limit is None or not self.stopped
        if task.rounding is None and in_time and len(task.process.candidates().values):
            self._measure([task])
        task.judge(self.tol, self.eps, self.length, self.exclude)
        assert task.certificate is not None
        # Its search for copies is not over, but what they could be is excluded.
        converged = task.certificate.converged
        task.done = task.spent and None not in (self.exclude, task.rounding) and len(converged) > 0 and all(converged)

    def _report(self, passes: int, seconds_per_pass: float) -> None:
        if self.progress is None:
            return
        waiting = self._open(self.tasks)
        estimators = [estimator for group in self.estimators for estimator in group]
        estimating = sum(not estimator.done for estimator in estimators)
        distances = {task.name: task.distance(self.tol) for task in waiting if task.told}
        worst = max(distances, key=lambda name: distances[name], default="")
        self.progress.update(
            Snapshot(
                passes=passes,
                products=self.data_pass.counters.total("products"),
                converged=len(self.tasks) + len(estimators) - len(waiting) - estimating,
                total=len(self.tasks) + len(estimators),
                worst_block=worst,
                worst_bound=distances.get(worst, math.nan),
                elapsed=self._elapsed,
                remaining=self._remaining(distances.get(worst, math.nan), passes, seconds_per_pass) if waiting else 0.0,
            )
        )

    @staticmethod
    def _remaining(worst: float, passes: int, seconds_per_pass: float) -> float:
        """Seconds left: residuals fall roughly by a constant factor a pass. NaN where that cannot be seen yet."""
        if not math.isfinite(worst) or passes < 4:
            return math.nan
        start = 300.0  # a typical first residual over its tolerance
        rate = max(0.15, math.log(start / max(min(worst, start * 0.99), 1.0)) / passes)
        return seconds_per_pass * max(1.0, math.log(max(worst, 1.0)) / rate)
