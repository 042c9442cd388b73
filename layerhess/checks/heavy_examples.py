"""Finds the few examples that carry candidates' eigenvalues: those with the largest share in v'A v."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerhess.checks.finite_differences import displaced
from layerhess.checks.sample import by_example
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import Request
from layerhess.curvature.device import solver_device
from layerhess.curvature.factors.mixed_graph import MixedGraphs
from layerhess.curvature.factors.output_hessian import along
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.matrices import GAUSS_NEWTON, HESSIAN
from layerhess.curvature.segments.segmented import Segmented
from layerhess.curvature.totals import Totals, add_up
from layerhess.linalg.long_rows import combined
from layerhess.linalg.random_vectors import random_signs
from layerhess.objective import batches
from layerhess.objective.objective import Objective
from layerhess.objective.sent_batches import of_all_ranks

HEAVY = 16  # examples that are measured in addition to the sample
UNEVEN = 4.0  # times the mean share, from which on an example is heavy,
DOMINANT = 0.1  # if it may also be so much of one candidate's v'A v

SHARE, EXAMPLES = "share", "examples"  # kinds of sums


@dataclass(frozen=True)
class Heavy:
    """One example: its share, its place (rank, batch, index), and itself as a batch of one."""

    share: float
    place: tuple[int, int, int]
    batch: Any


def precision(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The precision of the copy: float64, but on GPUs, where that may be 64 times as slow, at most the model's own."""
    if device.type == "cpu" or dtype == torch.float64:
        return torch.float64
    return torch.float32


def is_jacobian_only(make_graph: GraphMaker, keys: Iterable[str]) -> bool:
    """Whether these blocks are those of J' S J: Gauss-Newton, or the Hessian where the output is linear in them."""
    exact = make_graph.exact if isinstance(make_graph, MixedGraphs) else make_graph
    exact = exact.make if isinstance(exact, Segmented) else exact
    licensed = make_graph.blocks.keys() if isinstance(make_graph, MixedGraphs) else set()
    return exact is GAUSS_NEWTON.make_graph or (exact is HESSIAN.make_graph and licensed >= set(keys))


class HeavyExamples:
    """Compares the outputs of all examples at the weights and a little along the candidates, both ways.

    Differences of z_n(theta + d), z_n(theta), z_n(theta - d) are J_n d and the second derivative of z_n along d. So
    (J_n d)' S_n (J_n d) and the slope of the loss times the latter are an example's share in d'H d. The candidates of
    all blocks are moved along at once, each with a random sign and scaled to v'A v = 1: an example that carries one
    block's eigenvector then has a share of about one block in the whole. Neither the curvature of the loss nor an even
    spread of examples shows these: with squared error all outputs are equally curved, and float32 may not see an
    example behind saturated units at all, so a copy is moved, in float64 on the CPU. (In float32 a step that rounding
    leaves something of is so long that it crosses kinks, and shows other examples.) Cost: its three forward passes; two
    where all candidates are those of J' S J, which knows no second derivative of z.

    Args:
        objective: in session; its model is copied, and the copy is moved. counters: counts the forward passes.
        make_graph: makes the graphs of the matrix.
    """

    def __init__(self, objective: Objective, counters: Counters, make_graph: GraphMaker = HessianGraph) -> None:
        self._objective = objective
        self._counters = counters
        self._make_graph = make_graph

    def find(self, requests: Mapping[str, Request], norms: Mapping[str, float]) -> list[Heavy]:
        """At most :data:`HEAVY` examples; none where no example stands out.

        Args:
            requests: key -> (s, P_b) unit candidates of a block. norms: key -> the largest of their |eigenvalues|.

        Raises:
            Exception: whatever the model raises; where its outputs, or the examples of a batch, are not known.
        """
        directions = {key: request for key, request in requests.items() if norms[key] > 0.0}
        if not directions:
            return []
        most: list[Heavy] = []
        group = self._objective.group

        def prepared() -> tuple[Objective, Mapping[str, Tensor]]:
            copied = self._objective.cast(precision(self._objective.device, self._objective.dtype), [])
            return copied, self._direction(directions, norms, copied.dtype)

        copied, step = group.tried(prepared)
        bends = not is_jacobian_only(self._make_graph, directions)

        def share(numbered: tuple[int, Any], totals: Totals) -> None:
            nonlocal most
            number, batch = numbered
            shares = self._shares(copied, batches.cast(batch, copied.dtype), step, bends)
            totals.add(SHARE, float(shares.sum()))
            totals.add(EXAMPLES, len(shares))
            largest = torch.topk(shares, min(HEAVY, len(shares)))
            most += [
                Heavy(own, (group.rank, number, i), batches.take(batch, slice(i, i + 1)))
                for own, i in zip(largest.values.tolist(), largest.indices.tolist(), strict=True)
            ]
            most = sorted(most, key=lambda found: -found.share)[:HEAVY]

        with copied.session(), torch.no_grad():
            totals = add_up(enumerate(self._objective.batches()), share, group=group)
        every = of_all_ranks([((one.share, one.place), one.batch) for one in most], group, self._objective.device)
        most = [Heavy(*about, batch) for about, batch in itertools.chain(*every)]
        most = sorted(most, key=lambda found: -found.share)[:HEAVY]
        examples = max(totals.total(EXAMPLES), 1)
        least = totals.total(SHARE) * max(UNEVEN / examples, DOMINANT / len(directions))
        return [found for found in most if found.share > least]

    def _shares(self, copied: Objective, batch: Any, step: Mapping[str, Tensor], bends: bool) -> Tensor:
        """(examples,) of a batch, not negative."""
        sides = []
        for sign in (1.0, -1.0):
            with displaced(copied, step, sign):
                sides.append(self._seen(copied, batch))
        (plus, again), (minus, _) = sides
        middle = (plus + minus) / 2.0
        z = self._seen(copied, batch)[0] if bends else middle
        forms = along(z, (plus - minus) / 2.0, 2.0 * (middle - z), again)
        shares = None if forms is None else by_example(batch, forms)
        if shares is None:
            raise ValueError("the examples cannot be told apart")
        return torch.nan_to_num(shares)

    def _seen(self, copied: Objective, batch: Any) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The output of a batch, and its loss as a function of it."""
        seen = copied.evaluation.surveyed(copied.model, batch, "a batch")
        self._counters.count("forwards")
        if seen.output is None or seen.again is None:
            raise ValueError("the outputs are not known")
        return seen.output, seen.again

    def _direction(
        self, requests: Mapping[str, Request], norms: Mapping[str, float], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Parameter -> the step in ``dtype``: at most eps^(1/4) of a block's length, as suits second differences."""
        parameters = self._objective.parameters
        step: dict[str, Tensor] = {}
        longest = 0.0
        for number, (key, request) in enumerate(requests.items()):
            signs = random_signs(len(request.vectors), number, "heavy", 0, request.vectors.device)
            row = combined(signs[:, None], request.vectors)[0] / math.sqrt(norms[key])
            parts = {
                name: part[0].to(solver_device(parameters[name].device))
                for name, part in request.block.split(row[None]).items()
            }
            length = math.sqrt(sum(float(parameters[name].detach().double().square().sum()) for name in parts))
            longest = max(longest, float(torch.linalg.vector_norm(row)) / (length or 1.0))
            for name, part in parts.items():
                step[name] = step[name].add_(part) if name in step else part
        size = torch.finfo(dtype).eps ** 0.25
        for name, part in step.items():
            step[name] = part.mul_(size / longest).to(parameters[name].device, dtype)
        return step
