"""Predicts the cost of each way to a block's eigenvalues from counts, in float32 multiplications.

A model of one processor: every operation takes the longer of its arithmetic and its memory traffic, plus a fixed time
to start. It need not be right in seconds; it must tell a factor of two between ways to the same numbers.
"""

from __future__ import annotations

import math

from layerhess.analysis.paths.exact import expected_products, goes_dense
from layerhess.curvature.factors.work import Work
from layerhess.linalg.eigen.dense import CHUNK
from layerhess.linalg.eigen.process import Wanted

GRAM, FACTORS, EXACT = "gram", "lanczos on factors", "exact"

TRAFFIC = 2.0  # multiplications in the time a byte takes to or from memory
START = 4e5  # multiplications in the time an operation takes to begin
DOUBLE = 2.0  # a float64 multiplication
EIGH = 4.0  # times n^3 float64 multiplications: LAPACK's decomposition, with vectors
EXACT_SHARE = 3.5  # an exact block product over the evaluation of all layers
SLOW_ROWS = 2.0  # separate gradients of all items run at half the speed of their sum
TOL = 1e-3  # for which the number of Lanczos steps is predicted
MARGIN = 1.5  # by which the Gram matrix must be cheaper than Lanczos: forecasts of Lanczos steps are no better


def predicted(numel: int, work: Work, wanted: Wanted, itemsize: int, tol: float = TOL) -> dict[str, float]:
    """The cost of each way for one block: "gram", "lanczos on factors" and "exact" (Lanczos on exact products).

    In the latter two ways small blocks are read whole, see :func:`layerhess.analysis.paths.exact.goes_dense`.

    Args:
        numel: P_b. work: over all the data. wanted: eigenpairs. itemsize: bytes of a number of the model.
        tol: of the pairs; Lanczos takes steps for every digit of it.

    >>> work = Work(items=32, directions=9, multiplications=32 * 10**6, outputs=32 * 16_000, network=32 * 10**8,
    ...             entries=1, has_rows=True)
    >>> few, many = (predicted(2304, work, wanted, 4) for wanted in (Wanted(top=1), Wanted(top=10, bottom=3)))
    >>> few["gram"] < few["exact"], many["gram"] < many["lanczos on factors"]
    (True, True)
    """
    steps = expected_products(numel, wanted)
    if tol < TOL and not goes_dense(numel, wanted):
        steps = min(numel, math.ceil(steps * math.log(tol) / math.log(TOL)))
    together = CHUNK if goes_dense(numel, wanted) else 1
    solver = EIGH * DOUBLE * numel**3 if goes_dense(numel, wanted) else lanczos(numel, steps)
    return {
        GRAM: gram(numel, work, wanted, itemsize),
        FACTORS: steps * product(work, itemsize, together) + solver,
        EXACT: steps * (EXACT_SHARE * work.network + 40.0 * START) + solver,
    }


def is_cheaper(numel: int, work: Work, wanted: Wanted, itemsize: int, tol: float = TOL) -> bool:
    """Whether the Gram matrix is clearly the cheapest way."""
    costs = predicted(numel, work, wanted, itemsize, tol)
    return work.has_rows and MARGIN * costs[GRAM] <= min(costs[FACTORS], costs[EXACT])


def product(work: Work, itemsize: int, together: int = 1) -> float:
    """One product by factors: the layers evaluated, two products with the sensitivities, the weights' gradient."""
    sensitivities = work.outputs * work.directions
    arithmetic = 2.0 * work.multiplications + 2.0 * sensitivities
    traffic = TRAFFIC * itemsize * (2.0 * sensitivities / together + 6.0 * work.outputs)
    return max(arithmetic, traffic) + 8.0 * work.entries * START / together


def lanczos(numel: int, steps: int) -> float:
    """Full orthogonalisation, twice, and moving the basis and its products in memory."""
    return steps * (TRAFFIC * 8.0 * 2.0 * steps * numel + 20.0 * START)


def gram(numel: int, work: Work, wanted: Wanted, itemsize: int) -> float:
    """Rows, their Gram matrix on the smaller side, LAPACK, the wanted vectors and their products."""
    rows, made = work.rows, work.directions * work.items * numel
    arithmetic = SLOW_ROWS * work.directions * work.multiplications
    # Inputs are read for every direction, patches of them written; rows are written, and read once more.
    traffic = TRAFFIC * itemsize * (4.0 * made + 3.0 * work.outputs * work.directions)
    cost = max(arithmetic, traffic) + 4.0 * work.entries * work.directions * START
    side = min(rows, numel)
    cost += DOUBLE * float(rows) * numel * side + EIGH * DOUBLE * float(side) ** 3 + 20.0 * START
    vectors = min(wanted.total, numel)
    if rows < numel:
        cost += DOUBLE * 2.0 * vectors * rows * numel
    return cost + (vectors + 1) * product(work, itemsize, together=min(vectors + 1, 16))


def gram_bytes(numel: int, rows: int, wanted: Wanted, itemsize: int) -> int:
    """The most bytes held at a time: rows with an orthonormal basis of their span, or a matrix with its vectors."""
    vectors = 8 * numel * 3 * (wanted.total + 1)
    if rows < numel:
        return vectors + rows * numel * (itemsize + 3 * 8) + 4 * 8 * rows**2
    return vectors + numel**2 * (itemsize + 5 * 8)
