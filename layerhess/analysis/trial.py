"""A trial: the solvers of an analysis on a part of the data, and how the whole data compares with that part."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from layerhess.analysis.microbatches import Microbatches, multiply
from layerhess.analysis.paths.factors import graph_maker
from layerhess.analysis.progress import Forecast, Snapshot
from layerhess.analysis.run import Run
from layerhess.analysis.tasks import Task, planned
from layerhess.checks.survey import Survey
from layerhess.curvature.batch_graph import BatchGraph, GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.device import is_out_of_memory, restart_peak, synchronise, used_bytes
from layerhess.curvature.live_bytes import LiveBytes
from layerhess.errors import InputError
from layerhess.objective import batches
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective

PART = 0.5  # of the data, that the trial sees: the fewer examples, the closer lie the eigenvalues
AHEAD = 4  # whole batches whose graphs are held beside the trial
AHEAD_SECONDS = 3.0  # after which no further graph is made for that
PASS_SECONDS = 2.0  # of a pass of the trial, where half of the data would take longer; the sample is the least


@dataclass(frozen=True)
class Rows:
    """A solver's rows, each with its product.

    Attributes:
        nbytes: here, where they are whole. most: before it restarts. each_step: there is one for each step.
    """

    task: Task
    nbytes: float
    most: float
    each_step: bool

    @classmethod
    def of(cls, task: Task) -> Rows:
        """As they are now."""
        basis = getattr(task.process, "basis", None)
        if basis is None:
            return cls(task, 0.0, 0.0, False)
        row = 2.0 * basis.space.length * basis.dtype.itemsize
        return cls(task, row * basis.size, row * max(basis.size, basis.limit), basis.size >= task.products)

    def after(self, longer: float, shorter: float) -> float:
        """Bytes on each rank: of a search that is so much shorter; if it was ended, of one that is so much longer."""
        steps = shorter * (1.0 if self.task.done else longer) if self.each_step else 1.0
        return min(self.most, self.nbytes * steps) / self.task.ranks


class Trial(Run):
    """An analysis whose passes see half of the data at most; all decisions are those for the whole of it.

    Attributes:
        pass_seconds: of each pass, the products alone. cut: how batches of the data would be cut. together: which
            of them would be joined. tried: the batches that the passes see. ahead: of some batches of the
            data, held as an analysis holds them: examples, the graph, and by how many bytes the process grew.
        rows: of the solvers, when they held the most.
    """

    holds_joined = False  # that takes two passes over all data
    cut = Microbatches()
    together: batches.Together | None = None
    tried: Sequence[Any] = ()
    rows: Sequence[Rows] = ()

    def __init__(self, *given: Any, world: int = 1) -> None:
        super().__init__(*given)
        self.pass_seconds: list[float] = []
        self.ahead: list[tuple[int, BatchGraph, float]] = []
        self.progress = self
        self.world, self.here = world, self.machine.free
        self.ranks = max(world, self.ranks)

    def _batching(self, make: GraphMaker) -> tuple[Objective, Microbatches]:
        whole, self.cut = super()._batching(make)
        assert self.surveyed is not None and self.checked is not None
        self.together = whole.together
        self.tried = _part(whole, self.surveyed, self.pieces, self._an_example(whole))
        with torch.no_grad():
            sums = [self.objective.terms(batch) for batch in self.tried]
        loss, count = sum(float(loss) for loss, _ in sums), sum(count for _, count in sums)
        self.surveyed = replace(self.surveyed, loss_sum=loss, count=count)
        self._slice_only_what_fits()
        self._look_ahead(whole, make)
        return self.objective.narrowed(list(self.tried)), self.cut

    def _an_example(self, whole: Objective) -> float:
        """Seconds of a pass for each example, or batch: of the sample, as whole batches' gradients compare with its."""
        assert self.surveyed is not None and self.checked is not None
        if not (self.surveyed.examples and self.surveyed.sample_size):
            return self.checked.block_seconds / len(self.surveyed.samples)
        first = next(iter(whole.batches()))
        on_sample = sum(gradient_seconds(self, sample) for sample in self.surveyed.samples)
        slower = gradient_seconds(self, first) / on_sample if on_sample > 0.0 else 1.0
        return self.checked.block_seconds * slower / (batches.leading_size(first) or 1)

    def _slice_only_what_fits(self) -> None:
        """Rows that are to be cut in slices are whole in the trial: where there is no room for that, none are cut."""
        assert self.checked is not None
        operators = self._operators()
        try:
            plan = planned(
                operators, self.checked, self.wanted, self.budget, self.objective, self.arguments.exclude,
                self.arguments.copies == "search", self.cut.kept, self.ranks,
            )  # fmt: skip
        except InputError:  # refused where the solvers are made, if no Gram matrix does
            return
        whole = {name: replace(held, ranks=1).nbytes(operators[name].numel, 1) for name, held in plan.held.items()}
        most = max(sum(whole[name] for name in wave) for wave in plan.waves)
        if any(held.ranks > 1 for held in plan.held.values()) and most > self.here:
            self.ranks = 1
            self._note("solvers' vectors are counted as if they were not sliced: here is no room to try that")

    def _look_ahead(self, whole: Objective, make: GraphMaker) -> None:
        """Hold graphs of whole batches, as many as are kept: a process grows by more than the bytes of its tensors.

        An allocator keeps what was freed in between and suits no later tensor. That depends on the sizes of tensors, so
        that graphs of smaller batches do not show it.
        """
        assert self.checked is not None
        room, devices, start = self.kept_room(), whole.devices, self.counters.clock()
        operators = [block for name, block in self._operators().items() if name not in self.checked.failed]
        names = list(dict.fromkeys(name for block in operators for name in block.parameters))
        before, grown = used_bytes(*devices), 0.0
        first = list(itertools.islice(whole.batches(), min(AHEAD, math.ceil(self.pieces / self.world))))
        for batch in first:
            if grown * (1.0 + 1.0 / max(len(self.ahead), 1)) > room or self.counters.clock() - start > AHEAD_SECONDS:
                break
            try:
                graph = make(whole, batch, names, Counters())
                multiply(graph, whole, operators)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                break  # a pass takes smaller pieces then
            last, grown = grown, float(used_bytes(*devices) - before)
            self.ahead.append((batches.leading_size(batch) or 1, graph, grown - last))
            del graph
        if grown > room:  # more than is kept
            self.ahead.clear()
            restart_peak(*devices)

    @property
    def pieces(self) -> int:
        """How many batches the data has, as they will be cut or joined."""
        assert self.surveyed is not None
        if self.together is not None:
            return math.ceil(self.surveyed.examples / self.together.examples)
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
            rows = [Rows.of(task) for task in self.schedule.tasks if task.told and not task.released]
            self.rows = max(self.rows, rows, key=lambda held: sum(one.nbytes for one in held))

    def forecast(self, forecast: Forecast) -> None:
        """Not needed."""

    def note(self, sentence: str) -> None:
        """Kept by the analysis itself."""


def _part(objective: Objective, surveyed: Survey, pieces: int, an_example: float) -> list[Any]:
    """The first batches, up to half of the data; where one batch is more than that, a part of it."""
    known = bool(surveyed.examples and surveyed.sample_size)
    total = surveyed.examples if known else surveyed.batches
    in_time = PASS_SECONDS / max(an_example, 1e-9)
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
        kept: bytes of graphs. taken: by which a process grows, over these. most: at a time, while products are made.
            slower: seconds of all products, over those of
            the trial. gradient_seconds: of one plain gradient over the share. examples, pieces: of the share, and
            piece: the most in one. tried: examples of the trial's batches.
    """

    kept: Growth
    taken: float
    most: Growth
    slower: float
    gradient_seconds: float
    examples: int
    pieces: int
    piece: int
    tried: tuple[int, ...]

    @property
    def graphs(self) -> float:
        """Bytes that all graphs of the share take."""
        return self.taken * (self.kept.fixed * self.pieces + self.kept.each * self.examples)

    def held(self, sizes: Sequence[int]) -> float:
        """Bytes that kept graphs of such batches take."""
        return self.taken * sum(self.kept.of(n) for n in sizes)


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
        bytes_kept, bytes_at_a_time = _live(objective, part, make, operators)
        held.append((n, bytes_kept))
        most.append((n, bytes_at_a_time))
    kept = Growth.through(held[0], held[-1])
    later = run.ahead[1:]  # with the first one comes what a process takes once
    bytes_later = sum(kept.of(n) for n, _, _ in later)
    taken = max(1.0, sum(grown for _, _, grown in later) / bytes_later) if bytes_later else 1.0
    total = surveyed.examples if known else surveyed.batches
    share, pieces = math.ceil(total / world), math.ceil(run.pieces / world)
    piece = min(surveyed.largest, run.cut.size or surveyed.largest, share) if known else 1
    of_trial = sum(gradient_seconds(run, batch) for batch in run.tried)
    whole = objective if run.cut.size is None else objective.resized(run.cut.size)
    of_one = gradient_seconds(run, next(iter(whole.batches())))
    seconds = pieces * of_one / of_trial if of_trial > 0.0 else pieces / len(tried)
    return Unit(
        kept, taken, Growth.through(most[0], most[-1]), seconds, pieces * of_one, share, pieces, piece, tried,
    )  # fmt: skip


def _live(objective: Objective, batch: Any, make: GraphMaker, operators: Sequence[Block]) -> tuple[float, float]:
    """Bytes that one batch's graph holds after products of all operators, and at a time while they are made.

    Of tensors that are alive: what autograd saves is not all of it.
    """
    batch = batches.alone(batch)
    with LiveBytes(known=objective.model.parameters()) as live:
        graph = make(objective, batch, list(objective.parameters), Counters())
        multiply(graph, objective, operators)
        held = live.now
        del graph
    return float(held), float(live.peak)


def gradient_seconds(run: Trial, batch: Any) -> float:
    """Of one plain gradient, the faster of two."""
    parameters, clock = list(run.objective.parameters.values()), run.counters.clock
    found = math.inf
    for _ in range(2):
        synchronise(*run.objective.devices)
        start = clock()
        loss, _ = run.objective.terms(batch)
        if loss.requires_grad:
            torch.autograd.grad(loss, parameters, allow_unused=True)
        synchronise(*run.objective.devices)
        found = min(found, clock() - start)
    return found
