"""A trial: the solvers of an analysis on a part of the data, and how the whole data compares with that part."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from layerhess.analysis.microbatches import Microbatches, graph_bytes
from layerhess.analysis.paths.factors import graph_maker
from layerhess.analysis.progress import Forecast, Snapshot
from layerhess.analysis.run import Run
from layerhess.checks.survey import Survey
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.device import synchronise
from layerhess.curvature.live_bytes import LiveBytes
from layerhess.objective import batches
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective

PART = 0.25  # of the data, that the trial sees: the fewer examples, the closer lie the eigenvalues
PASS_SECONDS = 1.5  # of a pass of the trial, where a quarter of the data would take longer; the sample is the least


class Trial(Run):
    """An analysis whose passes see a quarter of the data at most; all decisions are those for the whole of it.

    Attributes:
        pass_seconds: of each pass, the products alone. cut: how batches of the data would be cut. tried: the batches
            that the passes see.
    """

    cut = Microbatches()
    tried: Sequence[Any] = ()

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.pass_seconds: list[float] = []
        self.progress = self

    def _cut(self, make: GraphMaker) -> tuple[Objective, Microbatches]:
        _, self.cut = super()._cut(make)
        assert self.surveyed is not None and self.checked is not None
        whole = self.objective.resized(self.cut.size) if self.cut.size is not None else self.objective
        self.tried = _part(whole, self.surveyed, self.pieces, self.checked.block_seconds)
        with torch.no_grad():
            sums = [self.objective.terms(batch) for batch in self.tried]
        loss, count = sum(float(loss) for loss, _ in sums), sum(count for _, count in sums)
        self.surveyed = replace(self.surveyed, loss_sum=loss, count=count)
        return self.objective.narrowed(list(self.tried)), self.cut

    @property
    def pieces(self) -> int:
        """How many batches the data has, as they will be cut."""
        assert self.surveyed is not None
        cut = 0 if self.cut.size is None else math.ceil(self.surveyed.examples / self.cut.size)
        return max(self.surveyed.batches, cut)

    def kept_room(self) -> float:
        """Bytes that kept graphs may take."""
        return self._kept_room(self.cut.kept)

    @property
    def probes(self) -> int:
        """Products that estimators asked for."""
        assert self.schedule is not None
        of_solvers = sum(task.products for task in self.schedule.tasks)
        told = self.counters.counts().by_phase.get("solve", {}).get("products", 0) / max(1, len(self.tried))
        return max(0, round(told) - of_solvers) if self.arguments.estimates.any else 0

    # Its own progress: what is told is only the time of each pass.

    def update(self, snapshot: Snapshot) -> None:
        """After each pass."""
        if self.schedule is not None:
            self.pass_seconds.append(self.schedule.data_pass.seconds)

    def forecast(self, forecast: Forecast) -> None:
        """Not needed."""

    def note(self, sentence: str) -> None:
        """Kept by the analysis itself."""


def _part(objective: Objective, surveyed: Survey, pieces: int, block_seconds: float) -> list[Any]:
    """The first batches, up to a quarter of the data; where one batch is more than that, a part of it."""
    known = bool(surveyed.examples and surveyed.sample_size)
    total = surveyed.examples if known else surveyed.batches
    in_time = PASS_SECONDS * (surveyed.sample_size if known else len(surveyed.samples)) / max(block_seconds, 1e-6)
    number = max(1, min(math.ceil(PART * total), max(int(in_time), surveyed.sample_size if known else 1)))
    whole = int(number * pieces / total)
    found = list(itertools.islice(objective.batches(), max(1, whole)))
    return found if whole or not known else [batches.take(found[0], slice(0, number))]


@dataclass(frozen=True)
class Growth:
    """Bytes of one batch's graph, as a function of its examples; what has the size of the weights does not grow.

    >>> Growth.through((4, 500.0), (8, 900.0)).of(100)
    10100.0
    """

    fixed: float
    each: float

    @classmethod
    def through(cls, small: tuple[int, float], large: tuple[int, float]) -> Growth:
        """From two measurements (examples, bytes)."""
        (few, less), (many, more) = small, large
        each = max(0.0, (more - less) / (many - few)) if many > few else more / max(many, 1)
        fixed = max(0.0, more - each * many)
        return cls(fixed, each)

    def of(self, examples: float) -> float:
        """Of a batch of so many examples."""
        return self.fixed + self.each * examples


@dataclass(frozen=True)
class Unit:
    """How a process's share of the data compares with what the trial saw.

    Attributes:
        kept: bytes of graphs. most: at a time, while products are made. slower: seconds of all products, over those of
            the trial. gradient_seconds: of one plain gradient over the share. examples, pieces: of the share, and
            piece: the most in one. tried: examples of the trial's batches.
    """

    kept: Growth
    most: Growth
    slower: float
    gradient_seconds: float
    examples: int
    pieces: int
    piece: int
    tried: tuple[int, ...]

    @property
    def graphs(self) -> float:
        """Bytes of all graphs of the share."""
        return self.kept.fixed * self.pieces + self.kept.each * self.examples


def unit_of(run: Trial, surveyed: Survey, world: int) -> Unit:
    """Measured on batches of the trial and of the data (in session)."""
    assert run.checked is not None
    objective, known = run.objective, bool(surveyed.examples)
    make = graph_maker(run.curvature, run.checked.licence)
    operators = [block for name, block in run._operators().items() if name not in run.checked.failed]
    tried = tuple((batches.leading_size(batch) or 1) if known else 1 for batch in run.tried)
    large = max(range(len(tried)), key=lambda i: tried[i])
    sizes = sorted({max(1, tried[large] // 2), tried[large]}) if known else [1]
    parts = [batches.take(run.tried[large], slice(0, n)) if known else run.tried[large] for n in sizes]
    held, most = [], []
    for n, part in zip(sizes, parts, strict=True):
        bytes_kept = float(graph_bytes(objective, part, make, operators)) if operators else 0.0
        held.append((n, bytes_kept))
        most.append((n, max(bytes_kept, _peak(objective, part, make, operators))))
    total = surveyed.examples if known else surveyed.batches
    share, pieces = math.ceil(total / world), math.ceil(run.pieces / world)
    piece = min(surveyed.largest, run.cut.size or surveyed.largest, share) if known else 1
    of_trial = sum(gradient_seconds(run, batch) for batch in run.tried)
    whole = objective if run.cut.size is None else objective.resized(run.cut.size)
    of_one = gradient_seconds(run, next(iter(whole.batches())))
    seconds = pieces * of_one / of_trial if of_trial > 0.0 else pieces / len(tried)
    return Unit(
        Growth.through(held[0], held[-1]), Growth.through(most[0], most[-1]), seconds, pieces * of_one, share, pieces,
        piece, tried,
    )  # fmt: skip


def _peak(objective: Objective, batch: Any, make: GraphMaker, operators: Sequence[Block]) -> float:
    """Bytes at a time while one batch's graph and products of all operators are made."""
    with LiveBytes(known=objective.model.parameters()) as live:
        graph = make(objective, batch, list(objective.parameters), Counters())
        for block in operators:
            graph.product(block.parameters, {n: objective.parameters[n].detach() for n in block.parameters})
        del graph
    return float(live.peak)


def gradient_seconds(run: Trial, batch: Any) -> float:
    """Of one plain gradient, the faster of two."""
    parameters, clock = list(run.objective.parameters.values()), run.counters.clock
    found = math.inf
    for _ in range(2):
        synchronise(run.objective.device)
        start = clock()
        loss, _ = run.objective.terms(batch)
        if loss.requires_grad:
            torch.autograd.grad(loss, parameters, allow_unused=True)
        synchronise(run.objective.device)
        found = min(found, clock() - start)
    return found
