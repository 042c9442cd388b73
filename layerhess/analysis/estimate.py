"""What an analysis will cost, without running it: ``layerhess.estimate``, from a trial on a part of the data."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, replace
from typing import Any

from layerhess.analysis.analyze import analyze
from layerhess.analysis.arguments import check_arguments
from layerhess.analysis.paths.cost import gram_bytes
from layerhess.analysis.paths.gram import whole
from layerhess.analysis.trial import Trial, Unit, unit_of
from layerhess.checks.second_derivative import named_operations
from layerhess.checks.survey import Survey
from layerhess.curvature.device import memory_limit, peak_bytes, restart_peak, used_bytes
from layerhess.errors import checked_integer
from layerhess.linalg.described import Described, Description
from layerhess.linalg.eigen.gram import Gram
from layerhess.objective.blocks import Scheme, partition
from layerhess.objective.interrupts import deferred_interrupts
from layerhess.objective.objective import Objective
from layerhess.show.numbers import counted, duration, size

TRIAL_SECONDS = 60.0  # after the checks; what has not converged by then is extrapolated
BANDWIDTH = 1e10  # bytes a second that a process sends, where several are asked for
HEAVY = 6.0  # forward passes: three, in float64, look for the examples that rounding is measured on
CLOSER = 3.0  # over the square root of the terms of the loss: by how much more steps a search on few examples takes
START = 300.0  # a typical first residual over its tolerance


@dataclass(frozen=True, repr=False)
class CostEstimate(Described):
    """What an analysis is expected to cost.

    Attributes:
        seconds: wall-clock, of the whole analysis. passes: over the data, in the solve phase. products: with one
            vector of one block, over all the data.
        peak_bytes: growth of each process over what it held when the analysis began, on all its devices. sent_bytes:
            by each process.
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

    def _describe(self) -> Description:
        sent = f", {size(self.sent_bytes)} sent by each" if self.sent_bytes else ""
        return Description(
            f"Expected cost: {duration(self.seconds)}, {size(self.peak_bytes)} at the peak",
            (
                f"{counted(self.products, 'product')} in {counted(self.passes, 'pass', 'passes')}; one gradient takes "
                f"{duration(self.gradient_seconds)}",
                f"{counted(self.world, 'process', 'processes')}{sent}; {counted(self.examples, 'example')}",
                *self.notes,
            ),
            "" if self.fits else "MORE MEMORY THAN THERE IS",
        )


def estimate(
    objective: Objective, blocks: Scheme = "parameter", *, world: int = 1, device_memory: str | int | None = None,
    **options: Any,
) -> CostEstimate:  # fmt: skip
    """What :func:`layerhess.analyze` with the same arguments would cost.

    The survey reads the data once and the self-check runs on its sample, as in an analysis. Then the solvers run on a
    part of the data, at most half and at most a minute, with the decisions (waves, precision, pieces, segments,
    path) for all of it: passes and solvers' vectors are those of a real search for similar curvature. What grows with
    the data is carried over: seconds, by timed gradients of whole batches, and graphs, as far as they will be kept.

    Args:
        world: processes that share the data, on devices such as this one. device_memory: of each, such as "80GiB"; by
            default what is free here. options: of :func:`layerhess.analyze`; out, resume and progress change nothing.

    Raises:
        InputError, CheckError: what ``analyze`` refuses is refused here too.
    """
    given = inspect.signature(analyze).bind(objective, blocks, **options)
    given.apply_defaults()
    named = dict(given.arguments)
    scheme, skip_failed = named.pop("blocks"), named.pop("skip_failed")
    named |= {"out": None, "resume": False, "progress": None}
    arguments = check_arguments(**named)
    world = checked_integer(world, "world", 1)
    room = memory_limit(device_memory, "device_memory")
    divided = partition(objective.model, objective.parameters, objective.frozen, scheme)
    run = Trial(objective, divided, scheme, arguments, None, skip_failed, world=world)
    restart_peak(*objective.devices)
    before = used_bytes(*objective.devices)
    if room is not None:
        run.machine, run.budget = replace(run.machine, free=room), replace(run.budget, free=room)
        run.graph_budget = run.budget
    with deferred_interrupts() as checkpoint:
        run.checkpoint = checkpoint
        with objective.session(), named_operations(objective):
            run.look()
            run.prepare()
            found = _expected(run, world, before)
    return found


def _expected(run: Trial, world: int, before: int) -> CostEstimate:
    """Run the trial, and carry it over to all the data (in session, after the checks)."""
    devices, surveyed = run.objective.devices, run.surveyed
    assert surveyed is not None and run.checked is not None
    checks = peak_bytes(*devices) - before
    fixed = run.counters.seconds["checks"] + run.counters.seconds["survey"] / world
    limit = run.counters.clock() - run.started + TRIAL_SECONDS
    asked = run.arguments.time_limit
    run.arguments = replace(run.arguments, time_limit=limit if asked is None else min(limit, asked))
    restart_peak(*devices)
    run.solve()
    solved = peak_bytes(*devices) - before
    assert run.schedule is not None
    unit, shorter, longer = unit_of(run, surveyed, world), _shorter(run, surveyed), _longer(run)
    vectors = sum(rows.after(longer, shorter) - rows.nbytes for rows in run.rows)
    longer *= shorter
    ahead = unit.held([size for size, _, _ in run.ahead])
    run.ahead.clear()
    passes = math.ceil(longer * run.counters.passes)
    # Memory: what the trial took, but for its graphs, and the graphs of the data.
    room = run.kept_room()
    kept = min(unit.graphs, _whole_batches(unit, room))
    tried = min(sum(unit.kept.of(n) for n in unit.tried), room)
    at_hand, tried_at_hand = (
        max(0.0, unit.most.of(n) - (unit.kept.of(n) if kept else 0.0)) for n in (unit.piece, max(unit.tried))
    )
    solvers = max(0.0, solved - ahead - tried - tried_at_hand + vectors) + _gram_growth(run, unit)
    peak = int(max(checks, solvers + kept + at_hand))
    # Time.
    in_passes = sum(run.pass_seconds) or run.counters.seconds["solve"]
    alone = max(0.0, run.counters.seconds["solve"] - in_passes)
    made = run.checked.graph_seconds * sum(unit.tried) / max(surveyed.sample_size, 1) * unit.slower
    remade = made * (passes - 1) * (1.0 - kept / unit.graphs) if unit.graphs else 0.0
    products = sum(task.products for task in run.schedule.tasks)
    # A sum of float64 crosses twice; of rows in slices, what is multiplied is put together too.
    numbers = sum((16.0 + 8.0 * (t.ranks > 1)) * t.products * t.block.numel for t in run.schedule.tasks)
    sent = int((world - 1) / world * longer * numbers)
    heavy = 0.0 if surveyed.measured.whole else HEAVY * run.counters.seconds["survey"] / world
    seconds = (
        fixed + longer * (alone + in_passes * unit.slower) + remade + heavy + run.counters.seconds["rounding"]
        + sent / BANDWIDTH
    )  # fmt: skip
    search = max(seconds - fixed, 1e-9)
    share = 1.0 if asked is None else min(1.0, max(0.0, asked - fixed) / search)  # of it, until time_limit is over
    return CostEstimate(
        seconds=fixed + share * search,
        passes=math.ceil(share * passes),
        products=math.ceil(share * longer * (products + run.probes)),
        peak_bytes=peak,
        sent_bytes=int(share * sent),
        gradient_seconds=unit.gradient_seconds,
        fits=peak <= run.machine.room,
        world=world,
        examples=surveyed.examples,
        notes=tuple(dict.fromkeys((*run.notes, *_notes(run, unit, world, surveyed)))),
    )


def _whole_batches(unit: Unit, room: float) -> float:
    """Bytes of as many whole batches' graphs as fit."""
    batch = unit.held([unit.piece])
    return math.floor(room / batch) * batch if batch > 0.0 else 0.0


def _longer(run: Trial) -> float:
    """How many times the passes of the trial the search takes, where that was ended before it converged."""
    assert run.schedule is not None
    if not run.schedule.stopped:
        return 1.0
    tasks, done = run.schedule.tasks, max(1, run.counters.passes)
    open_ones = [task for task in tasks if not task.done]
    untouched = sum(not task.told for task in open_ones)
    known = [task for task in open_ones if task.told and not task.released]
    distances = [d for task in known if math.isfinite(d := task.distance(run.arguments.tol))]
    slowest = min(max(distances, default=1.0), 0.9 * START)
    factor = math.log(START) / math.log(START / max(slowest, 1.0))
    factor *= len(tasks) / max(1, len(tasks) - untouched)
    return min(factor, max(1.0, run.arguments.max_passes / done))


def _shorter(run: Trial, surveyed: Survey) -> float:
    """How much shorter a search on all the data is than one on a part of it, of which the eigenvalues lie closer."""
    assert run.schedule is not None and run.surveyed is not None
    if all(task.whole for task in run.schedule.tasks):
        return 1.0
    there, here = (1.0 + CLOSER / math.sqrt(max(seen.count, 1.0)) for seen in (surveyed, run.surveyed))
    return min(1.0, there / here)


def _gram_growth(run: Trial, unit: Unit) -> float:
    """Bytes by which the rows of Gram matrices, or these matrices, outgrow those of the trial."""
    assert run.schedule is not None and run.checked is not None
    licence, itemsize, grown = run.checked.licence, run.objective.dtype.itemsize, 0
    for task in run.schedule.tasks:
        if task.whole and not task.released and isinstance(task.process, Gram) and task.name in licence.works:
            work, numel = licence.works[task.name], task.block.numel
            here, there = (whole(work, licence.examples, n).rows for n in (sum(unit.tried), unit.examples))
            grown += gram_bytes(numel, there, run.wanted, itemsize) - gram_bytes(numel, here, run.wanted, itemsize)
    return float(max(0, grown))


def _notes(run: Trial, unit: Unit, world: int, surveyed: Survey) -> list[str]:
    assert run.schedule is not None
    total = min(unit.examples * world, max(surveyed.examples, surveyed.batches))
    found = [f"estimated from a search on {sum(unit.tried)} of {total} examples (or batches)"]
    if run.schedule.stopped:
        found.append(f"that search was ended ({run.schedule.stopped}), and the rest is extrapolated")
    if world > 1:
        found.append(f"{world} processes: each with its share of the data, and {BANDWIDTH / 1e9:g} GB/s to send sums")
    return found
