"""What an analysis will cost, without running it: ``layerhess.estimate``, from the checks and a few timed products."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from layerhess.analysis.analyze import analyze
from layerhess.analysis.arguments import check_arguments
from layerhess.analysis.microbatches import graph_bytes
from layerhess.analysis.paths.exact import expected_products, goes_dense
from layerhess.analysis.paths.factors import graph_maker
from layerhess.analysis.run import Run
from layerhess.checks.second_derivative import named_operations
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass, Request
from layerhess.curvature.device import KEPT_SHARE, memory_limit, solver_device
from layerhess.errors import checked_integer
from layerhess.objective.batches import leading_size
from layerhess.objective.blocks import Block, Scheme, partition
from layerhess.objective.interrupts import deferred_interrupts
from layerhess.objective.objective import Objective

TOGETHER = 8  # vectors of one product that is timed for estimators, which ask for many at once


@dataclass(frozen=True)
class CostEstimate:
    """What an analysis is expected to cost.

    Attributes:
        seconds: wall-clock, of the whole analysis. passes: over the data, in the solve phase. products: with one
            vector of one block, over all the data.
        peak_bytes: growth of each process over what it held when the analysis began. sent_bytes: by each process.
        gradient_seconds: one plain gradient over all the data. fits: within the memory that was given, or is free.
        world: processes. examples: in the data of all of them, 0 where unknown.
        notes: sentences.
    """

    seconds: float
    passes: int
    products: int
    peak_bytes: int
    sent_bytes: int
    gradient_seconds: float
    fits: bool
    world: int
    examples: int
    notes: tuple[str, ...] = ()


def estimate(
    objective: Objective, blocks: Scheme = "parameter", *, world: int = 1, device_memory: str | int | None = None,
    **options: Any,
) -> CostEstimate:  # fmt: skip
    """What :func:`layerhess.analyze` with the same arguments would cost.

    The survey and the self-check are run as they would be; then products with a part of the data are timed. How many
    steps a solver needs depends on the spectrum, which nobody knows yet: the figure is that of usual networks.

    Args:
        world: processes that share the data, on devices such as this one. device_memory: of each, such as "80GiB"; by
            default what is free here. options: of :func:`layerhess.analyze`.

    Raises:
        InputError, CheckError: what ``analyze`` refuses is refused here too.
    """
    given = inspect.signature(analyze).bind(objective, blocks, **options)
    given.apply_defaults()
    named = dict(given.arguments)
    scheme, skip_failed = named.pop("blocks"), named.pop("skip_failed")
    named |= {"out": None, "progress": None}
    arguments = check_arguments(**named)
    world = checked_integer(world, "world", 1)
    room = memory_limit(device_memory)
    run = Run(
        objective, partition(objective.model, objective.parameters, objective.frozen, scheme), scheme, arguments, None,
        skip_failed,
    )  # fmt: skip
    if room is not None:
        run.machine, run.budget = replace(run.machine, free=room), replace(run.budget, free=room)
        run.graph_budget = run.budget
    with deferred_interrupts() as checkpoint:
        run.checkpoint = checkpoint
        with objective.session(), named_operations(objective):
            run.look()
            run.prepare()
            found = _expected(run, world)
    return found


def _expected(run: Run, world: int) -> CostEstimate:
    """From one part of the data, as large as a batch will be in a pass (in session, after the checks)."""
    assert run.surveyed is not None and run.checked is not None
    make = graph_maker(run.curvature, run.checked.licence)
    objective, _ = run._cut(make)
    part = next(iter(objective.batches()))
    share = _share(run, part) / world
    blocks = {name: block for name, block in run._operators().items() if name not in run.checked.failed}
    timed = _Timed(objective.narrowed([part]), make, blocks, asked_together=run.arguments.estimates.any)
    steps = {name: _steps(run, block) for name, block in blocks.items()}
    estimators = run.arguments.estimates
    passes = max(steps.values(), default=0) + estimators.expected_passes
    sampled = [b.numel for name, b in blocks.items() if name != FULL and not goes_dense(b.numel, run.wanted)]
    probes = estimators.expected_products(sampled, FULL in blocks)
    products = sum(steps.values()) + probes
    own = max(1.0, share)  # parts of a process
    kept = timed.nbytes * own <= KEPT_SHARE * run.graph_budget.room
    solve = own * sum(steps[name] * timed.seconds[name] for name in blocks)
    solve += own * probes * timed.together
    solve += own * timed.graph_seconds * (1 if kept else passes)
    rounding = 3.0 * run.checked.block_seconds  # products of the candidates, in two precisions
    before = run.counters.seconds["survey"] / world + run.counters.seconds["checks"]
    numel = sum(block.numel for block in blocks.values())
    sent = 0 if world == 1 else int(2 * (world - 1) / world * 8 * (numel / max(len(blocks), 1)) * products)
    peak = int(timed.nbytes * (own if kept else 1.0))
    return CostEstimate(
        seconds=before + solve + rounding,
        passes=passes,
        products=products,
        peak_bytes=peak,
        sent_bytes=sent,
        gradient_seconds=own * timed.gradient_seconds,
        fits=peak <= run.machine.room,
        world=world,
        examples=run.surveyed.examples,
        notes=tuple(run.notes),
    )


def _share(run: Run, part: Any) -> float:
    """How many parts such as this the data has."""
    assert run.surveyed is not None
    size = leading_size(part)
    return run.surveyed.examples / size if size and run.surveyed.examples else float(run.surveyed.batches)


def _steps(run: Run, block: Block) -> int:
    return expected_products(block.numel, run.wanted)


class _Timed:
    """Times the graph of one part of the data, and a product of every block with it; each for the second time.

    Attributes:
        nbytes: of the graph, with what products save. graph_seconds: to make it. seconds: of a product, by block.
            together: of one vector, the mean over the blocks, where several are multiplied at once.
        gradient_seconds: of one plain gradient.
    """

    def __init__(
        self, objective: Objective, make: GraphMaker, blocks: Mapping[str, Block], *, asked_together: bool
    ) -> None:
        names = list(dict.fromkeys(name for block in blocks.values() for name in block.parameters))
        self.nbytes = graph_bytes(objective, next(iter(objective.batches())), make, list(blocks.values()))
        counters = Counters()
        self._clock = counters.clock
        self._pass = DataPass(objective, names, counters, keep=math.inf, make_graph=make, time_unit=True)
        place = solver_device(objective.device)
        ones = {name: torch.ones((1, block.numel), dtype=torch.float64, device=place) for name, block in blocks.items()}
        first = {name: Request(block, ones[name]) for name, block in blocks.items()}
        self._pass.run(first)
        self.gradient_seconds = counters.gradient_seconds
        self._pass.release()
        whole = self._seconds(first)
        self.seconds = {name: self._seconds({name: first[name]}) for name in blocks}
        self.graph_seconds = max(0.0, whole - sum(self.seconds.values()))
        self.together = 0.0
        if asked_together:
            several = {name: Request(b, ones[name].expand(TOGETHER, -1)) for name, b in blocks.items()}
            self.together = self._seconds(several) / TOGETHER / max(len(blocks), 1)
        self._pass.release()

    def _seconds(self, requests: Mapping[str, Request]) -> float:
        start = self._clock()
        self._pass.run(requests)
        return self._clock() - start
