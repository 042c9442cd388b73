"""Arithmetic of a few very long rows, piece by piece: sums in float64, whatever dtype the rows are stored in.

A float64 copy of float32 rows would double the memory, and a float32 sum over 1e8 numbers is wrong by a percent. Where
rows are spread over devices, each piece is worked on where it lies, and pieces of whole rows go there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from layerhess.linalg.spread_rows import SpreadRows

Rows = Tensor | SpreadRows

PIECE = 1 << 20  # numbers in float64 at a time
LARGE_PIECE = 1 << 24  # on devices where every operation takes its time to begin


def pieces(n: int, rows: int, device: torch.device) -> Iterator[slice]:
    """Ranges of columns, such that a piece of all rows is small."""
    step = max(1 << 12, (PIECE if device.type == "cpu" else LARGE_PIECE) // max(1, rows))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def parts(count: int, *rows: Rows) -> Iterator[tuple[slice, list[Tensor]]]:
    """Columns such that a piece of ``count`` rows is small, and of all these rows their parts, on one device each time.

    Rows that are spread have the same stretches. They stay where they are.
    """
    spread = [one for one in rows if isinstance(one, SpreadRows)]
    start = 0
    for number, stretch in enumerate(spread[0].parts if spread else rows[:1]):
        assert isinstance(stretch, Tensor)
        for piece in pieces(stretch.shape[1], count, stretch.device):
            columns = slice(start + piece.start, start + piece.stop)
            yield (
                columns,
                [
                    one[:, columns].to(stretch.device) if isinstance(one, Tensor) else one.parts[number][:, piece]
                    for one in rows
                ],
            )
        start += stretch.shape[1]


def inner(a: Rows, b: Rows) -> Tensor:
    """(k, m) float64 inner products of (k, n) and (m, n) rows."""
    made = torch.zeros((len(a), len(b)), dtype=torch.float64, device=a.device)
    for _, (x, y) in parts(len(a) + len(b), a, b):
        made += (x.double() @ y.double().T).to(made.device)
    return made


def lengths(rows: Rows) -> Tensor:
    """(k,) float64 norms of (k, n) rows."""
    return norms_of(None, rows)


def norms_of(coefficients: Tensor | None, rows: Rows, more: tuple[Tensor, Rows] | None = None) -> Tensor:
    """(k,) float64 norms of combinations of (m, n) rows, for (m, k) coefficients; None stands for the identity.

    Args:
        more: further coefficients and rows, whose combinations are subtracted.
    """
    made, others = [], () if more is None else (more[1],)
    for _, (own, *other) in parts(len(rows) * (1 + len(others)), rows, *others):
        part = _combined(coefficients, own)
        if more is not None:
            part = part - _combined(more[0], other[0])
        made.append(torch.linalg.vector_norm(part, dim=1).to(rows.device))
    return torch.as_tensor(made[0] if len(made) == 1 else torch.linalg.vector_norm(torch.stack(made), dim=0))


def combined(coefficients: Tensor, rows: Rows, dtype: torch.dtype = torch.float64) -> Tensor:
    """(k, n) combinations of (m, n) rows, whole, for (m, k) coefficients."""
    made = torch.empty((coefficients.shape[1], rows.shape[1]), dtype=dtype, device=rows.device)
    for columns, (own,) in parts(len(rows), rows):
        made[:, columns] = _combined(coefficients, own)
    return made


def subtract(rest: Tensor, coefficients: Tensor, rows: Rows) -> None:
    """Take combinations of (m, n) rows from the (s, n) float64 ``rest``, in place, for (m, s) coefficients."""
    for columns, (own,) in parts(len(rows), rows):
        rest[:, columns] -= _combined(coefficients, own).to(rest.device)


def replace(rows: Rows, coefficients: Tensor) -> float:
    """Put (k, m) combinations of the first m rows in the place of the first k; what rounding took, see below."""
    (k, m), squares = coefficients.shape, 0.0
    for _, (own,) in parts(k + m, rows):
        made = coefficients.to(own.device) @ own[:m].double()
        own[:k] = made
        squares += rounded(made, own[:k]) ** 2
    return math.sqrt(squares)


def rounded(rows: Tensor, stored: Rows) -> float:
    """The Frobenius norm of the difference of (k, n) float64 rows and what was stored of them."""
    if stored.dtype == torch.float64:
        return 0.0
    made = [
        torch.linalg.vector_norm(exact - own.double()).to(rows.device)
        for _, (exact, own) in parts(len(rows), rows, stored)
    ]
    return float(torch.linalg.vector_norm(torch.stack(made))) if made else 0.0


@dataclass(frozen=True)
class Space:
    """The vectors of length n: whole here, or in slices that several processes hold, one each.

    Arithmetic of rows needs nothing else but that numbers of all slices are put together. All processes get the same
    bits, since each adds up the same parts in the same order.

    Attributes:
        n: dimension. here: the components that this process holds; None for all. told: what every process told, in
            their order, a small tensor in main memory each. joined: rows (s, n) of all slices, from the slices.
        places: of successive components how many there are and the device of stored rows; () for one device.
    """

    n: int
    here: slice | None = None
    told: Callable[[Tensor], list[Tensor]] | None = None
    joined: Callable[[Tensor], Tensor] | None = None
    places: tuple[tuple[int, torch.device], ...] = ()

    @property
    def length(self) -> int:
        """Components that this process holds."""
        return self.n if self.here is None else len(range(self.n)[self.here])

    def cut(self, rows: Tensor) -> Tensor:
        """Whole rows (s, n), or a vector (n,): what is held here of them, without a copy."""
        return rows if self.here is None else rows[..., self.here]

    def whole(self, rows: Tensor) -> Tensor:
        """Slices of rows (s, length): the rows (s, n)."""
        return rows if self.joined is None else self.joined(rows)

    def empty(self, count: int, dtype: torch.dtype, device: torch.device) -> Rows:
        """(count, length) rows to be stored: on ``device``, or spread over :attr:`places`."""
        if not self.places:
            return torch.empty((count, self.length), dtype=dtype, device=device)
        here, start, made = range(self.n)[self.here or slice(None)], 0, []
        for size, place in self.places:
            if length := len(range(max(start, here.start), min(start + size, here.stop))):
                made.append(torch.empty((count, length), dtype=dtype, device=place))
            start += size
        return SpreadRows(made, device)

    def inner(self, a: Rows, b: Rows) -> Tensor:
        """As :func:`inner`, of slices."""
        return self._sum(inner(a, b))

    def lengths(self, rows: Rows) -> Tensor:
        """As :func:`lengths`, of slices."""
        return self._norm(lengths(rows))

    def norms_of(self, coefficients: Tensor | None, rows: Rows, more: tuple[Tensor, Rows] | None = None) -> Tensor:
        """As :func:`norms_of`, of slices."""
        return self._norm(norms_of(coefficients, rows, more))

    def norm(self, of_slice: float) -> float:
        """The norm of what has this norm in the slice here."""
        return of_slice if self.told is None else float(self._norm(torch.tensor([of_slice], dtype=torch.float64)))

    def _sum(self, part: Tensor) -> Tensor:
        if self.told is None:
            return part
        return torch.stack(self.told(part.cpu())).sum(0).to(part.device)

    def _norm(self, part: Tensor) -> Tensor:
        if self.told is None:
            return part
        return torch.as_tensor(torch.linalg.vector_norm(torch.stack(self.told(part.cpu())), dim=0)).to(part.device)


def _combined(coefficients: Tensor | None, part: Tensor) -> Tensor:
    part = part.double()
    return part if coefficients is None else coefficients.T.to(part.device) @ part
