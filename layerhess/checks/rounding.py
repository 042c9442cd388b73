"""Measures the rounding error of products: the same product in two precisions, on a sample of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from layerhess.checks.heavy_examples import HeavyExamples
from layerhess.checks.sample import Sample
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import DataPass, Request
from layerhess.curvature.device import Budget
from layerhess.curvature.factors.mixed_graph import MixedGraphs
from layerhess.curvature.factors.output_hessian import curved
from layerhess.linalg.bounds import ASSUMED_ROUNDING, FLOAT64_OF_FLOAT32, ROUNDING_SAFETY
from layerhess.objective import batches
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective

Again = Callable[[Tensor], Tensor]
Candidate = tuple[Block, Tensor, float]
SHARE = 0.1  # of the budget, that the sample's graphs of either precision may keep between measurements
SMALLER = (16.0, 4.0, 1.0)  # the largest number in an output there
LOST_SAFETY = 8.0  # one of the items may be rounded less by luck
VECTORS = 5  # of a block's candidates, spread from the first to the last


class RoundingMeter:
    """Measures ||(A~ - A) v|| on a sample of the data, A~ being the product in the model's precision, A in another.

    A float32 (or half precision) model is compared with a float64 copy. A float64 model is compared with a float32 copy
    and the difference scaled by 2^-29, the ratio of the unit roundoffs, unless its graph itself passes through a
    coarser dtype. Two figures are taken: the absolute error on the sample, divided by how much more curved its examples
    are than the data's; and the relative error there times the eigenvalue. Three times the larger one is the rounding
    part of a bound, never less than what :func:`output_error` says. Where no copy of the model can be made, 1e-5
    |theta| is assumed (in float32).

    A sample that is all the data needs no such scaling. One that is not is joined by the examples that carry the
    candidates' eigenvalues (:mod:`layerhess.checks.heavy_examples`), where any stand out.

    Args:
        objective: in session. sample: to measure on, see :meth:`layerhess.checks.sample.Sampler.measured`.
        coarsest: the coarsest dtype in the objective's graph. counters: counts under "rounding".
        make_graph: as for the :class:`layerhess.curvature.data_pass.DataPass` whose products are measured. memory: the
            budget.
    """

    def __init__(
        self,
        objective: Objective,
        sample: Sample,
        coarsest: torch.dtype,
        counters: Counters,
        make_graph: GraphMaker,
        memory: Budget,
    ) -> None:
        self._objective = objective
        self._sample = sample
        self._samples = sample.pieces
        self._counters = counters
        self._coarsest = coarsest
        self._make_graph = make_graph
        self._memory = memory
        self._stack = ExitStack()
        self._data_passes: tuple[DataPass, DataPass] | None = None
        self._of_output = OutputError()
        self.failure = ""

    def __enter__(self) -> RoundingMeter:
        return self

    def __exit__(self, *error: object) -> None:
        for data_pass in self._data_passes or ():
            data_pass.release()
        self._stack.close()

    def measure(
        self, blocks: Mapping[str, Candidate], beside: Mapping[str, Candidate] = MappingProxyType({})
    ) -> dict[str, tuple[float, str]]:
        """For each key, the absolute rounding error of a product and how it was obtained.

        Args:
            blocks: key -> (block, (k, P_b) unit candidates, largest |eigenvalue| among them). beside: others, for which
                rounding will be measured later: the sample is chosen at the first call, for all of them.

        Returns:
            key -> (bound, "measured" | "assumed").
        """
        requests = {key: Request(block, outermost(vectors)) for key, (block, vectors, _) in blocks.items()}
        norms = {key: norm for key, (_, _, norm) in blocks.items()}
        errors: dict[str, float] = {}
        with self._counters.during("rounding"):
            if self._data_passes is None and not self._sample.whole:
                self._join_heavy({**beside, **blocks})
            data_passes = self._open()
            if data_passes is not None:
                try:
                    errors = self._compare(data_passes, requests, norms)
                except Exception as error:  # user code runs in another dtype here and may raise anything: fall back
                    self._give_up(error)
        scale = self._scale()
        answer = {}
        for key, (_, _, norm) in blocks.items():
            figure = max(errors.get(key, np.inf) * scale, self._least(key) * norm)
            if np.isfinite(figure):
                answer[key] = (ROUNDING_SAFETY * figure, "measured")
            else:
                answer[key] = (ASSUMED_ROUNDING * norm * self._assumed_scale(), "assumed")
        return answer

    def _join_heavy(self, candidates: Mapping[str, Candidate]) -> None:
        """Add the examples that carry the candidates' eigenvalues to the sample."""
        requests = {key: Request(block, outermost(vectors)) for key, (block, vectors, _) in candidates.items()}
        try:
            heavy = HeavyExamples(self._objective, self._counters).find(
                requests, {key: norm for key, (_, _, norm) in candidates.items()}
            )
        except Exception:  # a model's outputs need not be known, nor its examples be along dimension 0
            return
        if heavy:
            own = [one.batch for one in heavy]
            whole = batches.joined([*self._samples, *own])  # one graph costs less than two
            self._samples = [*self._samples, *own] if whole is None else [whole]

    def _compare(
        self, data_passes: tuple[DataPass, DataPass], requests: Mapping[str, Request], norms: Mapping[str, float]
    ) -> dict[str, float]:
        ours, other = (data_pass.run(requests) for data_pass in data_passes)
        return self._differences(ours, other, norms, self._sample.excess)

    def _differences(
        self, ours: Mapping[str, Tensor], other: Mapping[str, Tensor], norms: Mapping[str, float], excess: float
    ) -> dict[str, float]:
        errors = {}
        for key, rows in ours.items():
            difference = torch.linalg.vector_norm(rows - other[key], dim=1)
            # The relative error on the sample, used for all data: the sample may have less curvature than all of it.
            size = max(float(torch.linalg.vector_norm(other[key], dim=1).max()), 0.01 * norms[key])
            worst = float(difference.max())
            if self._sample.whole:
                errors[key] = worst
                continue
            errors[key] = worst * max(1.0 / excess, norms[key] / size) if size > 0.0 else worst
        return errors

    def _open(self) -> tuple[DataPass, DataPass] | None:
        if self._data_passes is None and not self.failure:
            dtype = torch.float32 if self._objective.dtype == torch.float64 else torch.float64
            try:
                copied = self._objective.cast(dtype, self._samples)
                self._stack.enter_context(copied.session())
                if self._sample.curvature > 0.0 or self._sample.whole:
                    data = [batches.cast(piece, dtype) for piece in self._sample.pieces]
                    self._of_output = output_error(self._sample, copied.narrowed(data), self._scale())
            except Exception as error:  # deepcopy of user modules and their forward passes can raise anything
                self._give_up(error)
                return None
            self._data_passes = self._passes(self._objective.narrowed(self._samples), copied)
        return self._data_passes

    def _passes(self, own: Objective, copied: Objective) -> tuple[DataPass, DataPass]:
        names, keep = list(own.parameters), SHARE * self._memory.room
        one, other = (
            DataPass(objective, names, self._counters, keep=keep, make_graph=self._make_graph)
            for objective in (own, copied)
        )
        return one, other

    def _give_up(self, error: Exception) -> None:
        self.failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        self._data_passes = None

    def _least(self, key: str) -> float:
        """Relative error that rounding of the output causes in a block's products in any case."""
        factored = isinstance(self._make_graph, MixedGraphs) and key in self._make_graph.blocks  # with S in float64
        of_output = self._of_output
        if self._sample.whole:  # the products show the rest, but for luck where few items carry all
            return max(of_output.lost, of_output.moved / math.sqrt(of_output.carrying))
        return max(of_output.moved, of_output.lost, 0.0 if factored else of_output.evaluated)

    def _scale(self) -> float:
        exact = self._objective.dtype == torch.float64 and self._coarsest == torch.float64
        return FLOAT64_OF_FLOAT32 if exact else 1.0

    def _assumed_scale(self) -> float:
        return torch.finfo(self._coarsest).eps / torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class OutputError:
    """Relative errors, in the model's precision, of the loss's second derivative S with respect to the output.

    Attributes:
        moved: because the output was rounded. evaluated: because S itself is computed from it. lost: even in float64,
            because S is the difference of larger numbers. carrying: how many items carry the curvature, at least 1.
    """

    moved: float = 0.0
    evaluated: float = 0.0
    lost: float = 0.0
    carrying: float = 1.0


def output_error(sample: Sample, copied: Objective, scale: float = 1.0) -> OutputError:
    """Errors of S by rounding on a sample that a product does not show; zero where unknown.

    Where few examples carry the curvature, one of them may by luck be rounded less in the sample than in its batch. So
    the root mean square over all items is taken, however curved they are. In float32 the many items that are nearly
    certain add errors of 1e-8 each to the few that count.

    S is evaluated at outputs that the model gave, between such outputs, and between them and 0, nowhere else: a loss
    may be defined on probabilities or rates only.

    Args:
        sample: with the outputs in the model's own precision. copied: the model in another, on the sample. scale: of
            the model's rounding errors over those of the coarser of the two.
    """
    changes, clutter, curvatures, lost = [], [], [], 0.0
    for ours, batch in zip(sample.seen, copied.data, strict=True):
        with torch.no_grad():
            other = copied.evaluation.surveyed(copied.model, batch, "a sample")
        coarse, fine = (ours, other) if copied.dtype == torch.float64 else (other, ours)
        if coarse.output is None or fine.output is None or coarse.again is None or fine.again is None:
            return OutputError()
        z, again = coarse.output, fine.again
        rounded = fine.output + scale * (z.double() - fine.output)
        rows = [curved(one, again) for one in (rounded, fine.output, z.double())]
        here = curved(z, coarse.again)
        moved, exact, same = rows
        if moved is None or exact is None or same is None or here is None:
            return OutputError()
        sizes = torch.linalg.vector_norm(exact, dim=1)
        off = torch.linalg.vector_norm(moved - exact, dim=1)
        least = 0.0 if scale == 1.0 else FLOAT64_OF_FLOAT32 * float(sizes.max())  # noise of float64 below it
        if bool(((z < 0.0) | (z > 1.0)).any()):  # of probabilities near 1, S has no more digits than 1 - p
            changes.append((off / sizes)[sizes > least])
        curvatures.append(sizes)
        clutter.append(scale * (here - same))
        lost = max(lost, _lost(z, coarse.again, again, float((here - same).norm(dim=1).max()), float(sizes.max())))
    every = torch.cat([*changes, torch.zeros(0, dtype=torch.float64)])
    items, size = sum(len(part) for part in clutter), torch.cat(curvatures)
    sums: dict[int, Tensor] = {}  # by the number of outputs of an item, which may differ from batch to batch
    for part in clutter:
        sums[part.shape[1]] = sums.get(part.shape[1], 0.0) + part.sum(dim=0)
    alike = math.hypot(*(float(total.norm()) for total in sums.values())) / items  # the same in all items
    each = math.hypot(*(float(part.norm()) for part in clutter)) / items  # at random
    moving = float(every.square().mean().sqrt()) if len(every) else 0.0
    carrying = float(size.sum() ** 2 / size.square().sum()) if bool(size.any()) else 1.0
    return OutputError(moving, math.hypot(alike, each) / (sample.curvature or math.inf), lost, max(carrying, 1.0))


def _lost(z: Tensor, coarse: Again, fine: Again, off: float, most: float) -> float:
    """Relative error of S in float64 where float32 has no digits of it, so that it cannot show what float64 loses.

    Such an S is the small difference of larger numbers (1 - p of a class that is nearly certain). Their size is seen
    in the float32 errors of S at smaller outputs, where nothing is certain.

    Args:
        z: (N, ...) float32 outputs. coarse, fine: the loss of others, in float32 and in float64. off: the largest error
            of S in float32. most: the largest S.
    """
    if most == 0.0:
        return 0.0
    flat = z.reshape(len(z), -1)
    largest = flat.abs().amax(dim=1).clamp(min=1.0)
    for size in SMALLER:
        near = (flat * (size / largest).clamp(max=1.0).unsqueeze(1)).view_as(z)
        one, other = curved(near, coarse), curved(near.double(), fine)
        if one is not None and other is not None:
            off = max(off, float((one - other).norm(dim=1).max()))
    return LOST_SAFETY * FLOAT64_OF_FLOAT32 * off / most


def outermost(vectors: Tensor) -> Tensor:
    """At most :data:`VECTORS` of the (k, n) vectors, from the first to the last."""
    if len(vectors) <= VECTORS:
        return vectors
    return vectors[torch.linspace(0, len(vectors) - 1, VECTORS).long()]
