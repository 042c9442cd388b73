"""An orthonormal basis Q with its products W = A Q: Rayleigh-Ritz, explicit residuals, full reorthogonalisation."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from layerhess.linalg.eigen.process import Floats, Source, Wanted, dense_eigh
from layerhess.linalg.long_rows import Rows, Space, combined, replace, rounded, subtract
from layerhess.linalg.spread_rows import SpreadRows

MOST = 0.7  # of a vector that is left after a subtraction: its rounding did not grow
LEAST = 1e-2  # of a random vector outside the span: where less is left, another one is drawn
BREAKDOWN = 1e-13  # of ||A||: what is left of a vector below this is rounding of the orthogonalisation
FEW = 12  # rows that there is room for from the beginning
MORE = 4  # rows at a time beyond those that were expected


def frame(rows: Tensor) -> Tensor:
    """Orthonormal rows with the same span: uniformly distributed where the rows are random."""
    if len(rows) == 1:
        return torch.as_tensor(rows / torch.linalg.vector_norm(rows))
    return torch.as_tensor(torch.linalg.qr(rows.T)[0].T.contiguous())


def comfortable_basis(wanted: Wanted) -> int:
    """Rows before a restart if memory is no concern: restarts cost steps, and steps cost more than vectors."""
    return max(2 * wanted.total + 24, 160)


class Basis:
    """Rows q_i (orthonormal) and w_i = A q_i, both (m, n), and T = Q A Q' in float64.

    Keeping W as well costs twice the memory of the textbook recurrence. It gives the true residual of any Ritz pair
    without another product, also after restarts and locking and in float32.

    Rows may be stored in float32. A stored q is the vector that is multiplied, so only its orthogonality is rounded; a
    stored w is rounded itself. Whatever is computed from them is accumulated in float64, and :meth:`error` says what
    the rounding costs.

    Args:
        space: of the rows, or its dimension n. Where it is in slices, so are all rows here, those given and those made.
        device: of the rows, and of what is made of them where the space has places for these. dtype: float64 or
            float32, of the rows. limit: rows that are expected.
    """

    def __init__(
        self, space: Space | int, device: torch.device, dtype: torch.dtype = torch.float64, limit: int = 0
    ) -> None:
        self.space = space if isinstance(space, Space) else Space(space)
        self.n = self.space.n
        self._limit = limit
        self._q, self._w = (self.space.empty(0, dtype, device) for _ in range(2))
        self._t = torch.empty((0, 0), dtype=torch.float64)
        self.size = 0
        self._off = 0.0  # at most ||W - A Q||, but for what grows with ||A||
        self._moved = 0.0  # times ||A||: the same for the rounding of Q
        self._skew = 0.0  # ||Q Q' - I||
        self._left = 0.0  # of unit vectors, what the rounding of the rows that continue them left outside the span

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored rows."""
        return self._q.dtype

    @property
    def limit(self) -> int:
        """Rows that are expected, 0 where that is not known."""
        return self._limit

    @property
    def q(self) -> Rows:
        """(m, n) orthonormal rows."""
        return self._q[: self.size]

    @property
    def w(self) -> Rows:
        """(m, n) their products."""
        return self._w[: self.size]

    def gathered(self) -> list[Tensor]:
        """Q and W on one device."""
        return [rows.whole() if isinstance(rows, SpreadRows) else rows for rows in (self.q, self.w)]

    @property
    def t(self) -> Tensor:
        """(m, m) symmetric, on the CPU."""
        return self._t[: self.size, : self.size]

    def error(self, norm: float) -> float:
        """How far off a symmetric matrix of this norm is at most, of which the stored rows are exact; 0 in float64.

        With E = W - A Q, an orthonormal Q~ of the same span has ||Q~ - Q|| <= ||Q Q' - I|| to first order. Norms of all
        rows together are taken (Frobenius), as they were measured when the rows were stored; those of restarts add up.
        """
        return self._off + norm * (self._moved + self._skew + self._left)

    def append(self, vectors: Tensor, products: Tensor) -> Tensor:
        """Add orthonormal rows with their (s, n) float64 products.

        Returns:
            (s, n) float64, the part of the products outside the new span.
        """
        s, old = len(vectors), self.size
        self._grow(old + s)
        self._q[old : old + s] = vectors
        self._w[old : old + s] = products
        self.size = old + s
        if self.dtype != torch.float64:
            self._off = math.hypot(self._off, self._lost(products, self._w[old : old + s]))
            self._skew = math.hypot(self._skew, self._skewness(old))
        coupling = self.space.inner(products, self.q)  # (s, m)
        rest = products.clone()
        subtract(rest, coupling.T, self.q)
        subtract(rest, self.space.inner(rest, self.q).T, self.q)
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
        """(k, n) combinations of the first rows, in their dtype, for (rows, k) coefficients."""
        return combined(coefficients, self._q[: len(coefficients)], self.dtype)

    def images(self, rows: Tensor) -> Tensor:
        """(k, n) float64 products of rows in the span, as far as they follow from those that were made."""
        return combined(self.space.inner(self.q, rows), self.w)

    def residual(self, value: float, coefficients: Tensor) -> Tensor:
        """(1, n) float64 row A v - theta v of one pair, for (rows, 1) coefficients."""
        made = combined(coefficients, self._w[: len(coefficients)])
        subtract(made, value * coefficients, self._q[: len(coefficients)])
        return made

    def residual_norms(self, values: Floats, coefficients: Tensor) -> Floats:
        """(k,) lengths of A v - theta v of the given pairs."""
        count = len(coefficients)
        scaled = coefficients * torch.from_numpy(values.copy())
        return _numbers(self.space.norms_of(coefficients, self._w[:count], (scaled, self._q[:count])))

    def outer_lengths(self, coefficients: Tensor, rest: Tensor) -> Floats:
        """(m,) residuals of all Ritz pairs, from the (s, n) part of the last products that lies outside the space."""
        return _numbers(self.space.norms_of(coefficients[-len(rest) :], rest))

    def replace(self, coefficients: Tensor, after: int = 0) -> None:
        """Replace the rows from ``after`` on by combinations of them: (m - after, k) orthonormal columns."""
        if after:
            inner_ones = coefficients
            coefficients = torch.eye(self.size, dtype=torch.float64)[:, : after + inner_ones.shape[1]]
            coefficients[after:, after:] = inner_ones
        t = coefficients.T @ self.t @ coefficients
        size = coefficients.shape[1]
        lost = [self.space.norm(replace(rows, coefficients.T.to(rows.device))) for rows in (self._q, self._w)]
        self.size = size
        self._t[:size, :size] = (t + t.T) / 2
        if self.dtype != torch.float64:
            self._moved += lost[0]
            self._off += lost[1]
            self._skew, self._left = self._skewness(0), 0.0

    def outside(self, rows: Tensor, scale: float, draw: Source, number: int) -> Tensor:
        """Up to len(rows) orthonormal rows orthogonal to the basis, from ``rows`` where they are not rounding.

        A row that (nearly) lies in the span is replaced by the random vector ``draw(number)``, which leads out of an
        invariant subspace. Fewer rows are returned when the whole space is exhausted. ``rows`` are overwritten: a copy
        would be as long as the model.
        """
        made: list[Tensor] = []
        for row in rows:
            if self.size + len(made) >= self.n:
                break
            for attempt in range(4):
                length = float(self.space.lengths(row[None]))
                if length > BREAKDOWN * scale:
                    # The rest of a product is kept down to its rounding: a part that is dropped is never seen again.
                    least = BREAKDOWN * scale / length if scale else LEAST
                    unit = self._orthogonal(row.div_(length)[None], made, least)
                    if unit is not None:
                        made.append(unit.to(self.dtype))
                        self._left = math.hypot(self._left, self._lost(unit, made[-1]))
                        break
                row, scale = draw(number + 1000 * attempt + len(made)).to(self._q.device, copy=True), 0.0
        return torch.cat(made) if made else torch.empty((0, self.space.length), dtype=self.dtype, device=self._q.device)

    def _orthogonal(self, row: Tensor, made: list[Tensor], least: float) -> Tensor | None:
        """The (1, n) unit row without its part in the span, normalised; None where no more than ``least`` is left.

        Repeated while one subtraction removes so much that the rest may not be orthogonal (twice is enough, Kahan's
        rule in Parlett 1998, section 6.9).
        """
        whole = 1.0
        for _ in range(4):
            for others in (self.q, *made):
                subtract(row, self.space.inner(others, row), others)
            left = float(self.space.lengths(row))
            whole *= left
            if whole <= least:
                return None
            row /= left
            if left > MOST:
                return row
        return row

    def _lost(self, rows: Tensor, stored: Rows) -> float:
        """The Frobenius norm of what rounding took of the rows that were stored."""
        return 0.0 if stored.dtype == torch.float64 else self.space.norm(rounded(rows, stored))

    def _skewness(self, old: int) -> float:
        """The Frobenius norm of the rows of Q Q' - I from ``old`` on, and of their columns."""
        gram = self.space.inner(self._q[old : self.size], self.q).cpu()
        gram[:, old:] -= torch.eye(self.size - old, dtype=torch.float64)
        return math.sqrt(2.0 * float(gram[:, :old].square().sum()) + float(gram[:, old:].square().sum()))

    def _grow(self, size: int) -> None:
        have = len(self._q)
        if size <= have:
            return
        room = max(size, 2 * have, FEW) if not self._limit else size + MORE
        if size <= self._limit:
            # The limit, or a half, a quarter ... of it: then the copies made in growing stay within the limit too.
            room = self._limit
            while (room + 1) // 2 >= max(size, FEW):
                room = (room + 1) // 2
        room = min(room, self.n)
        for name in ("_q", "_w"):
            old = getattr(self, name)
            new = self.space.empty(room, old.dtype, old.device)
            new[: self.size] = old[: self.size]
            setattr(self, name, new)
        t = torch.zeros((room, room), dtype=torch.float64)
        t[: self.size, : self.size] = self._t[: self.size, : self.size]
        self._t = t


def _numbers(values: Tensor) -> Floats:
    return np.asarray(values.cpu().numpy(), dtype=np.float64)
