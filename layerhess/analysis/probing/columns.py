"""Products with whole columns, H[:, b] v, for the couplings; their part in block b also serves trace and diagonal."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from layerhess.analysis.probing.block_samples import Member, part_of
from layerhess.curvature.data_pass import Request
from layerhess.linalg.estimates import CouplingEstimate
from layerhess.linalg.stochastic.coupling import Coupling, CouplingSamples
from layerhess.objective.blocks import Block

READ_WHOLE = 4  # times the products of the probes: where every block can be read for no more, no number needs an error

Script = Generator[dict[str, Request], Mapping[str, Tensor], None]


@dataclass
class Columns:
    """The couplings of some blocks: probe by probe H[:, b] v_b for every block b, or all unit vectors of a small one.

    A small model is read whole: from a few vectors, the standard error itself is uncertain (Student's t).

    Args:
        options: how many probes. blocks: those coupled, in model order. full: the block of all parameters.
        seed: of the probes. room: how many full-length rows may be held at a time.
    """

    options: Coupling
    blocks: Mapping[str, Block]
    full: Block
    seed: int
    room: int
    _samples: CouplingSamples = field(init=False)
    _made: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._samples = CouplingSamples([block.numel for block in self.blocks.values()])

    def take(self, name: str, squares: Sequence[Sequence[float]]) -> None:
        """Add columns that were made elsewhere: (probes, B) of ||H_cb v||^2; a block that is read whole needs none."""
        if self.small(name):
            return
        for row in squares:
            self._samples.add(self._place(name), row)
        self._made[name] = self._made.get(name, 0) + len(squares)

    def script(self, members: Mapping[str, Member]) -> Script:
        """Ask for the columns that are missing."""
        jobs = [
            (name, i)
            for i in range(max(map(self._number, self.blocks), default=0))
            for name in self.blocks
            if self._made.get(name, 0) <= i < self._number(name)
        ]
        for start in range(0, len(jobs), self.room):
            batch = jobs[start : start + self.room]
            vectors = {job: self._vector(members[job[0]], job[1]) for job in batch}
            products = yield {_key(*job): Request(self.blocks[job[0]], vectors[job], rows=self.full) for job in batch}
            for job in batch:
                self._tell(members[job[0]], vectors[job], products[_key(*job)])

    def result(self) -> CouplingEstimate:
        """The table of ||H_bc||_F so far."""
        return self._samples.result(list(self.blocks))

    def small(self, name: str) -> bool:
        """Whether reading the block whole costs no more than its probes, or the whole model is small."""
        return self.blocks[name].numel <= self.options.probes or self._few

    @property
    def _few(self) -> bool:
        sizes = [block.numel for block in self.blocks.values()]
        return sum(sizes) <= READ_WHOLE * self.options.probes * len(sizes)

    def _number(self, name: str) -> int:
        """Of a block's columns."""
        return self.blocks[name].numel if self.small(name) else self.options.probes

    def _place(self, name: str) -> int:
        return list(self.blocks).index(name)

    def _vector(self, member: Member, probe: int) -> Tensor:
        if not self.small(member.name):
            return member.draw(1, self.seed)
        unit = torch.zeros((1, member.block.numel), dtype=torch.float64, device=member.deflation.q.device)
        unit[0, probe] = 1.0
        return unit

    def _tell(self, member: Member, vector: Tensor, column: Tensor) -> None:
        parts = {name: part_of(self.full, block, column) for name, block in self.blocks.items()}
        squares = [float(part.square().sum()) for part in parts.values()]
        if self.small(member.name):
            self._samples.add_exact(self._place(member.name), squares)
            return
        self._samples.add(self._place(member.name), squares)
        if not member.exact:
            member.own.add_free(vector, parts[member.name])


def _key(name: str, probe: int) -> str:
    return f"(column {probe}) {name}"
