"""Random probes for everybody: traces, diagonals and couplings of all blocks, from the same products."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from layerhess.blocks import Block
from layerhess.estimates import CouplingEstimate, DiagonalEstimate, TraceEstimate
from layerhess.estimators.coupling import Coupling, CouplingSamples
from layerhess.estimators.deflation import Deflation, orthonormal_rows
from layerhess.estimators.diagonal import Diagonal
from layerhess.estimators.running import Running
from layerhess.estimators.stopping import MINIMUM, excess_of, next_target, probes_needed
from layerhess.estimators.trace import Trace
from layerhess.estimators.unit import UnitVectors
from layerhess.probing.member import Known, Member, Samples, cautious, is_open, part_of, shaped
from layerhess.sweep import FULL, Request

Script = Generator[dict[str, Request], Mapping[str, Tensor], None]

FULL_COST = 5.0  # of a full product, in products of one block; 3 to 6 on the networks of benchmarks/
PILOT = 4  # block products from which their variance is guessed
SKETCH_ABOVE = 64  # probes still to come that make more deflation worth its products
SKETCH = 24  # vectors, each two products
JOINT = "(probes)"  # the name that full probes are drawn under, and their key


@dataclass
class Probing:
    """A companion of the schedule: asks for random products once the eigenvalue solvers are done.

    Their bases deflate the probes (see :class:`Deflation`), so that only the rest of each spectrum makes noise. One
    full product H x with x = (x_b) serves every block, since x_b'(H x)_b is unbiased; a block's own product costs less
    and has less variance, since no other block is in it. Which of them goes on is decided by the variances measured.
    Where couplings are asked for, whole columns H[:, b] v_b are made, and serve traces and diagonals as well.

    Args:
        blocks: those to estimate, and "(rest)" for parameters in none of them if the full model is wanted.
        full: the block of all these parameters. known: what there is to begin with, or None while solvers are at work.
        trace, diagonal, coupling: what is asked for. whole: also for the full model.
        coupled: names of the blocks whose couplings are wanted. seed: of the probes.
        room: how many full-length rows may be held at a time. device: where vectors live.
    """

    blocks: Mapping[str, Block]
    full: Block
    known: Callable[[], Mapping[str, Known] | None]
    trace: Trace | None
    diagonal: Diagonal | None
    coupling: Coupling | None
    whole: bool
    coupled: Sequence[str]
    seed: int
    room: int
    device: torch.device
    done: bool = False
    members: dict[str, Member] = field(default_factory=dict)
    _pending: dict[str, Request] = field(default_factory=dict)
    _script: Script | None = None
    _joint: Running[float] = field(default_factory=lambda: Running(0.0))
    _coupling: CouplingSamples | None = None

    # -- the companion's verbs --------------------------------------------------------------------------------------

    def requests(self) -> dict[str, Request]:
        """What is needed next; nothing until the solvers are done."""
        if self._script is None:
            known = self.known()
            if known is None:
                return {}
            self.members = {name: self._member(name, block, known.get(name)) for name, block in self.blocks.items()}
            self._script = self._run()
            self._advance(None)
        return self._pending

    def tell(self, products: Mapping[str, Tensor]) -> None:
        """The products of what was asked for last."""
        if self._script is not None and not self.done:
            self._advance(products)

    @property
    def _spent(self) -> int:
        return self._joint.count + sum(m.drawn + m.exact for m in self.members.values())

    def _advance(self, products: Mapping[str, Tensor] | None) -> None:
        assert self._script is not None
        try:
            self._pending = next(self._script) if products is None else self._script.send(products)
        except StopIteration:
            self._pending, self.done = {}, True

    @property
    def started(self) -> bool:
        """True once the solvers were done and there is something to estimate from."""
        return self._script is not None

    # -- the script -------------------------------------------------------------------------------------------------

    def _run(self) -> Script:
        if self.coupling is not None:
            yield from self._columns()
        if self.trace is None and self.diagonal is None:
            return
        if not self.coupling or self._waiting():
            yield from self._full_products(MINIMUM)
        while (waiting := self._waiting()) or (self.whole and self._whole_excess() > 1.0):
            before = self._spent
            yield from self._next(waiting)
            if self._spent == before:  # nobody may take more
                break

    def _next(self, waiting: list[Member]) -> Script:
        joint = max((self._missing(m, m.joint) for m in waiting), default=0)
        joint = max(joint, self._joint_missing() if self.whole and self._whole_excess() > 1.0 else 0)
        unseen = [m for m in waiting if m.own.count < PILOT and m.block.numel > PILOT]
        if unseen and FULL_COST * joint > PILOT * len(unseen):
            yield from self._own_products({m.name: PILOT for m in unseen})
            return
        own = {m.name: min(self._missing(m, m.own), m.block.numel) for m in waiting} if not unseen else {}
        cheaper = min(FULL_COST * joint, sum(own.values()) if own else math.inf)
        sketchable = [m for m in waiting if self._may_sketch(m)]
        if sketchable and cheaper > SKETCH_ABOVE * len(waiting):
            yield from self._sketch(sketchable)
        elif own and sum(own.values()) < FULL_COST * joint:
            yield from self._read([m for m in waiting if own[m.name] == m.block.numel])
            waiting = [m for m in waiting if not m.exact]
            wanted = {m.name: self._target(m.own.count, self._excess(m.own)) - m.own.count for m in waiting}
            yield from self._own_products(wanted)
        else:
            worst = max([*(self._excess(m.joint) for m in waiting), self._whole_excess() if self.whole else 0.0])
            yield from self._full_products(self._target(self._joint.count, worst) - self._joint.count)

    def _read(self, members: list[Member]) -> Script:
        """Read whole diagonals, where probes would cost no less."""
        readers = {m.name: UnitVectors(m.block.numel, self.device) for m in members}
        while left := {name: reader for name, reader in readers.items() if not reader.done}:
            asked = {_own_key(name): Request(self.blocks[name], reader.ask()) for name, reader in left.items()}
            products = yield asked
            for name, reader in left.items():
                reader.tell(products[_own_key(name)])
        for m in members:
            m.known = Known(diagonal=readers[m.name].diagonal)
            self._joint = Running(0.0)  # full products so far held this block's probes

    def _full_products(self, number: int) -> Script:
        active = [m for m in self.members.values() if not m.exact]
        while number > 0 and active:
            size = min(number, self.room)
            number -= size
            signs = {m.name: m.draw(size, self.seed) for m in active}
            parts = {m.name: m.deflation.project(signs[m.name]) for m in active}
            rows = self._joined(parts, size)
            products = (yield {JOINT: Request(self.full, rows)})[JOINT]
            for m in active:
                m.joint.add(signs[m.name], parts[m.name], part_of(self.full, m.block, products))
            for value in (rows * products).sum(dim=1).tolist():
                self._joint.add(value)

    def _own_products(self, wanted: Mapping[str, int]) -> Script:
        left = dict(wanted)
        while left := {name: number for name, number in left.items() if number > 0}:
            size = {name: min(number, self.room) for name, number in left.items()}
            signs = {name: self.members[name].draw(size[name], self.seed) for name in left}
            rows = {name: self.members[name].deflation.project(v) for name, v in signs.items()}
            products = yield {_own_key(name): Request(self.members[name].block, rows[name]) for name in left}
            for name in left:
                self.members[name].own.add(signs[name], rows[name], products[_own_key(name)])
                left[name] -= size[name]

    def _sketch(self, members: list[Member]) -> Script:
        """More deflation, from the range of the rest (Halko, Martinsson & Tropp 2011): what was sampled is dropped."""
        size = {m.name: min(SKETCH, self.room, m.block.numel // 3) for m in members}
        rows = {m.name: m.deflation.project(m.draw(size[m.name], self.seed)) for m in members}
        products = yield {_own_key(m.name): Request(m.block, rows[m.name]) for m in members}
        bases = {m.name: orthonormal_rows(products[_own_key(m.name)], against=m.deflation.q) for m in members}
        members = [m for m in members if len(bases[m.name])]
        products = yield {_own_key(m.name): Request(m.block, bases[m.name]) for m in members}
        for m in members:
            q = torch.cat([m.deflation.q, bases[m.name]])
            m.deflation = Deflation(q, torch.cat([m.deflation.w, products[_own_key(m.name)]]))
            m.own, m.joint, m.sketched = self._samples(m.deflation), self._samples(m.deflation), True
        self._joint = Running(0.0)
        for m in self.members.values():  # joint samples before and after do not mix
            m.joint = self._samples(m.deflation)

    def _columns(self) -> Script:
        """Whole columns, probe by probe: H[:, b] v_b for every block b, or all unit vectors of a small one."""
        assert self.coupling is not None
        names = list(self.coupled)
        self._coupling = CouplingSamples([self.blocks[name].numel for name in names])
        jobs = [(n, i) for i in range(self.coupling.probes) for n in names if i < self.blocks[n].numel]
        for start in range(0, len(jobs), self.room):
            batch = jobs[start : start + self.room]
            vectors = {job: self._column_vector(*job) for job in batch}
            products = yield {
                _column_key(*job): Request(self.blocks[job[0]], vectors[job], rows=self.full) for job in batch
            }
            for name, probe in batch:
                column = products[_column_key(name, probe)]
                parts = {other: part_of(self.full, self.blocks[other], column) for other in names}
                squares = [float(part.square().sum()) for part in parts.values()]
                if self._small(name):
                    self._coupling.add_exact(names.index(name), squares)
                    continue
                self._coupling.add(names.index(name), squares)
                member = self.members[name]
                if not member.exact:
                    v, known = vectors[name, probe], member.deflation
                    # A (v - Q'Q v) from A v, since A Q' = W' is known.
                    member.own.add(v, known.project(v), parts[name] - (v @ known.q.T) @ known.w)

    def _small(self, name: str) -> bool:
        assert self.coupling is not None
        return self.blocks[name].numel <= self.coupling.probes

    def _column_vector(self, name: str, probe: int) -> Tensor:
        member = self.members[name]
        if not self._small(name):
            return member.draw(1, self.seed)
        unit = torch.zeros((1, member.block.numel), dtype=torch.float64, device=member.deflation.q.device)
        unit[0, probe] = 1.0
        return unit

    # -- what there is ----------------------------------------------------------------------------------------------

    def trace_of(self, name: str) -> TraceEstimate:
        """The trace of a block, or of all of them for "(full)"."""
        assert self.trace is not None
        if name == FULL:
            return self._whole_trace()
        member = self.members[name]
        if member.known.diagonal is not None:
            return self.trace.exact(member.known.diagonal)
        if member.known.zero:
            return self.trace.known(0.0, "zero: the block has no curvature above its zero level")
        return self._best(member).trace.estimate()

    def diagonal_of(self, name: str) -> DiagonalEstimate:
        """The diagonal of a block, or of all of them for "(full)", as parameter-shaped tensors."""
        assert self.diagonal is not None
        if name == FULL:
            parts = [self.diagonal_of(member) for member in self.members]
            value = {k: v for part in parts for k, v in part.value.items()}
            error = {k: v for part in parts for k, v in part.standard_error.items()}
            whole, errors = (torch.cat([part[k].reshape(-1) for k in self.full.parameters]) for part in (value, error))
            probes = max((part.probes for part in parts), default=0)
            if all(part.method == "exact" for part in parts):
                return shaped(self.full, self.diagonal.exact(whole))
            made = self.diagonal.estimate(whole, errors, probes=probes, method="assembled")
            status = f"assembled from the diagonals of the blocks: {made.status}"
            return shaped(self.full, dataclasses.replace(made, status=status))
        member = self.members[name]
        if member.exact:
            flat = member.known.diagonal
            flat = torch.zeros(member.block.numel, dtype=torch.float64) if flat is None else flat
            return shaped(member.block, self.diagonal.exact(flat))
        samples = self._best(member).diagonal
        assert samples is not None
        return shaped(member.block, samples.estimate())

    def coupling_of(self) -> CouplingEstimate | None:
        """The table of ||H_bc||_F, once all columns were made."""
        return None if self._coupling is None else self._coupling.result(list(self.coupled))

    # -- parts ------------------------------------------------------------------------------------------------------

    def _member(self, name: str, block: Block, known: Known | None) -> Member:
        known = known or Known()
        plain = self.trace is not None and self.trace.method == "hutchinson"
        deflation = (
            known.deflation if known.deflation is not None and not plain else Deflation.none(block.numel, self.device)
        )
        return Member(name, block, known, deflation, self._samples(deflation), self._samples(deflation), sketched=plain)

    def _samples(self, deflation: Deflation) -> Samples:
        options = self.trace or Trace()
        return Samples(options.samples(deflation), self.diagonal.samples(deflation) if self.diagonal else None)

    def _waiting(self) -> list[Member]:
        """Those that are neither good enough nor at their limit."""
        return [m for m in self.members.values() if not m.exact and self._open(m)]

    def _open(self, member: Member) -> bool:
        best = self._best(member)
        if best.count < MINIMUM:
            return True
        traced = self.trace is not None and is_open(best.count, self.trace, best.trace.excess)
        return traced or (
            self.diagonal is not None
            and best.diagonal is not None
            and is_open(best.count, self.diagonal, best.diagonal.excess)
        )

    def _best(self, member: Member) -> Samples:
        """The block's own samples where there are enough of them: they hold no noise from other blocks.

        Not whichever has the smaller standard error: with skewed samples that one is low by luck, and so is its mean.
        """
        if member.own.count >= MINIMUM:
            return member.own
        return max((member.joint, member.own), key=lambda kind: kind.count)

    def _target(self, count: int, excess: float) -> int:
        fixed = [options.probes for options in (self.trace, self.diagonal) if options and options.probes]
        if fixed:
            return max(fixed)
        return MINIMUM if count < MINIMUM else next_target(count, excess, self._limit)

    @property
    def _limit(self) -> int:
        return max(options.probes or options.max_probes for options in (self.trace, self.diagonal) if options)

    def _excess(self, samples: Samples) -> float:
        """The larger of both excesses, or 0 for what has had all the probes it may have."""
        worst = 0.0
        if self.trace is not None and is_open(samples.count, self.trace, samples.trace.excess):
            worst = cautious(samples.count, samples.trace.excess)
        of_diagonal = samples.diagonal.excess if samples.diagonal is not None else 0.0
        if self.diagonal is not None and is_open(samples.count, self.diagonal, of_diagonal):
            worst = max(worst, cautious(samples.count, of_diagonal))
        return worst

    def _missing(self, member: Member, samples: Samples) -> int:
        """Probes of this kind that are still to come, as the variance so far has it."""
        fixed = [options.probes for options in (self.trace, self.diagonal) if options and options.probes]
        if fixed:
            return max(0, max(fixed) - samples.count)
        if samples.count < 2:
            return max(MINIMUM, self._limit)
        count = max(samples.count, 1)
        return max(MINIMUM, min(self._limit, probes_needed(count, self._excess(samples)))) - samples.count

    def _may_sketch(self, member: Member) -> bool:
        return (
            not member.sketched and member.block.numel > 3 * SKETCH and self._missing(member, member.own) > SKETCH_ABOVE
        )

    def _joined(self, parts: Mapping[str, Tensor], size: int) -> Tensor:
        """Rows over all parameters, zero for the members that are exact."""
        device = next(iter(parts.values())).device
        pieces: dict[str, Tensor] = {}
        for name, member in self.members.items():
            rows = parts.get(name)
            rows = torch.zeros((size, member.block.numel), dtype=torch.float64, device=device) if rows is None else rows
            sizes = [shape.numel() for shape in member.block.shapes]
            pieces.update(zip(member.block.parameters, torch.split(rows, sizes, dim=1), strict=True))
        return torch.cat([pieces[name] for name in self.full.parameters], dim=1)

    # -- the whole model --------------------------------------------------------------------------------------------

    def _exact_part(self) -> float:
        return sum(float(m.known.diagonal.sum()) for m in self.members.values() if m.known.diagonal is not None)

    def _whole(self) -> tuple[float, float, int, float]:
        """Value, standard error, probes and nuclear norm: from the full products, or put together from the blocks.

        Blocks' own probes are independent of each other, so their variances add; full products are one sample each.
        """
        active = [m for m in self.members.values() if not m.exact]
        nuclear = sum(self._best(m).trace.nuclear for m in active)
        value = self._exact_part() + sum(m.deflation.trace for m in active) + self._joint.mean
        found = (value, self._joint.standard_error, self._joint.count, nuclear)
        if all(m.own.count >= MINIMUM for m in active):
            error = math.sqrt(sum(m.own.trace.standard_error**2 for m in active))
            value = self._exact_part() + sum(m.own.trace.mean for m in active)
            found = (value, error, min((m.own.count for m in active), default=0), nuclear)
        return found

    def _whole_excess(self) -> float:
        if self.trace is None or self._joint.count >= self._limit:
            return 0.0
        value, error, count, nuclear = self._whole()
        return cautious(count, excess_of(error, self.trace.tolerance(value, nuclear)))

    def _joint_missing(self) -> int:
        count = max(self._joint.count, 1)
        return min(self._limit, probes_needed(count, self._whole_excess())) - self._joint.count

    def _whole_trace(self) -> TraceEstimate:
        assert self.trace is not None
        if all(m.exact for m in self.members.values()):
            return self.trace.known(self._exact_part(), "exact: the sum of the blocks' traces, which are all exact")
        value, error, probes, nuclear = self._whole()
        deflated = any(m.deflation.size for m in self.members.values())
        method = "deflated" if deflated else "hutchinson"
        return self.trace.estimate(value, error, probes=probes, method=method, nuclear=nuclear)


def _own_key(name: str) -> str:
    return f"(own probes) {name}"


def _column_key(name: str, probe: int) -> str:
    return f"(column {probe}) {name}"
