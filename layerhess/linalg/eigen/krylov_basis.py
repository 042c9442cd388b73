"""An orthonormal basis Q with its products W = A Q: Rayleigh-Ritz, explicit residuals, full reorthogonalisation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from layerhess.linalg.eigen.process import Floats, Source, Wanted, dense_eigh

MOST = 0.7  # of a vector that is left after a subtraction: its rounding did not grow
LEAST = 1e-2  # of a random vector outside the span: where less is left, another one is drawn
BREAKDOWN = 1e-13  # of ||A||: what is left of a vector below this is rounding of the orthogonalisation


def frame(rows: Tensor) -> Tensor:
    """Orthonormal rows with the same span: uniformly distributed where the rows are random."""
    if len(rows) == 1:
        return torch.as_tensor(rows / torch.linalg.vector_norm(rows))
    return torch.as_tensor(torch.linalg.qr(rows.T)[0].T.contiguous())


def row_norms(rows: Tensor) -> Floats:
    """(s,) lengths, on the CPU."""
    return np.asarray(torch.linalg.vector_norm(rows, dim=1).cpu().numpy(), dtype=np.float64)


def comfortable_basis(wanted: Wanted) -> int:
    """Rows before a restart if memory is no concern: restarts cost steps, and steps cost more than vectors."""
    return max(2 * wanted.total + 24, 160)


class Basis:
    """Rows q_i (orthonormal) and w_i = A q_i, both (m, n) float64, and T = Q A Q'.

    Keeping W as well costs twice the memory of the textbook recurrence. It gives the true residual of any Ritz pair
    without another product, also after restarts and locking and in float32.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self.n = n
        self._q = torch.empty((0, n), dtype=torch.float64, device=device)
        self._w = torch.empty((0, n), dtype=torch.float64, device=device)
        self._t = torch.empty((0, 0), dtype=torch.float64)
        self.size = 0

    @property
    def q(self) -> Tensor:
        """(m, n) orthonormal rows."""
        return self._q[: self.size]

    @property
    def w(self) -> Tensor:
        """(m, n) their products."""
        return self._w[: self.size]

    @property
    def t(self) -> Tensor:
        """(m, m) symmetric, on the CPU."""
        return self._t[: self.size, : self.size]

    def append(self, vectors: Tensor, products: Tensor) -> Tensor:
        """Add orthonormal rows with their products; returns the (s, n) part of the products outside the new span."""
        s, old = len(vectors), self.size
        self._grow(old + s)
        self._q[old : old + s] = vectors
        self._w[old : old + s] = products
        self.size = old + s
        coupling = products @ self.q.T  # (s, m)
        rest = products - coupling @ self.q
        rest -= (rest @ self.q.T) @ self.q
        coupling = coupling.cpu()
        own = coupling[:, old:]
        coupling[:, old:] = (own + own.T) / 2
        self._t[old : old + s, : old + s] = coupling
        self._t[: old + s, old : old + s] = coupling.T
        return rest

    def ritz(self, start: int = 0, stop: int | None = None) -> tuple[Floats, Tensor]:
        """Ascending Ritz values and coefficient columns, of the rows from ``start`` to ``stop`` alone."""
        return dense_eigh(self.t[start:stop, start:stop])

    def vectors(self, coefficients: Tensor) -> Tensor:
        """(k, n) combinations of the first rows, for (rows, k) coefficients."""
        return coefficients.T.to(self._q.device) @ self._q[: len(coefficients)]

    def products(self, coefficients: Tensor) -> Tensor:
        """(k, n) products of :meth:`vectors`."""
        return coefficients.T.to(self._w.device) @ self._w[: len(coefficients)]

    def residuals(self, values: Floats, coefficients: Tensor) -> Tensor:
        """(k, n) rows A v - theta v of the given pairs."""
        theta = torch.from_numpy(values.copy()).to(self._q.device)
        return self.products(coefficients) - theta[:, None] * self.vectors(coefficients)

    def replace(self, coefficients: Tensor, after: int = 0) -> None:
        """Replace the rows from ``after`` on by combinations of them: (m - after, k) orthonormal columns."""
        if after:
            inner = coefficients
            coefficients = torch.eye(self.size, dtype=torch.float64)[:, : after + inner.shape[1]]
            coefficients[after:, after:] = inner
        q, w = self.vectors(coefficients), self.products(coefficients)
        t = coefficients.T @ self.t @ coefficients
        self.size = len(q)
        self._q[: self.size], self._w[: self.size] = q, w
        self._t[: self.size, : self.size] = (t + t.T) / 2

    def outside(self, rows: Tensor, scale: float, draw: Source, number: int) -> Tensor:
        """Up to len(rows) orthonormal rows orthogonal to the basis, from ``rows`` where they are not rounding.

        A row that (nearly) lies in the span is replaced by the random vector ``draw(number)``, which leads out of an
        invariant subspace. Fewer rows are returned when the whole space is exhausted.
        """
        made: list[Tensor] = []
        for row in rows:
            if self.size + len(made) >= self.n:
                break
            for attempt in range(4):
                length = float(torch.linalg.vector_norm(row))
                if length > BREAKDOWN * scale:
                    # The rest of a product is kept down to its rounding: a part that is dropped is never seen again.
                    least = BREAKDOWN * scale / length if scale else LEAST
                    row = self._orthogonal(row / length, made, least)
                    if row is not None:
                        made.append(row)
                        break
                row, scale = draw(number + 1000 * attempt + len(made)).to(self._q.device), 0.0
        return torch.stack(made) if made else torch.empty((0, self.n), dtype=torch.float64, device=self._q.device)

    def _orthogonal(self, row: Tensor, made: list[Tensor], least: float) -> Tensor | None:
        """The unit row without its part in the span, normalised; None where no more than ``least`` is left.

        Repeated while one subtraction removes so much that the rest may not be orthogonal (twice is enough, Kahan's
        rule in Parlett 1998, section 6.9).
        """
        others = torch.cat([self.q, torch.stack(made)]) if made else self.q
        whole = 1.0
        for _ in range(4):
            row = row - (others @ row) @ others
            left = float(torch.linalg.vector_norm(row))
            whole *= left
            if whole <= least:
                return None
            row = row / left
            if left > MOST:
                return row
        return row

    def _grow(self, size: int) -> None:
        have = len(self._q)
        if size <= have:
            return
        room = min(max(size, 2 * have, 12), self.n)
        for name in ("_q", "_w"):
            old = getattr(self, name)
            new = torch.empty((room, self.n), dtype=torch.float64, device=old.device)
            new[: self.size] = old[: self.size]
            setattr(self, name, new)
        t = torch.zeros((room, room), dtype=torch.float64)
        t[: self.size, : self.size] = self._t[: self.size, : self.size]
        self._t = t
