"""How strongly blocks interact: Frobenius norms of all H_bc from whole columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerhess.errors import checked_integer
from layerhess.estimates import CouplingEstimate, Floats


@dataclass(frozen=True)
class Coupling:
    """How well couplings are wanted.

    Args:
        probes: random vectors for each block, each one product; 2 or more, since one has no error.

    Raises:
        InputError: fewer than two.
    """

    probes: int = 16

    def __post_init__(self) -> None:
        checked_integer(self.probes, "probes", 2)


class CouplingSamples:
    """Accumulates ||H_cb v_b||^2 for Rademacher v_b; its mean is ||H_cb||_F^2, since E[v_b v_b'] = I.

    H_cb and H_bc = H_cb' have the same norm, so that v_b and v_c are samples of the same number, independent of each
    other. Their means are averaged: weights taken from the variances would depend on the samples, and favour whichever
    happened to be small. A block of no more dimensions than probes is read with unit vectors instead: its columns are
    exact, and stand alone.

    Args:
        sizes: numbers of parameters of the blocks.

    >>> samples = CouplingSamples([1, 1])
    >>> samples.add_exact(0, [4.0, 9.0])         # H = [[2, 3], [3, 1]]
    >>> samples.add_exact(1, [9.0, 1.0])
    >>> found = samples.result(["a", "b"])
    >>> found.value.tolist(), round(found.off_diagonal_share, 6)         # 18 of 23
    ([[2.0, 3.0], [3.0, 1.0]], 0.782609)
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self._squares: list[list[Sequence[float]]] = [[] for _ in sizes]
        self._exact: dict[int, list[float]] = {}

    def add(self, block: int, squares: Sequence[float]) -> None:
        """One probe of a block: (B,) squared norms ||H_cb v_b||^2 over all blocks c."""
        self._squares[block].append(list(squares))

    def add_exact(self, block: int, squares: Sequence[float]) -> None:
        """Squared norms of the columns of some of the block's unit vectors, summed; add up to ||H_cb||_F^2."""
        before = self._exact.get(block, [0.0] * len(self.sizes))
        self._exact[block] = [a + b for a, b in zip(before, squares, strict=True)]

    def result(self, names: Sequence[str]) -> CouplingEstimate:
        """The table so far; NaN where no column was made."""
        blocks = len(self.sizes)
        mean, variance = np.full((blocks, blocks), np.nan), np.full((blocks, blocks), np.nan)
        for b in range(blocks):
            if b in self._exact:
                mean[:, b], variance[:, b] = self._exact[b], 0.0
            elif self._squares[b]:
                samples = np.array(self._squares[b])
                mean[:, b] = samples.mean(axis=0)
                variance[:, b] = samples.var(axis=0, ddof=1) / len(samples) if len(samples) > 1 else np.inf
        square, error = self._symmetrised(mean, variance)
        value = np.sqrt(np.maximum(square, 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            of_norm = np.where(value > 0.0, np.sqrt(error) / (2.0 * value), np.sqrt(np.sqrt(error)))
        share, share_error = self._share(mean)
        probes = min((len(s) for i, s in enumerate(self._squares) if i not in self._exact), default=0)
        counted = "every column was read" if not probes else f"{probes} random vectors a block"
        return CouplingEstimate(
            tuple(names), value, of_norm, share, share_error, probes, f"{_trust(share, share_error)} ({counted})"
        )

    def _symmetrised(self, mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
        """Squared norms and their variances: an exact column stands alone, two sampled ones are averaged."""
        square, error = (mean + mean.T) / 2, (variance + variance.T) / 4
        for b in self._exact:
            square[:, b] = square[b, :] = mean[:, b]
            error[:, b] = error[b, :] = 0.0
        for b in self._exact:  # two exact columns agree; a sampled one must not overwrite them
            for c in self._exact:
                square[b, c] = square[c, b] = mean[b, c]
        off = ~np.eye(len(self.sizes), dtype=bool)
        error[~off] = np.diag(variance)
        return square, error

    def _share(self, mean: Floats) -> tuple[float, float]:
        """1 - sum_b ||H_bb||_F^2 / ||H||_F^2, and its standard error by the jackknife over each block's probes."""
        columns, diagonal = mean.sum(axis=0), np.diag(mean)
        total = float(columns.sum())
        if not total > 0.0:
            return (0.0, 0.0) if total == 0.0 else (math.nan, math.nan)
        share = 1.0 - float(diagonal.sum()) / total
        variance = 0.0
        for b, rows in enumerate(self._squares):
            if b in self._exact:
                continue
            if len(rows) < 2:
                return share, math.inf
            samples = np.array(rows)
            count = len(samples)
            without = (samples.sum(axis=0) - samples) / (count - 1)
            totals = total - columns[b] + without.sum(axis=1)
            blocks = float(diagonal.sum()) - diagonal[b] + without[:, b]
            shares = 1.0 - blocks / totals
            variance += (count - 1) / count * float(((shares - shares.mean()) ** 2).sum())
        return share, math.sqrt(variance)


def exact_coupling(names: Sequence[str], sizes: Sequence[int], matrix: Floats) -> CouplingEstimate:
    """The table of a matrix that is known, (sum(sizes), sum(sizes))."""
    edges = np.cumsum([0, *sizes])
    samples = CouplingSamples(sizes)
    for b in range(len(sizes)):
        column = matrix[:, edges[b] : edges[b + 1]]
        samples.add_exact(b, [float((column[edges[c] : edges[c + 1]] ** 2).sum()) for c in range(len(sizes))])
    return samples.result(names)


def _trust(share: float, error: float) -> str:
    if math.isnan(share):
        return "not all columns were made"
    return f"{100 * share:.2g} % of ||H||_F^2 lies off the block diagonal (standard error {100 * error:.2g} %)"
