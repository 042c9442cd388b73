"""How strongly parameter blocks interact: Frobenius norms of all H_bc, from products with whole columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincinv, stdtrit

from layerhess.errors import InputError, checked_integer
from layerhess.linalg.estimates import CouplingEstimate, Floats

RARE = 1e-5  # how often a number may be further off than
FAR = 6.0  # of its errors
FEW = 1e-12  # of a mean: a smaller variance is rounding


@dataclass(frozen=True)
class Coupling:
    """How accurate the couplings should be.

    Args:
        probes: random vectors for each block, each one product; 2 or more, since one has no error.

    Raises:
        InputError: fewer than two.
    """

    probes: int = 8

    def __post_init__(self) -> None:
        checked_integer(self.probes, "probes", 2)


class CouplingSamples:
    """Accumulates ||H_cb v_b||^2 for random v_b; its mean is ||H_cb||_F^2 where E[v_b v_b'] = I.

    H_cb and H_bc = H_cb' have the same norm, so that v_b and v_c give samples of the same number, independent of each
    other. Their plain mean is taken: weights from the measured variances would favour the side that happens to be
    small, because the variance of a squared norm grows with its mean, and that biases the result down. A block with no
    more dimensions than probes is read with its unit vectors instead: its columns are exact, and only they are used.

    The errors are those of few samples. With M = H_cb' H_cb a sample has the variance 2 (||M||_F^2 - sum_k M_kk^2) for
    random signs in an orthonormal basis k. Where one direction carries M, all of a few vectors may have little of it;
    their samples are then small and alike, and their own variance says nothing. So it is taken from pairs as well:
    (v_i' M v_j)^2 has the mean ||M||_F^2, and e_i e_j v_i' M v_j, e the sign of a known direction k, the mean M_kk. The
    larger of both counts. For a sum of d equal squares, d = 2 mean^2 / variance, six errors reach the mean that a
    chi-square variable of d degrees of freedom exceeds but with probability :data:`RARE`, and what Student's t does.

    Cost: one whole column product a probe (about one full Hessian-vector product).

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
        self._samples: list[list[Floats]] = [[] for _ in sizes]
        self._constant: list[Floats] = [np.zeros(len(sizes)) for _ in sizes]  # the part of the samples that is known
        self._pairs: list[Floats] = [np.zeros(len(sizes)) for _ in sizes]  # sums of (v_i' M v_j)^2
        self._along: list[Floats | None] = [None for _ in sizes]  # (B, k) sums of e_i e_j v_i' M v_j; None: no signs
        self._paired = [0 for _ in sizes]
        self._sums: list[Floats] = [np.zeros(len(sizes)) for _ in sizes]
        self._columns = [0 for _ in sizes]  # unit vectors read, of each block

    def add(self, block: int, squares: Sequence[float]) -> None:
        """One random probe of a block: (B,) squared norms ||H_cb v_b||^2 over all blocks c."""
        self._samples[block].append(self._checked(squares))

    def add_together(
        self, block: int, grams: Floats, signs: Floats | None = None, constant: Sequence[float] | None = None
    ) -> None:
        """Some random probes of a block, with the inner products of their columns.

        Args:
            grams: (B, s, s), v_i' H_cb' H_cb v_j over all blocks c; of what is left to chance, where ``constant`` is
                not 0. signs: (s, k), their signs along the same k directions at each call, if they were drawn so.
            constant: (B,) what is known of ||H_cb||_F^2.
        """
        known = np.zeros(len(self.sizes)) if constant is None else np.asarray(constant, dtype=np.float64)
        count = grams.shape[1]
        for row in np.einsum("bii->ib", grams):
            self.add(block, known + row)
        off = grams * (1.0 - np.eye(count))
        self._constant[block] = known
        self._pairs[block] = self._pairs[block] + (off**2).sum(axis=(1, 2))
        along = np.zeros((len(self.sizes), 0)) if signs is None else np.einsum("ik,bij,jk->bk", signs, off, signs)
        before = self._along[block] if self._paired[block] else np.zeros_like(along)
        self._along[block] = None if before is None or before.shape != along.shape else before + along
        self._paired[block] += count * (count - 1)

    def add_exact(self, block: int, squares: Sequence[float], columns: int = 1) -> None:
        """Squared norms (B,) of ``columns`` columns of a block, summed; exact once all of the block's were added."""
        self._sums[block] = self._sums[block] + self._checked(squares)
        self._columns[block] += columns

    def result(self, names: Sequence[str]) -> CouplingEstimate:
        """The table so far; NaN where no column was made."""
        count = len(self.sizes)
        mean, variance = np.full((2, count, count), np.nan)
        for b in range(count):  # column b: from the products H v_b
            if self._exact(b):
                mean[:, b], variance[:, b] = self._sums[b], 0.0
            elif self._samples[b]:
                rows = np.array(self._samples[b])
                mean[:, b] = rows.mean(axis=0)
                variance[:, b] = self._variance(b, rows)
        square, spread, known, freedom = self._symmetrised(mean, variance)
        value, error = np.sqrt(square), _errors(square, spread, known, freedom)
        share, share_error = self._share(mean)
        random = [len(self._samples[b]) for b in range(count) if not self._exact(b)]
        return CouplingEstimate(
            blocks=tuple(names),
            value=value,
            standard_error=error,
            off_diagonal_share=share,
            share_error=share_error,
            probes=min(random, default=0),
            status=_sentence(share, share_error, random, count),
        )

    def _checked(self, squares: Sequence[float]) -> Floats:
        values = np.asarray(squares, dtype=np.float64)
        if values.shape != (len(self.sizes),) or not bool(np.all(values >= 0.0)):
            raise InputError(
                "the squared norms of a column are not one number >= 0 for each block",
                where=f"shape {values.shape}, {len(self.sizes)} blocks",
                what_to_do="give ||H_cb v_b||^2 for every block c, in the order of the sizes",
            )
        return values

    def _exact(self, block: int) -> bool:
        return self._columns[block] == self.sizes[block] > 0

    def _variance(self, block: int, rows: Floats) -> Floats:
        """(B,) of the mean of the block's samples (s, B): by their spread, or by pairs where that is larger."""
        count = len(rows)
        if count < 2:
            return np.full(len(self.sizes), np.inf)
        spread: Floats = rows.var(axis=0, ddof=1) / count
        if self._paired[block]:
            along = self._along[block]
            diagonal = 0.0 if along is None else (np.maximum(along / self._paired[block], 0.0) ** 2).sum(axis=1)
            by_pairs = np.maximum(self._pairs[block] / self._paired[block] - diagonal, 0.0)
            spread = np.maximum(spread, 2.0 * by_pairs / count)
        return spread

    def _symmetrised(self, mean: Floats, variance: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Squared norms, their variances, known parts and degrees of freedom (B, B), from the two sides of each pair.

        The exact side where there is one, the only side where the other is missing, else the mean of both. The degrees
        of freedom of a sum of variances are Welch's (1947).
        """
        count = len(self.sizes)
        square, spread, known = mean.copy(), variance.copy(), np.array(self._constant).T.copy()
        freedom = np.array([[max(len(self._samples[b]) - 1, 1) for b in range(count)] for _ in range(count)], float)
        for b in range(count):
            for c in range(b):
                # Side k is block k's own column: H_ck v_k or H_bk v_k, whichever is off the diagonal.
                sides = [(k, b + c - k) for k in (b, c)]
                used = [s for s in sides if self._exact(s[0])][:1] or [s for s in sides if self._samples[s[0]]]
                total = len(used)
                parts = [variance[o, k] / total**2 for k, o in used]
                square[b, c] = square[c, b] = sum(mean[o, k] for k, o in used) / total if total else math.nan
                spread[b, c] = spread[c, b] = sum(parts) if total else math.nan
                known[b, c] = known[c, b] = 0.0
                squares = sum(part**2 / freedom[o, k] for part, (k, o) in zip(parts, used, strict=True))
                freedom[b, c] = freedom[c, b] = sum(parts) ** 2 / squares if 0.0 < squares < math.inf else 1.0
        return square, spread, known, freedom

    def _share(self, mean: Floats) -> tuple[float, float]:
        """1 - sum_b ||H_bb||_F^2 / ||H||_F^2, and its standard error by the jackknife.

        One probe gives its block's whole column, so numerator and denominator come from the same vectors and are
        correlated: leaving out one probe at a time accounts for that. Blocks' probes are independent, so that the
        jackknife's variances of the blocks add up (Efron & Tibshirani 1993, chapter 11).
        """
        columns, diagonal = mean.sum(axis=0), np.diag(mean)
        total, inside = float(columns.sum()), float(diagonal.sum())
        if math.isnan(total):
            return math.nan, math.nan
        if total == 0.0:
            return 0.0, 0.0
        share, variance = 1.0 - inside / total, 0.0
        few = min((len(samples) for b, samples in enumerate(self._samples) if not self._exact(b)), default=0)
        for b, samples in enumerate(self._samples):
            if self._exact(b):
                continue
            if len(samples) < 2:
                return share, math.inf
            rows = np.array(samples)
            count = len(rows)
            without = (rows.sum(axis=0) - rows) / (count - 1)
            totals = total - columns[b] + without.sum(axis=1)
            shares = 1.0 - (inside - diagonal[b] + without[:, b]) / np.maximum(totals, np.finfo(np.float64).tiny)
            variance += (count - 1) / count * float(((shares - shares.mean()) ** 2).sum())
        return max(share, 0.0), math.sqrt(variance) * float(_student(np.array(max(few - 1.0, 1.0))))


def _student(freedom: Floats) -> Floats:
    """By how much errors grow so that six of them reach what Student's t exceeds with probability RARE; 1 or more."""
    wide: Floats = np.maximum(stdtrit(freedom, 1.0 - RARE / 2.0) / FAR, 1.0)
    return wide


def _errors(square: Floats, spread: Floats, known: Floats, freedom: Floats) -> Floats:
    """The errors of square roots of means, see :class:`CouplingSamples`."""
    value, random = np.sqrt(square), np.maximum(square - known, 0.0)
    spread = np.where(spread <= (FEW * square) ** 2, 0.0, spread)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        plain = np.where(value > 0.0, np.sqrt(spread) / (2.0 * value), np.sqrt(np.sqrt(spread)))
        half = random**2 / spread  # of the degrees of freedom
        largest = np.sqrt(known + random * half / gammaincinv(half, RARE))
        few = np.where((spread > 0.0) & (random > 0.0), (largest - value) / FAR, 0.0)
        error: Floats = np.where(np.isfinite(spread), np.fmax(plain * _student(freedom), few), plain)
    return error


def exact_coupling(names: Sequence[str], sizes: Sequence[int], matrix: Floats) -> CouplingEstimate:
    """The table of a matrix that is known, (sum(sizes), sum(sizes)); no standard errors.

    Raises:
        InputError: the matrix has another shape.
    """
    if matrix.shape != (sum(sizes), sum(sizes)):
        raise InputError(
            f"the matrix has shape {matrix.shape}, and the blocks have {sum(sizes)} parameters together",
            where="matrix",
            what_to_do="give the dense matrix of exactly these blocks, in their order",
        )
    edges = np.cumsum([0, *sizes])
    samples = CouplingSamples(sizes)
    for b, size in enumerate(sizes):
        columns = matrix[:, edges[b] : edges[b + 1]]
        parts = [columns[edges[c] : edges[c + 1]] for c in range(len(sizes))]
        samples.add_exact(b, [float((part**2).sum()) for part in parts], columns=size)
    return samples.result(names)


def _sentence(share: float, error: float, random: list[int], blocks: int) -> str:
    if not random:
        how = "every column was read"
    elif len(random) == blocks:
        how = f"{min(random)} random vectors a block"
    else:
        how = f"{min(random)} random vectors a block; {blocks - len(random)} small ones were read whole"
    if math.isnan(share):
        return f"not all columns were made ({how})"
    if blocks == 1:
        return f"a single block, which has nothing to couple with ({how})"
    return (
        f"among these blocks, {100 * share:.2g} % of ||A||_F^2 lies off the block diagonal (standard error "
        f"{100 * error:.2g} %; {how})"
    )
