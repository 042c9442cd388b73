"""Estimates traces, diagonals and couplings of all blocks from the same random probes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from layerhess.analysis.probing.block_samples import Known, Member, Samples, part_of, shaped
from layerhess.analysis.probing.columns import Columns, Script
from layerhess.analysis.probing.density_start import DensityEstimator, widened
from layerhess.analysis.probing.full_trace import FULL_COST, FullTrace
from layerhess.analysis.probing.goals import Goals
from layerhess.curvature.data_pass import FULL, Request
from layerhess.curvature.device import beside
from layerhess.linalg.estimates import CouplingEstimate, DiagonalEstimate, TraceEstimate
from layerhess.linalg.stochastic.coupling import Coupling
from layerhess.linalg.stochastic.deflation import Deflation, orthonormal_rows
from layerhess.linalg.stochastic.diagonal import Diagonal
from layerhess.linalg.stochastic.trace import Trace
from layerhess.linalg.stochastic.unit_vectors import UnitVectors
from layerhess.objective.blocks import Block

PILOT = 4  # block products from which their variance is guessed
SKETCH_ABOVE = 64  # if more probes than this are still needed, more deflation is worth its products
SKETCH = 24  # vectors, each two products
UNREACHABLE = 1 << 40  # number of full products that stands for "cannot reach it, only blocks' own products can"
JOINT = "(probes)"  # the name for drawing full probes, and their key


@dataclass
class SharedProbes:
    """The estimator that asks for products with random probes once the eigenvalue solvers are done.

    Their bases deflate the probes (see :class:`layerhess.linalg.stochastic.deflation.Deflation`), so that only the rest
    of each spectrum makes noise. One full product H x with x = (x_b) serves every block, since x_b'(H x)_b is unbiased;
    a block's own product costs less and has less variance, since no other block is in it. The measured variances decide
    which of the two is continued. Where couplings are asked for, whole columns H[:, b] v_b are made, and serve traces
    and diagonals as well.

    Args:
        blocks: those to estimate, and "(rest)" for parameters in none of them if the full model is wanted.
        full: the block of all these parameters. known: returns what the solvers know, or None while they are running.
        trace, diagonal, coupling: options, or None. whole: also for the full model.
        coupled: names of the blocks whose couplings are wanted. seed: of the probes.
        room: how many full-length rows may be held at a time. parameters: of the model; a block's vectors lie beside
            its own.
        starts: densities by block name (and the full one) whose first products are reused; "known" waits for them.
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
    parameters: Mapping[str, Tensor]
    starts: Mapping[str, DensityEstimator] = field(default_factory=dict)
    done: bool = False
    members: dict[str, Member] = field(default_factory=dict)
    _pending: dict[str, Request] = field(default_factory=dict)
    _script: Script | None = None
    _total: FullTrace = field(init=False)
    _columns: Columns | None = None

    def __post_init__(self) -> None:
        self._total = FullTrace(self.trace if self.whole else None, self.goals, self.members)

    # -- the estimator's interface ------------------------------------------------------------------------------------

    def requests(self) -> dict[str, Request]:
        """What is needed next; empty until the solvers are done."""
        if self._script is None:
            known = self.known()
            if known is None:
                return {}
            if self.coupling is not None:
                coupled = {name: self.blocks[name] for name in self.coupled}
                self._columns = Columns(self.coupling, coupled, self.full, self.seed, self.room)
            self.members.update({n: self._member(n, block, known.get(n)) for n, block in self.blocks.items()})
            self._take_full_start()
            self._script = self._run()
            self._advance(None)
        return self._pending

    def tell(self, products: Mapping[str, Tensor]) -> None:
        """Take the products that were asked for last."""
        if self._script is not None and not self.done:
            self._advance(products)

    @property
    def goals(self) -> Goals:
        """The goals, which say when there are enough samples."""
        return Goals(self.trace, self.diagonal)

    @property
    def _spent(self) -> int:
        return self._total.count + sum(m.drawn + m.exact for m in self.members.values())

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

    # -- the sequence of products -------------------------------------------------------------------------------------

    def _run(self) -> Script:
        if self._columns is not None:
            yield from self._columns.script(self.members)
        if not self.goals:
            return
        if self._waiting() and not self.goals.fixed:
            yield from self._full_products(self.goals.enough - self._total.count)
        while (waiting := self._waiting()) or self._total.excess > 1.0:
            before = self._spent
            yield from self._next(waiting)
            if self._spent == before:  # all are at their limits
                break

    def _next(self, waiting: list[Member]) -> Script:
        if not waiting and (wanted := self._total.own_products()):
            yield from self._own_products(wanted)
            return
        joint = max([self._total.missing, *(self._missing(m, m.joint) for m in waiting)])
        many = self.goals.limit > SKETCH_ABOVE and not self.goals.fixed  # else there is nothing to decide
        unseen = [m for m in waiting if m.own.count < PILOT and m.block.numel > PILOT] if many else []
        if unseen and FULL_COST * joint > PILOT * len(unseen):
            yield from self._own_products({m.name: PILOT for m in unseen})
            return
        own = {m.name: min(self._missing(m, m.own), m.block.numel) for m in waiting} if not unseen else {}
        if any(self.goals.hopeless(m.joint) and not self.goals.hopeless(m.own) for m in waiting):
            joint = UNREACHABLE
        cheaper = min(FULL_COST * joint, sum(own.values()) if own else math.inf)
        sketchable = [m for m in waiting if self._may_sketch(m)]
        if sketchable and cheaper > SKETCH_ABOVE * len(waiting):
            yield from self._sketch(sketchable)
        elif own and sum(own.values()) < FULL_COST * joint:
            yield from self._read([m for m in waiting if own[m.name] == m.block.numel])
            waiting = [m for m in waiting if not m.exact]
            yield from self._own_products(
                {m.name: self.goals.target(m.own, m.beside(m.own)) - m.own.count for m in waiting}
            )
        else:
            aims = [self.goals.target(m.joint, m.beside(m.joint)) - m.joint.count for m in waiting]
            yield from self._full_products(max([self._total.target - self._total.count, *aims]))

    def _read(self, members: list[Member]) -> Script:
        """Read whole diagonals where probes would cost no less."""
        readers = {m.name: UnitVectors(m.block.numel, m.device) for m in members}
        while left := {name: reader for name, reader in readers.items() if not reader.done}:
            asked = {_own_key(name): Request(self.blocks[name], reader.ask()) for name, reader in left.items()}
            products = yield asked
            for name, reader in left.items():
                reader.tell(products[_own_key(name)])
        for m in members:
            m.known = Known(diagonal=readers[m.name].diagonal, lengths=readers[m.name].lengths)
            self._total.reset()  # full products so far held this block's probes

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
                m.joint.add(signs[m.name], parts[m.name], part_of(self.full, m.block, products).to(m.device))
                m.spent += size
            for value in (rows * products).sum(dim=1).tolist():
                self._total.add(value)

    def _own_products(self, wanted: Mapping[str, int]) -> Script:
        left = dict(wanted)
        while left := {name: number for name, number in left.items() if number > 0}:
            size = {name: min(number, self.room) for name, number in left.items()}
            signs = {name: self.members[name].draw(size[name], self.seed) for name in left}
            rows = {name: self.members[name].deflation.project(v) for name, v in signs.items()}
            products = yield {_own_key(name): Request(self.members[name].block, rows[name]) for name in left}
            for name in left:
                self.members[name].own.add(signs[name], rows[name], products[_own_key(name)])
                self.members[name].spent += size[name]
                left[name] -= size[name]

    def _sketch(self, members: list[Member]) -> Script:
        """More deflation, from the range of the rest (Halko, Martinsson & Tropp 2011); earlier samples are dropped."""
        size = {m.name: min(SKETCH, self.room, m.block.numel // 3) for m in members}
        rows = {m.name: m.deflation.project(m.draw(size[m.name], self.seed)) for m in members}
        products = yield {_own_key(m.name): Request(m.block, rows[m.name]) for m in members}
        bases = {m.name: orthonormal_rows(products[_own_key(m.name)], against=m.deflation.q) for m in members}
        members = [m for m in members if len(bases[m.name])]
        products = yield {_own_key(m.name): Request(m.block, bases[m.name]) for m in members}
        for m in members:
            q = torch.cat([m.deflation.q, bases[m.name]])
            m.spent += size[m.name] + len(bases[m.name])
            m.deflation = Deflation(q, torch.cat([m.deflation.w, products[_own_key(m.name)]]))
            m.own, m.joint, m.sketched = self._samples(m.deflation), self._samples(m.deflation), True
        self._total.reset()
        for m in self.members.values():  # joint samples from before and after must not be mixed
            m.joint = self._samples(m.deflation)

    # -- results ------------------------------------------------------------------------------------------------------

    def trace_of(self, name: str) -> TraceEstimate:
        """The trace of a block, or of all of them for "(full)"."""
        assert self.trace is not None
        if name == FULL:
            return self._total.estimate()
        member = self.members[name]
        if member.known.diagonal is not None:
            return self.trace.exact(member.known.diagonal, member.known.lengths)
        if member.known.zero:
            return self.trace.known(0.0, "zero: the block has no curvature above its zero level")
        return member.best.trace.estimate()

    def diagonal_of(self, name: str) -> DiagonalEstimate:
        """The diagonal of a block, or of all of them for "(full)", as parameter-shaped tensors."""
        assert self.diagonal is not None
        if name == FULL:
            parts = [self.diagonal_of(member) for member in self.members]
            value = {k: v for part in parts for k, v in part.value.items()}
            error = {k: v for part in parts for k, v in part.standard_error.items()}
            whole, errors = (torch.cat([part[k].reshape(-1) for k in self.full.parameters]) for part in (value, error))
            probes = max((part.probes for part in parts), default=0)
            rounding = max((part.rounding for part in parts), default=0.0)
            if all(part.method == "exact" for part in parts):
                return shaped(self.full, dataclasses.replace(self.diagonal.exact(whole), rounding=rounding))
            made = self.diagonal.estimate(whole, errors, probes=probes, method="assembled")
            status = f"assembled from the diagonals of the blocks: {made.status}"
            return shaped(self.full, dataclasses.replace(made, status=status, rounding=rounding))
        member = self.members[name]
        if member.exact:
            flat = member.known.diagonal
            flat = torch.zeros(member.block.numel, dtype=torch.float64) if flat is None else flat
            return shaped(member.block, self.diagonal.exact(flat, member.known.lengths))
        samples = member.best.diagonal
        assert samples is not None
        return shaped(member.block, samples.estimate())

    def coupling_of(self) -> CouplingEstimate | None:
        """The table of ||H_bc||_F, once all columns were made."""
        return None if self._columns is None else self._columns.result()

    # -- parts ------------------------------------------------------------------------------------------------------

    def _member(self, name: str, block: Block, known: Known | None) -> Member:
        known = known or Known()
        plain = self.trace is not None and self.trace.method == "hutchinson"
        none = Deflation.none(block.numel, beside(block, self.parameters))
        deflation = known.deflation or none
        start = self.starts[name].start() if name in self.starts else None
        if plain:
            deflation = none
        elif start is not None:
            deflation = widened(deflation, start.basis)
        own, joint = self._samples(deflation), self._samples(deflation)
        sketched = plain or (start is not None and start.basis is not None)
        member = Member(name, block, known, deflation, own, joint, self.goals.enough, sketched=sketched)
        if start is not None:
            if start.grams is not None and self._columns is not None:
                self._columns.take(member, start.vectors, start.products, start.grams)
            if not member.exact:
                own.trace.nuclear_elsewhere = joint.trace.nuclear_elsewhere = start.nuclear
                member.own.add_free(start.vectors, start.products)
        return member

    def _samples(self, deflation: Deflation) -> Samples:
        options = self.trace or Trace()
        return Samples(options.samples(deflation), self.diagonal.samples(deflation) if self.diagonal else None)

    def _take_full_start(self) -> None:
        """Use the full density's first products as full probes."""
        start = self.starts[FULL].start() if self.whole and FULL in self.starts else None
        active = [m for m in self.members.values() if not m.exact]
        if start is None or not active:
            return
        values = torch.zeros(len(start.vectors), dtype=torch.float64, device=start.vectors.device)
        for m in active:
            v, rows = (part_of(self.full, m.block, whole).to(m.device) for whole in (start.vectors, start.products))
            values += (m.deflation.project(v) * m.joint.add_free(v, rows)).sum(dim=1).to(values.device)
        for value in values.tolist():
            self._total.add(value)

    def _waiting(self) -> list[Member]:
        """The blocks that are neither accurate enough nor at their limit."""
        return [m for m in self.members.values() if not m.exact and self.goals.open(m.best, m.beside(m.best))]

    def _missing(self, member: Member, samples: Samples) -> int:
        """How many more probes of this kind are needed, by the variance so far."""
        return self.goals.needed(samples, member.beside(samples)) - samples.count

    def _may_sketch(self, member: Member) -> bool:
        """Whether a sketch is allowed: it costs products, so not where their number is fixed."""
        room = self.goals.limit - member.spent - 2 * SKETCH
        return (
            not member.sketched
            and not self.goals.any_fixed
            and member.block.numel > 3 * SKETCH
            and self._missing(member, member.own) > SKETCH_ABOVE
            and room >= SKETCH_ABOVE
        )

    def _joined(self, parts: Mapping[str, Tensor], size: int) -> Tensor:
        """Rows over all parameters, zero for the members that are exact."""
        device = beside(self.full, self.parameters)
        pieces: dict[str, Tensor] = {}
        for name, member in self.members.items():
            rows = parts.get(name, torch.zeros((), dtype=torch.float64).expand(size, member.block.numel)).to(device)
            sizes = [shape.numel() for shape in member.block.shapes]
            pieces.update(zip(member.block.parameters, torch.split(rows, sizes, dim=1), strict=True))
        return torch.cat([pieces[name] for name in self.full.parameters], dim=1)


def _own_key(name: str) -> str:
    return f"(own probes) {name}"
