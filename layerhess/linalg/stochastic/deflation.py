"""Deflation: splits off the part of a matrix that a few products determine, to leave less to random probes."""

from __future__ import annotations

import torch
from torch import Tensor

from layerhess.errors import InputError

DEPENDENT = 1e-12  # of the longest row: what is left below this is rounding
ORTHONORMAL = 1e-6  # a basis worse than this is an error, not rounding


class Deflation:
    """Splits a symmetric A into A_hat, known from Q and W = A Q, and a rest that is left to random probes.

    Q holds orthonormal rows, P = I - Q'Q, and A_hat = Q'QA + AQ'Q - Q'QAQ'Q, so that A = A_hat + P A P exactly:
    expand (Q'Q + P) A (Q'Q + P). Let v be random, independent of Q, with E[v v'] = I, and x = P v. Then

    1. E[x'A x] = E[v'PAP v] = tr(PAP) = tr(A) - tr(A_hat), and tr(A_hat) = tr(T), T = Q A Q';
    2. E[v * (P A x)]_i = E[v_i (PAP v)_i] = (PAP)_ii = A_ii - (A_hat)_ii;
    3. so tr(T) + x'A x and diag(A_hat) + v * P A x are unbiased given Q, whatever Q is.

    Variance is that of Hutchinson on PAP, 2 (||PAP||_F^2 - sum of its squared diagonal), small where Q holds the
    dominant eigenvectors (Gambhir, Stathopoulos & Orginos 2017; Meyer et al. 2021, Hutch++). No product is spent.

    Args:
        q: (m, n) orthonormal rows, float64; m = 0 is plain Hutchinson. w: (m, n) their products A q.

    Attributes:
        trace: tr(T). nuclear: sum of |eigenvalues of T|.

    Raises:
        InputError: shapes that differ, or rows that are not orthonormal.

    >>> import torch
    >>> a = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
    >>> q = torch.tensor([[1.0, 0.0]]).double()
    >>> known = Deflation(q, q @ a)
    >>> known.trace, known.diagonal().tolist(), known.project(torch.ones(1, 2).double()).tolist()
    (2.0, [2.0, 0.0], [[0.0, 1.0]])
    """

    def __init__(self, q: Tensor, w: Tensor) -> None:
        if q.ndim != 2 or q.shape != w.shape:
            raise InputError(
                f"the basis has shape {tuple(q.shape)} and its products {tuple(w.shape)}",
                where="deflation",
                what_to_do="give (m, n) rows q and their products w = A q",
            )
        self.q, self.w = q.double(), w.double()
        gram = self.q @ self.q.T
        if len(q) and not float((gram - torch.eye(len(q)).to(gram)).abs().max()) <= ORTHONORMAL:
            raise InputError(
                "the rows of the basis are not orthonormal",
                where="deflation",
                what_to_do="orthonormalise them before their products are made",
            )
        t = self.q @ self.w.T
        self._t = (t + t.T) / 2
        self.trace = float(self._t.trace())
        self.nuclear = float(torch.linalg.eigvalsh(self._t.cpu()).abs().sum())

    @classmethod
    def none(cls, n: int, device: torch.device | None = None) -> Deflation:
        """Nothing known of an operator of dimension n."""
        empty = torch.empty((0, n), dtype=torch.float64, device=device)
        return cls(empty, empty)

    @property
    def size(self) -> int:
        """Number m of rows."""
        return len(self.q)

    @property
    def n(self) -> int:
        """Dimension."""
        return int(self.q.shape[1])

    def project(self, rows: Tensor) -> Tensor:
        """(I - Q'Q) applied to (s, n) rows or one (n,) vector; 4 m n operations each."""
        return rows - (rows @ self.q.T) @ self.q if self.size else rows

    def diagonal(self) -> Tensor:
        """diag(A_hat), (n,): 2 sum_k q_k w_k - sum_k q_k (T q)_k, entry by entry; nothing of size n x n is formed."""
        return (self.q * (2.0 * self.w - self._t @ self.q)).sum(dim=0)


def orthonormal_rows(rows: Tensor, against: Tensor | None = None, scale: float | None = None) -> Tensor:
    """(r, n) orthonormal rows that, with ``against``, span the given ones; r <= s, dependent directions dropped.

    Args:
        rows: (s, n) float64, in any condition. against: (m, n) orthonormal rows to stay orthogonal to.
        scale: length against which "dependent" is judged; the longest of ``rows`` by default.

    >>> import torch
    >>> len(orthonormal_rows(torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 1e-3]]).double()))
    2
    """
    lengths = torch.linalg.vector_norm(rows, dim=1)
    longest = float(lengths.max()) if len(rows) else 0.0
    cut = DEPENDENT * max(longest, scale or 0.0)
    rest = _without(rows, against)
    _, sizes, directions = torch.linalg.svd(rest, full_matrices=False)
    kept = directions[sizes > cut] if longest > 0.0 else directions[:0]
    # After a large cancellation a row is orthogonal only up to its rounding: once more.
    kept = _without(kept, against)
    return torch.linalg.qr(kept.T)[0].T.contiguous() if len(kept) else kept


def _without(rows: Tensor, against: Tensor | None) -> Tensor:
    if against is None or not len(against):
        return rows
    for _ in range(2):
        rows = rows - (rows @ against.T) @ against
    return rows
