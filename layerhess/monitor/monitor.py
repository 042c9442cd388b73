"""The monitor: the largest eigenvalue of every block and of the whole model, while a model trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from layerhess.analysis.result import history_page
from layerhess.checks.second_derivative import named_operations
from layerhess.curvature.data_pass import FULL, DataPass
from layerhess.curvature.device import beside, budget, synchronise
from layerhess.curvature.matrices import HESSIAN
from layerhess.curvature.operator import UncheckedOperator
from layerhess.curvature.scaled_graph import Scaled
from layerhess.errors import InputError, LayerhessWarning, checked_integer
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.monitor.arguments import check_data, checked_overhead, usable_folder
from layerhess.monitor.forecast import COST, first_point
from layerhess.monitor.loggers import TABLE, Log, Table, log_of, tensorboard
from layerhess.monitor.preconditioner import Preconditioner, preconditioner, torch_optimizer
from layerhess.monitor.soundness import Soundness
from layerhess.monitor.spacing import Spacing
from layerhess.monitor.tracking import Tracked, Tracker
from layerhess.monitor.untouched import as_the_training_has_it, said_of_mode
from layerhess.objective.blocks import Block, Scheme, flatten
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import preserved_random_state
from layerhess.results.history import STOPPED, History
from layerhess.results.point import Point, Reading

if TYPE_CHECKING:
    import pandas as pd

PRECONDITIONED = f"{FULL} preconditioned"
OFTEN = 100  # points up to which the history is written at each of them; later it may lack a hundredth


class Monitor:
    """Follows the largest eigenvalue of every block's Hessian, and of the whole model's, while the model trains.

    Each point begins with the last eigenvectors, with one random vector beside them, and takes two to eight passes over
    the objective's data (:mod:`layerhess.monitor.tracking`). Training is not changed: weights, buffers, gradients,
    random states and the optimizer's state are the same, bit by bit, as without the monitor. If anything fails, the
    monitor warns once and is silent from then on. Dropout is switched off while the monitor looks.

    Args:
        objective: on data of its own; a few hundred examples cost little. every: steps from one point to the next at
            least. blocks: a block scheme, see :func:`layerhess.analyze`; None for the whole model alone. full: follow
            the whole model ("(full)").
        overhead: the monitor's own time over the training's at most, from the first point on; points are farther apart
            where they cost more, and the first one waits until there is time for it. None makes a point at every
            ``every``-th step.
        optimizer: the one that trains; its preconditioned sharpness is compared with its stability threshold
            (:mod:`layerhess.monitor.preconditioner`). out: a folder for the results
            (:mod:`layerhess.results.history`); a history there is replaced. seed: of the random vectors.

    Attributes:
        history: all points. notes: sentences that belong to the numbers. failure: what went wrong, or "".

    Raises:
        InputError: an argument that cannot be used; later nothing is raised.

    >>> import torch, layerhess as lh
    >>> _ = torch.manual_seed(0)
    >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
    >>> data = (torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.zeros(2, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> monitor = lh.Monitor(lh.Objective(model, data, loss), every=2, overhead=None, optimizer=optimizer)
    >>> for step in range(4):
    ...     optimizer.zero_grad()
    ...     loss(model(data[0]), data[1]).backward()
    ...     optimizer.step()
    ...     point = monitor.step()
    >>> point.step, round(point.full.lambda_max, 4), round(point.full.ratio, 4)      # 2 mean(x^2) = 9; 9 / (2 / lr)
    (4, 9.0, 0.45)
    """

    def __init__(
        self,
        objective: Objective,
        every: int = 100,
        blocks: Scheme | None = "weight",
        full: bool = True,
        overhead: float | None = 0.05,
        optimizer: Any = None,
        out: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(objective, Objective):
            raise InputError(
                f"the first argument is {type(objective).__name__}, not an Objective",
                where="Monitor",
                what_to_do="write lh.Monitor(lh.Objective(model, data, loss))",
            )
        check_data(objective.data)
        if not full and (blocks is None or optimizer is not None):
            asked = "nothing to follow" if blocks is None else "the preconditioned sharpness is the whole model's"
            raise InputError(f"full is False, and {asked}", where="full", what_to_do="use full=True")
        self._given, self._full = objective, full
        self._scheme = blocks
        self._operator = UncheckedOperator(objective, HESSIAN, "parameter" if blocks is None else blocks)
        self._optimizer = None if optimizer is None else torch_optimizer(optimizer)
        if self._optimizer is not None:
            preconditioner(self._optimizer, objective.parameters)
        seed = checked_integer(seed, "seed", 0)
        self._spacing = Spacing(checked_integer(every, "every", 1), checked_overhead(overhead))
        self._tracker = Tracker(seed)
        self._soundness = Soundness()
        self._count = self._written = 0
        self._checking = 0.0  # seconds of the latest point's checks
        self._forecast = overhead is None
        self.failure = ""
        self.history = History(self._settings(seed), optimizer=self._optimizer is not None)
        if sentence := said_of_mode(objective, self._optimizer):
            self.notes.append(sentence)
            warnings.warn(sentence, LayerhessWarning, stacklevel=2)
        self._logs: list[Log] = []
        self._folder = None if out is None else usable_folder(out)
        self._table: Table | None = None
        if self._folder is not None and objective.group.rank == 0:
            self.history.save(self._folder)
            self._table = Table(self._folder / TABLE, self.history.columns)
            if (log := tensorboard(self._folder)) is not None:
                self._logs.append(log)

    # -- for those who train --------------------------------------------------------------------------------------

    def step(self, number: int | None = None) -> Point | None:
        """To be called after every step of the optimizer; a point, if one is made.

        Args:
            number: of the step, where the training counts itself; by default the calls are counted.
        """
        if self.failure:
            return None
        before = number - 1 if number is not None and not self._count else self._count  # a training that goes on
        self._count = before + 1 if number is None else number
        try:
            self._spacing.begin()
            if not self._spacing.passes(before, self._count):
                return None
            synchronise(*self._given.devices)  # what the training has begun is its own time
            with self._given.group.together():  # where one rank fails, all hear of it
                return self._due()
        except Exception as error:
            self._fail(error)
            return None

    def attach(self, logger: Any) -> None:
        """Log to this logger too, see :func:`layerhess.monitor.loggers.log_of`.

        Raises:
            InputError: no logger that is known.
        """
        self._logs.append(log_of(logger))

    def close(self) -> None:
        """At the end of a training: write what the history file lacks yet, and the page of its curves.

        After a failure too: the points until then hold, and a note says why there are no more.
        """
        if self._folder is not None and self._given.group.rank == 0:
            try:
                self._write(self._folder)
                with preserved_random_state():  # making the page imports modules that draw random numbers
                    history_page(self._folder, self.history)
            except Exception as error:
                if not self.failure:  # else it was said already
                    self._fail(error)

    def to_frame(self) -> pd.DataFrame:
        """A row per point and block, see :meth:`layerhess.results.history.History.to_frame`."""
        return self.history.to_frame()

    @property
    def share(self) -> float:
        """The monitor's own time over the training's, both measured; 0 before there was any."""
        return self._spacing.share

    @property
    def points(self) -> list[Point]:
        """All points, in their order."""
        return self.history.points

    @property
    def notes(self) -> list[str]:
        """Sentences that belong to the numbers."""
        return self.history.notes

    def __repr__(self) -> str:
        """How many points there are, what they cost, and the latest one."""
        if self.failure:
            state = f"failed: {self.failure}"
        elif self.points:
            state = f"{self.share:.1%} of the training's time\n{self.points[-1]}"
        else:
            wait = self._spacing.first_after
            state = f"there is time for the first one after {wait:.1g} s of training" if wait else "not begun"
        return f"Monitor of {type(self._given.model).__name__}, {len(self.points)} points, {state}"

    # -- one point ------------------------------------------------------------------------------------------------

    def _due(self) -> Point | None:
        """A point, if there is time for it."""
        spacing, group = self._spacing, self._given.group
        if not self._forecast:
            if not group.agreed(spacing.has_steps(COST)):
                return None
            with spacing.working():
                self._expect()
        if not group.agreed(spacing.affords(self._soundness.due)):
            return None
        before = spacing.own
        with spacing.working():
            point = self._point()
            self.history.points.append(point)
            if group.rank == 0:
                self._tell(point)
        spacing.note(spacing.own - before - self._checking, self._checking)
        return point

    def _expect(self) -> None:
        with self._session() as objective:
            full = self._full + (self._optimizer is not None and not self._preconditioner().plain)
            self._spacing.expect(*first_point(objective, len(self._blocks), full))
        self._forecast = True

    def _point(self) -> Point:
        number = len(self.points)
        conditioned = None if self._optimizer is None else self._preconditioner()
        operator, clock = self._operator, self._spacing
        start = clock.spent
        with self._session() as objective:
            blocks: dict[str, Block] = dict(self._blocks)
            if self._full:
                blocks[FULL] = operator.full
            roots: Tensor | None = None
            if conditioned is not None and not conditioned.plain:
                blocks[PRECONDITIONED] = operator.full
                place = beside(operator.full, objective.parameters)
                roots = flatten(operator.full, conditioned.inverse_roots).to(place)
            checked = self._soundness.due or any(map(self._soundness.lacks, blocks))
            if checked:
                self._soundness.look(objective, self._blocks, operator.full)
            self._checking = clock.spent - start
            memory = budget(objective.devices, group=objective.group)
            with operator.session(memory) as data_pass:
                solvers = self._followed(objective, blocks, roots, number)
                gradients, before = _gradients(data_pass), clock.spent
                if checked:
                    self._measure(objective, blocks, solvers, memory, conditioned)
                    self._checking += clock.spent - before
            self._soundness.points += 1
            readings = self._readings(solvers, gradients, conditioned)
        self._note(objective)
        return Point(self._count, readings, clock.spent - start, checked)

    def _followed(
        self, objective: Objective, blocks: Mapping[str, Block], roots: Tensor | None, number: int
    ) -> dict[str, Lanczos]:
        spacing, seconds = self._spacing, [0.0]

        def products(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
            start = spacing.spent
            asked = {
                key: (blocks[key], own * roots if key == PRECONDITIONED and roots is not None else own)
                for key, own in rows.items()
            }
            made = self._operator.apply(asked)
            if PRECONDITIONED in made and roots is not None:
                made[PRECONDITIONED] *= roots
            synchronise(*objective.devices)
            seconds[0] = spacing.spent - start
            return made

        tracked = {
            key: Tracked(block.numel, beside(block, objective.parameters), objective.dtype)
            for key, block in blocks.items()
        }
        return self._tracker.follow(tracked, number, products, lambda: objective.group.agreed(spacing.has(seconds[0])))

    def _measure(
        self, objective: Objective, blocks: Mapping[str, Block], solvers: Mapping[str, Lanczos], memory: Any,
        conditioned: Preconditioner | None,
    ) -> None:  # fmt: skip
        plain = {key: (blocks[key], solver) for key, solver in solvers.items() if key != PRECONDITIONED}
        self._soundness.measure(objective, plain, memory)
        if PRECONDITIONED in solvers and conditioned is not None:
            asked = {PRECONDITIONED: (blocks[PRECONDITIONED], solvers[PRECONDITIONED])}
            scaled = Scaled(HESSIAN.make_graph, conditioned.inverse_roots)
            self._soundness.measure(objective, asked, memory, scaled)

    def _readings(
        self, solvers: Mapping[str, Lanczos], gradients: int, conditioned: Preconditioner | None
    ) -> dict[str, Reading]:
        found = {
            key: self._tracker.certified(solvers, key, self._soundness.rounding(key, solver))
            for key, solver in solvers.items()
        }
        readings = {}
        for key, one in found.items():
            if key == PRECONDITIONED:
                continue
            reading = Reading(key, one.value, one.bound, one.missed_factor, one.products, gradients)
            if key == FULL and conditioned is not None:
                own = found.get(PRECONDITIONED, one)
                products = one.products + (own.products if own is not one else 0)
                reading = Reading(
                    key, one.value, one.bound, one.missed_factor, products, gradients,
                    own.value, own.bound, conditioned.threshold, own.value / conditioned.threshold,
                )  # fmt: skip
            readings[key] = reading
        return readings

    # -- what it is made of -----------------------------------------------------------------------------------------

    @property
    def _blocks(self) -> dict[str, Block]:
        return {} if self._scheme is None else self._operator.blocks

    def _preconditioner(self) -> Preconditioner:
        assert self._optimizer is not None
        return preconditioner(self._optimizer, self._given.parameters)

    @contextmanager
    def _session(self) -> Iterator[Objective]:
        """The objective in session, in the state to look at."""
        objective = self._given
        with objective.session(), named_operations(objective), as_the_training_has_it(objective, self.notes):
            yield objective

    def _note(self, objective: Objective) -> None:
        self.notes.extend(note for note in objective.notes if note not in self.notes)

    def _settings(self, seed: int) -> dict[str, Any]:
        scheme, objective = self._scheme, self._given
        named = scheme if scheme is None or isinstance(scheme, str) else list(self._operator.blocks)
        return {
            "every": self._spacing.every,
            "overhead": self._spacing.overhead,
            "blocks": named,
            "full": self._full,
            "optimizer": None if self._optimizer is None else type(self._optimizer).__name__,
            "seed": seed,
            "model": type(objective.model).__name__,
            "parameters": objective.numel,
            "loss": objective.evaluation.name,
            "mode": objective.mode,
            "dtype": str(objective.dtype).removeprefix("torch."),
        }

    # -- telling ------------------------------------------------------------------------------------------------------

    def _tell(self, point: Point) -> None:
        for log in self._logs:
            log(point.metrics(), point.step)
        if self._folder is None or self._table is None:
            return
        self._table.add(point)
        if len(self.points) - self._written >= max(1, len(self.points) // OFTEN):
            self._write(self._folder)

    def _write(self, folder: Path) -> None:
        self.history.share = self.share
        self.history.save(folder)
        self._written = len(self.points)

    def _fail(self, error: Exception) -> None:
        said = str(error).strip().splitlines()
        self.failure = f"{type(error).__name__}: {said[0] if said else 'no message'}"
        self.notes.append(f"{STOPPED} at step {self._count}: {self.failure}")
        self._tracker.forget()
        warnings.warn(
            f"the curvature monitor stopped at step {self._count} and says nothing more; the training is not changed "
            f"({self.failure})",
            LayerhessWarning,
            stacklevel=3,
        )


def _gradients(data_pass: DataPass) -> int:
    """Gradients of all the data that a session's graphs took."""
    return round(data_pass.counters.total("backwards") / max(1, len(data_pass.counts)))
