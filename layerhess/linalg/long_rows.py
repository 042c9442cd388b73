"""Arithmetic of a few very long rows, piece by piece: sums in float64, whatever dtype the rows are stored in.

A float64 copy of float32 rows would double the memory, and a float32 sum over 1e8 numbers is wrong by a percent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 1 << 20  # numbers in float64 at a time
LARGE_PIECE = 1 << 24  # on devices where every operation takes its time to begin


def pieces(n: int, rows: int, device: torch.device) -> Iterator[slice]:
    """Ranges of columns, such that a piece of all rows is small."""
    step = max(1 << 12, (PIECE if device.type == "cpu" else LARGE_PIECE) // max(1, rows))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """(k, m) float64 inner products of (k, n) and (m, n) rows."""
    made = torch.zeros((len(a), len(b)), dtype=torch.float64, device=a.device)
    for piece in pieces(a.shape[1], len(a) + len(b), a.device):
        made += a[:, piece].double() @ b[:, piece].double().T
    return made


def lengths(rows: Tensor) -> Tensor:
    """(k,) float64 norms of (k, n) rows."""
    return norms_of(None, rows)


def norms_of(coefficients: Tensor | None, rows: Tensor, more: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """(k,) float64 norms of combinations of (m, n) rows, for (m, k) coefficients; None stands for the identity.

    Args:
        more: further coefficients and rows, whose combinations are subtracted.
    """
    made = []
    for piece in pieces(rows.shape[1], len(rows) * (1 if more is None else 2), rows.device):
        part = _combined(coefficients, rows, piece)
        if more is not None:
            part = part - _combined(*more, piece)
        made.append(torch.linalg.vector_norm(part, dim=1))
    return torch.as_tensor(made[0] if len(made) == 1 else torch.linalg.vector_norm(torch.stack(made), dim=0))


def combined(coefficients: Tensor, rows: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """(k, n) combinations of (m, n) rows, for (m, k) coefficients."""
    made = torch.empty((coefficients.shape[1], rows.shape[1]), dtype=dtype, device=rows.device)
    for piece in pieces(rows.shape[1], len(rows), rows.device):
        made[:, piece] = _combined(coefficients, rows, piece)
    return made


def subtract(rest: Tensor, coefficients: Tensor, rows: Tensor) -> None:
    """Take combinations of (m, n) rows from the (s, n) float64 ``rest``, in place, for (m, s) coefficients."""
    for piece in pieces(rows.shape[1], len(rows), rows.device):
        rest[:, piece] -= _combined(coefficients, rows, piece)


def rounded(rows: Tensor, stored: Tensor) -> float:
    """The Frobenius norm of the difference of (k, n) float64 rows and what was stored of them."""
    if stored.dtype == torch.float64:
        return 0.0
    made = [
        torch.linalg.vector_norm(rows[:, piece] - stored[:, piece].double())
        for piece in pieces(rows.shape[1], len(rows), rows.device)
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
    """

    n: int
    here: slice | None = None
    told: Callable[[Tensor], list[Tensor]] | None = None
    joined: Callable[[Tensor], Tensor] | None = None

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

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """As :func:`inner`, of slices."""
        return self._sum(inner(a, b))

    def lengths(self, rows: Tensor) -> Tensor:
        """As :func:`lengths`, of slices."""
        return self._norm(lengths(rows))

    def norms_of(self, coefficients: Tensor | None, rows: Tensor, more: tuple[Tensor, Tensor] | None = None) -> Tensor:
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


def _combined(coefficients: Tensor | None, rows: Tensor, piece: slice) -> Tensor:
    part = rows[:, piece].double()
    return part if coefficients is None else coefficients.T.to(part.device) @ part
