"""Measures the rounding error of products: the same product in two precisions, on a sample of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from layerhess.checks.candidate import Candidate, outermost
from layerhess.checks.float64_copy import CoarseError, refuse_coarse
from layerhess.checks.heavy_examples import HeavyExamples
from layerhess.checks.matrix_rounding import FEWER, SIGNS, Rounding, RowRounding, of_errors
from layerhess.checks.output_rounding import OutputError, output_error
from layerhess.checks.sample import Sample, counting_parts
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import DataPass, Request
from layerhess.curvature.device import Budget, beside
from layerhess.curvature.difference_graph import Differences
from layerhess.curvature.factors.mixed_graph import MixedGraphs
from layerhess.curvature.smaller_pieces import note_on
from layerhess.linalg.bounds import ASSUMED_ROUNDING, FLOAT64_OF_FLOAT32, OTHER_SAFETY, ROUNDING_SAFETY
from layerhess.linalg.random_vectors import random_signs
from layerhess.objective import batches
from layerhess.objective.blocks import Block, in_groups
from layerhess.objective.objective import Objective
from layerhess.objective.perturbation import perturbed_copy

SHARE = 0.05  # of the budget, that the sample's graphs of either precision may keep between measurements
NOISE = 10.0  # times the error of differences
MOVES = 3  # times that weights are moved: by chance one move may show nothing
COPIED = 3 * 8  # bytes a parameter: a float64 copy, its gradient, and products
COPY_SHARE, MOST_COPIED = 0.2, 0.4  # of a budget that was asked for: set aside for these; and the most they may take


class RoundingMeter:
    """Measures ||(A~ - A) v|| on a sample of the data, A~ being the product in the model's precision, A in another.

    A float32 (or half precision) model is compared with a float64 copy; so is a float64 model whose graph passes
    through a coarser dtype. Any other float64 model is compared with a float32 copy, and the difference scaled by
    2^-29, the ratio of the unit roundoffs; where float32 overflows, with float64 products of weights and data that were
    rounded to float32. Two figures are taken: the absolute error on the sample, divided by how much more curved its
    examples are than the data's; and the relative error there times the eigenvalue. The larger one times a safety
    factor is the rounding part of a bound, never less than :func:`layerhess.checks.output_rounding.output_error`. Where
    no copy runs in another precision, or computes in the same inside, the other products are those at weights moved by
    their last digit (:mod:`layerhess.objective.perturbation`), and no less than 1e-5 |theta| (in float32) is believed;
    where that fails too, or has no room, this much is assumed.

    Products by differences of gradients are compared with those of twice the step, on all data; that overstates their
    error.

    A sample that is all the data needs no such scaling. One that is not is joined by the examples that carry the
    candidates' eigenvalues (:mod:`layerhess.checks.heavy_examples`), where any stand out.

    Attributes:
        noise: a relative residual this small may be the error of the products, beside their rounding. failure: why no
            copy in another precision could be used, or "". assumes: nor one of perturbed weights. note: a sentence
            where memory ran out and pieces of the sample were cut, or "".

    Args:
        objective: in session. sample: to measure on, see :meth:`layerhess.checks.sample.Sampler.measured`.
        coarsest: the coarsest dtype in the objective's graph. counters: counts under "rounding".
        make_graph: as for the :class:`layerhess.curvature.data_pass.DataPass` whose products are measured. memory: the
            budget. settled: tells what an earlier run did, see :meth:`layerhess.curvature.journal.Journal.settled`.
        heavy: look for those examples, which costs passes over the data.
    """

    def __init__(
        self,
        objective: Objective,
        sample: Sample,
        coarsest: torch.dtype,
        counters: Counters,
        make_graph: GraphMaker,
        memory: Budget,
        settled: Callable[[str, Any], Any] = lambda key, value: value,
        heavy: bool = True,
    ) -> None:
        self._settled, self._number = settled, 0
        self._sizes: list[int | None] = [None, None]  # examples at a time in either pass, where memory ran out
        self._objective = objective
        # A kink that is crossed in one example shows nowhere else, so that differences are measured on all data.
        self._sample = replace(sample, whole=True) if isinstance(make_graph, Differences) else sample
        self._samples = sample.pieces
        self._counters = counters
        self._coarsest = coarsest
        self._make_graph = make_graph
        self._memory = memory
        self._stack = ExitStack()
        self._passes: tuple[DataPass, ...] | None = None  # ours, then the others
        self._wide: DataPass | None = None
        self._of_output = OutputError()
        self._joined = not heavy  # the heavy examples to the sample
        self.failure = self.note = ""
        self.assumes = False
        errors = make_graph.errors.values() if isinstance(make_graph, Differences) else ()
        self.noise = NOISE * max(errors, default=0.0)

    def __enter__(self) -> RoundingMeter:
        return self

    def __exit__(self, *error: object) -> None:
        self._let_go()

    def _let_go(self) -> None:
        self._look_at_sizes()
        self._forget()

    def measure(
        self, blocks: Mapping[str, Candidate], beside: Mapping[str, Candidate] = MappingProxyType({})
    ) -> dict[str, Rounding]:
        """For each key, the absolute rounding error of a product and how it was obtained.

        Args:
            blocks: by key. beside: others, for which rounding will be measured later: the sample is chosen at the first
                call, for all of them.
        """
        found: dict[str, Rounding] | None = None
        with self._counters.during("rounding"), self._as_before():
            if not (self._joined or self._sample.whole):
                self._join_heavy({**beside, **blocks})
                self._joined = True
            while found is None and self._open():
                try:
                    found = self._compare(blocks)
                except Exception as error:  # user code runs in another dtype here and may raise anything: fall back
                    self._give_up(error)
            if torch.float64.itemsize * self._objective.numel > SHARE * self._memory.room:
                self._let_go()  # the copy: it is made again for the next measurement
        found = self._objective.group.agreed(found or {})
        return {
            key: own if (own := found.get(key)) and own.finite else Rounding(self._assumed * one.norm, "assumed")
            for key, one in blocks.items()
        }

    def measure_rows(self, full: Block, norm: float) -> RowRounding:
        """The rounding of the rows of the full matrix, by random signs, one at a time.

        Args:
            full: the block of all parameters. norm: the Frobenius norm of its matrix.
        """
        found, told = self._measured_rows(full, norm), self._objective.group.gathered
        if len(set(told(self._perturbed))) > 1:  # where one rank has no copy, no rank takes its own
            if not (self._perturbed or self.assumes):
                self._give_up(RuntimeError("no such copy on another process"))
            found = self._measured_rows(full, norm)
        measured = all(told(found is not None))  # a rank may have no room for the copy
        return found if found and measured else RowRounding(self._assumed)

    def _measured_rows(self, full: Block, norm: float) -> RowRounding | None:
        """None where no copy can be used."""
        with self._counters.during("rounding"), self._as_before():
            while self._open():
                try:
                    squares, seen = self._squares(full)
                    break
                except Exception as error:  # as in measure
                    self._give_up(error)
            else:
                return None
        scale = self._to_data(norm, math.sqrt(seen / FEWER))
        rows = self._safety * SIGNS / FEWER * scale * (squares / FEWER).sqrt()
        least = self._assumed if self._perturbed else 0.0
        return RowRounding(max(ROUNDING_SAFETY * self._least(full.name), least), full.split(rows))

    def _squares(self, full: Block) -> tuple[Tensor, float]:
        """Sums over products with random signs: each row's squared difference, and the products' squared norms."""
        own, *others = self._passes or ()
        device, n = beside(full, self._objective.parameters), full.numel
        squares, seen = torch.zeros((len(others), n), dtype=torch.float64, device=device), 0.0
        for number in range(FEWER):
            request = {full.name: Request(full, random_signs(n, 0, full.name, number, device)[None])}
            ours = own.run(request)[full.name][0]
            for row, copied in zip(squares, others, strict=True):
                other = self._other(copied, request)[full.name][0]
                row += (self._scale * (ours - other)).square()
            seen += float(other.square().sum())
        return squares.amax(0), seen

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        """Around a measurement: it gives up, or takes smaller pieces, where memory ran out in an earlier run."""
        self._number += 1
        key = f"how rounding was found, time {self._number}"
        if known := self._settled(key, False):
            self._sizes, failure, assumes = known
            if failure:
                self._forget()
                self.failure, self.assumes = failure, assumes
            elif size := min(filter(None, self._sizes), default=None):
                self.note = note_on(size)
        yield
        self._look_at_sizes()
        if self.failure or any(self._sizes):
            self._settled(key, [self._sizes, self.failure, self.assumes])

    def _look_at_sizes(self) -> None:
        if self._passes is not None:
            own, *others = (data_pass.objective.batch_size for data_pass in self._passes)
            self._sizes = [own, min((size for size in others if size is not None), default=None)]

    def _join_heavy(self, candidates: Mapping[str, Candidate]) -> None:
        """Add the examples that carry the candidates' eigenvalues to the sample."""
        requests = {key: Request(one.block, outermost(one.vectors)) for key, one in candidates.items()}
        try:
            norms = {key: one.norm for key, one in candidates.items()}
            examples = HeavyExamples(self._objective, self._counters, self._make_graph)
            heavy = self._objective.group.tried(lambda: examples.find(requests, norms))
        except Exception:  # a model's outputs need not be known, nor its examples be along dimension 0
            return
        if heavy:
            own = [one.batch for one in heavy]
            every = [*self._samples, *own]
            if (most := self._sample.most) is not None:
                self._samples = [part for one in every for part in counting_parts(self._objective, one, most)]
                return
            whole = batches.joined(every)  # one graph costs less than two
            self._samples = every if whole is None else [whole]

    def _compare(self, blocks: Mapping[str, Candidate]) -> dict[str, Rounding]:
        found: dict[str, Rounding] = {}
        for group in in_groups({key: one.block for key, one in blocks.items()}, self._objective.numel // 2):
            found |= self._compared({key: blocks[key] for key in group})
        return found

    def _compared(self, blocks: Mapping[str, Candidate]) -> dict[str, Rounding]:
        own, *others = self._passes or ()
        known = {key: one.images for key, one in blocks.items() if one.images is not None and self._sample.whole}
        requests = {key: Request(one.block, one.rows) for key, one in blocks.items()}
        left = {key: request for key, request in requests.items() if key not in known}
        ours = known | (own.run(left) if left else {})
        found: dict[str, Rounding] = {}
        for copied in others:
            made = self._other(copied, requests)
            for key, one in blocks.items():
                error = self._rounding(key, one, ours[key], made.pop(key))
                found[key] = found[key].or_worse(error) if key in found else error
        return found

    def _other(self, copied: DataPass, requests: Mapping[str, Request]) -> dict[str, Tensor]:
        """The products in the other precision, or what stands for them where float32 has no numbers."""
        made = copied.run(requests)
        lost = {key: one for key, one in requests.items() if not bool(torch.isfinite(made[key]).all())}
        if not lost or not self._exact:
            return made
        if self._wide is None:
            narrow = self._objective.cast(torch.float32, self._samples)
            rounded = narrow.cast(torch.float64, list(narrow.data))
            self._stack.enter_context(rounded.session())
            self._wide = self._pass(rounded)
        return made | self._wide.run(lost)

    def _rounding(self, key: str, one: Candidate, ours: Tensor, other: Tensor) -> Rounding:
        """From the products of :attr:`Candidate.rows` in either precision; ``other`` is overwritten."""
        k = len(outermost(one.vectors))
        size = max(float(torch.linalg.vector_norm(other[:k], dim=1).max()), 0.01 * one.norm)
        errors = other.sub_(ours).mul_(self._to_data(one.norm, size) * self._scale)
        least = self._least(key) * one.norm
        worst = float(torch.linalg.vector_norm(errors[:k], dim=1).max())
        matrix = None if one.directions is None else of_errors(one.directions, errors[k:], self._safety)
        if self._perturbed:
            return Rounding(max(self._safety * worst, self._assumed * one.norm), "perturbed", matrix)
        return Rounding(max(self._safety * worst, ROUNDING_SAFETY * least), "measured", matrix)

    def _to_data(self, norm: float, size: float) -> float:
        """What errors on the sample are multiplied by, to stand for all the data.

        The relative error on the sample is used for the data: the sample may have less curvature than all of it.

        Args:
            norm: of the products on all the data. size: of those on the sample.
        """
        if self._sample.whole or not size > 0.0:
            return 1.0
        return max(1.0 / self._sample.excess, norm / size)

    def _open(self) -> bool:
        """Have the passes that are compared, if that is possible."""
        if self._passes is None and not self.failure:
            if isinstance(self._make_graph, Differences):
                doubled = self._make_graph.doubled()
                self._passes = self._pass(self._objective), self._pass(self._objective, doubled, place=1)
                return True
            if (needed := COPIED * self._objective.numel) > MOST_COPIED * _allowed(self._memory):
                self.assumes = True
                self.failure = (
                    f"with its gradient and products it takes {needed / 2**20:.3g} MiB; "
                    f"memory='{math.ceil(needed / MOST_COPIED / 2**20)}MiB' would do"
                )
                return False
            try:
                copied = self._copied()
                self._passes = self._pass(self._objective.narrowed(self._samples)), self._pass(copied, place=1)
            except Exception as error:  # deepcopy of user modules and their forward passes can raise anything
                self._give_up(error)
        if self._passes is None and self._perturbed:
            try:
                copies = [perturbed_copy(self._objective, self._samples, self._coarsest, i) for i in range(MOVES)]
                for one in copies:
                    self._stack.enter_context(one.session())
                moved = (self._pass(one, place=1) for one in copies)
                self._passes = self._pass(self._objective.narrowed(self._samples)), *moved
            except Exception as error:
                self._give_up(error)
        return self._passes is not None

    def _copied(self) -> Objective:
        """In the other precision, in session."""
        dtype = torch.float32 if self._objective.dtype == torch.float64 else torch.float64
        copied = self._objective.cast(dtype, self._samples)
        self._stack.enter_context(copied.session())
        if not self._exact:
            refuse_coarse(copied, self._coarsest)
        if self._sample.curvature > 0.0 or self._sample.whole:
            data = [batches.cast(piece, dtype) for piece in self._sample.pieces]
            self._of_output = output_error(self._sample, copied.narrowed(data), self._scale)
        return copied

    def _pass(self, objective: Objective, make: GraphMaker | None = None, place: int = 0) -> DataPass:
        keep = SHARE * self._memory.room
        make = self._make_graph if make is None else make
        sizes = [] if objective.tied_norms or not isinstance(objective.data, list) else objective.data
        largest = max((batches.leading_size(piece) or 0 for piece in sizes), default=0)
        if (size := self._sizes[place]) is not None:
            objective = objective.resized(size)
        return DataPass(
            objective, list(objective.parameters), self._counters, keep=keep, make_graph=make, largest=largest
        )

    def _give_up(self, error: Exception) -> None:
        self.assumes = bool(self.failure) or isinstance(self._make_graph, Differences)
        said = str(error).splitlines()[0] if str(error) else ""
        self.failure = self.failure or (said if isinstance(error, CoarseError) else f"{type(error).__name__}: {said}")
        self._forget()

    def _forget(self) -> None:
        for data_pass in (*(self._passes or ()), self._wide):
            if data_pass is not None:
                self.note = self.note or data_pass.note
                data_pass.release()
        self._passes = self._wide = None
        self._of_output = OutputError()
        self._stack.close()

    def _least(self, key: str) -> float:
        """Relative error that rounding of the output causes in a block's products in any case."""
        factored = isinstance(self._make_graph, MixedGraphs) and key in self._make_graph.blocks  # with S in float64
        of_output = self._of_output
        if self._sample.whole:  # the products show the rest, but for luck where few items carry all
            return max(of_output.lost, of_output.moved / math.sqrt(of_output.carrying))
        return max(of_output.moved, of_output.lost, 0.0 if factored else of_output.evaluated)

    @property
    def _exact(self) -> bool:
        """Nothing in the model is coarser than float64, so no copy is more precise."""
        in_float64 = self._objective.dtype == torch.float64 and self._coarsest == torch.float64
        return in_float64 and not isinstance(self._make_graph, Differences) and not self.failure

    @property
    def _perturbed(self) -> bool:
        """The other products are those at weights moved by their last digit."""
        return bool(self.failure) and not self.assumes

    @property
    def _scale(self) -> float:
        """Of differences of products."""
        return FLOAT64_OF_FLOAT32 if self._exact else 1.0

    @property
    def _safety(self) -> float:
        return OTHER_SAFETY if self._exact or self._perturbed else ROUNDING_SAFETY

    @property
    def _assumed(self) -> float:
        """Relative rounding error of products that is believed without a measurement."""
        return ASSUMED_ROUNDING * torch.finfo(self._coarsest).eps / torch.finfo(torch.float32).eps


def set_aside(numel: int, memory: Budget) -> float:
    """Bytes that rounding takes beyond its share of a budget that was asked for, so that graphs must leave them."""
    needed = COPIED * numel
    fits = needed <= MOST_COPIED * _allowed(memory)
    return max(0.0, needed - COPY_SHARE * _allowed(memory)) if fits else 0.0


def _allowed(memory: Budget) -> float:
    return math.inf if memory.limit is None or not memory.asked else memory.room
