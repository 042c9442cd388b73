"""Products with whole columns, H[:, b] v, for the couplings; their part in block b also serves trace and diagonal."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from layerhess.analysis.probing.block_samples import Member, part_of
from layerhess.curvature.data_pass import Request
from layerhess.linalg.estimates import CouplingEstimate, Floats
from layerhess.linalg.random_vectors import random_signs
from layerhess.linalg.stochastic.coupling import Coupling, CouplingSamples
from layerhess.linalg.stochastic.deflation import Deflation
from layerhess.objective.blocks import Block

LEADING = 4  # known directions whose share of a column's variance is looked at
KEPT = 32  # eigenvectors of a block that was read whole
SAME = 1e-6  # of the largest |eigenvalue|: what lies closer has no basis of its own
READ_WHOLE = 4  # times the products of the probes: where every block can be read for no more, no number needs an error

Script = Generator[dict[str, Request], Mapping[str, Tensor], None]


@dataclass(frozen=True)
class Probes:
    """Random vectors (s, n): what is multiplied, the signs it was made of, and its signs (s, k) along directions."""

    vectors: Tensor
    plain: Tensor
    along: Tensor


@dataclass
class Columns:
    """The couplings of some blocks: for every block b some H[:, b] v_b, or all its columns where it is small.

    A small model is read whole: from a few vectors, the standard error itself is uncertain (Student's t).

    Few directions may carry a coupling, and often they are the dominant eigenvectors of the block. So the vectors have
    random signs along what eigenvectors its solver found, and in the plain basis otherwise: v = Q'e + P z with
    E[v v'] = Q'Q + P P = I, whose squared norms vary only by what couples different directions. The coupling of a block
    with itself is exact where it was read whole, and otherwise random only in what its solver does not know.

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
    _directions: dict[str, Deflation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._samples = CouplingSamples([block.numel for block in self.blocks.values()])

    def take(self, member: Member, vectors: Tensor, products: Tensor, grams: Floats) -> None:
        """Add columns that were made elsewhere; none for a block that is read whole.

        Args:
            vectors, products: plain random signs (s, n) and their products with the block alone. grams: (B, s, s),
                v_i' H_cb' H_cb v_j over all blocks c.
        """
        if self.small(member.name):
            return
        count, place = grams.shape[1], self._place(member.name)
        constant = None
        if member.known.square is not None or len(products) >= count:
            along = vectors[:count] @ self._known(member).q.T
            own, constant = self._own(member, products[:count], along)
            grams[place] = (own @ own.T).numpy(force=True) if len(own) == count else 0.0
        self._samples.add_together(place, grams, constant=constant)
        self._made[member.name] = self._made.get(member.name, 0) + count

    def script(self, members: Mapping[str, Member]) -> Script:
        """Ask for the columns that are missing, block by block."""
        jobs = [(name, i) for name in self.blocks for i in range(self._made.get(name, 0), self._number(name))]
        known = {name: self._known(members[name]) for name, _ in jobs if not self.small(name)}
        for start in range(0, len(jobs), self.room):
            asked: dict[str, list[int]] = {}
            for name, i in jobs[start : start + self.room]:
                asked.setdefault(name, []).append(i)
            drawn = {name: self._draw(members[name], known.get(name), numbers) for name, numbers in asked.items()}
            products = yield {
                _key(name): Request(self.blocks[name], probes.vectors, rows=self.full) for name, probes in drawn.items()
            }
            for name, probes in drawn.items():
                self._tell(members[name], known.get(name), probes, products[_key(name)])

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

    def _draw(self, member: Member, known: Deflation | None, numbers: Sequence[int]) -> Probes:
        """Unit vectors for a block that is read whole, or random ones: signs, along known directions and otherwise."""
        if known is None:
            rows = torch.zeros((len(numbers), member.block.numel), dtype=torch.float64, device=member.device)
            rows[torch.arange(len(numbers)), torch.tensor(numbers)] = 1.0
            return Probes(rows, rows, rows[:, :0])
        plain = member.draw(len(numbers), self.seed)
        name = f"{member.name} directions"
        signs = [random_signs(known.size, self.seed, name, i, plain.device) for i in numbers]
        along = torch.stack(signs) if known.size else plain[:, :0]
        return Probes(known.project(plain) + along @ known.q, plain, along)

    def _tell(self, member: Member, known: Deflation | None, probes: Probes, columns: Tensor) -> None:
        parts = {name: part_of(self.full, block, columns) for name, block in self.blocks.items()}
        place = self._place(member.name)
        if known is None:
            squares = [float(part.square().sum()) for part in parts.values()]
            self._samples.add_exact(place, squares, columns=len(columns))
            return
        own = parts[member.name]
        parts[member.name], constant = self._own(member, own, probes.along)
        grams = np.stack([(part @ part.T).numpy(force=True) for part in parts.values()])
        self._samples.add_together(place, grams, probes.along[:, :LEADING].numpy(force=True), constant)
        if not member.exact:
            # The product with the plain signs, as it would have been without the known directions.
            member.own.add_free(probes.plain, own + (probes.plain @ known.q.T - probes.along) @ known.w)

    def _own(self, member: Member, products: Tensor, along: Tensor) -> tuple[Tensor, list[float]]:
        """What chance is left in products with the block alone, and what is known of all squared norms."""
        known = self._known(member)
        exact = member.known.square
        constant = [0.0] * len(self.blocks)
        constant[self._place(member.name)] = float(known.w.square().sum()) if exact is None else exact
        return products - along @ known.w if exact is None else torch.zeros_like(products), constant

    def _known(self, member: Member) -> Deflation:
        if member.name not in self._directions:
            self._directions[member.name] = _directions(member, self.seed)
        return self._directions[member.name]


def _directions(member: Member, seed: int) -> Deflation:
    """Orthonormal eigenvectors of a block, or what is known of them, by decreasing |eigenvalue|, and their products.

    Last digits decide nothing: signs, and the basis of eigenvectors whose eigenvalues are the same, are those of given
    random vectors, and of such eigenvectors all are kept or none.
    """
    found = member.known
    if found.matrix is not None:
        values, turn = torch.linalg.eigh(found.matrix)
        q, w = torch.eye(len(values)).to(member.deflation.q), found.matrix.to(member.deflation.q)
        most = KEPT
    elif found.deflation is None:
        return Deflation.none(member.block.numel, member.device)
    else:
        q, w = found.deflation.q, found.deflation.w
        values, turn = torch.linalg.eigh(((q @ w.T) + (w @ q.T)) / 2.0)
        most = len(values)
    order = values.abs().argsort(descending=True)
    sizes = values.abs()[order]
    turn = turn[:, order].T.to(q)
    edges = (sizes[:-1] - sizes[1:] > SAME * sizes[:1]).nonzero().flatten() + 1
    groups = [
        group for group in torch.arange(len(sizes)).tensor_split(edges.tolist()) if len(group) and group[-1] < most
    ]
    rows = []
    for group in groups:
        drawn = [random_signs(member.block.numel, seed, f"{member.name} basis", i, q.device) for i in range(len(group))]
        own = turn[group]
        basis, upper = torch.linalg.qr(own @ (q @ torch.stack(drawn).T))
        rows.append((basis * upper.diagonal().sign()).T @ own)
    kept = torch.cat(rows) if rows else turn[:0]
    return Deflation(kept @ q, kept @ w)


def _key(name: str) -> str:
    return f"(columns) {name}"
