"""Arithmetic of a few very long rows, piece by piece: sums in float64, whatever dtype the rows are stored in.

A float64 copy of float32 rows would double the memory, and a float32 sum over 1e8 numbers is wrong by a percent.
"""

from __future__ import annotations

from collections.abc import Iterator

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


def _combined(coefficients: Tensor | None, rows: Tensor, piece: slice) -> Tensor:
    part = rows[:, piece].double()
    return part if coefficients is None else coefficients.T.to(part.device) @ part
