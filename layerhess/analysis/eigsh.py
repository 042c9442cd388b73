"""Certified eigenpairs of a single operator: a network's matrix, a block of it, or any symmetric matrix."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerhess.analysis.paths.exact import goes_dense, search_width
from layerhess.analysis.single_operator import SingleOperator, check_operator
from layerhess.analysis.waves import waves
from layerhess.errors import InputError
from layerhess.linalg.bounds import certify
from layerhess.linalg.described import Described, Description
from layerhess.linalg.eigen.dense import Dense
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.process import Process, Wanted
from layerhess.linalg.numbers import counted, number, with_bound
from layerhess.linalg.random_vectors import oriented

ENDS = ("LA", "SA", "LM", "BE")


@dataclass(frozen=True, repr=False)
class Eigenpairs(Described):
    """Eigenpairs, in the order of ``which``.

    Attributes:
        values: (k,) float64. vectors: (k, n) float64 tensor, unit rows, largest component positive.
        error_bounds: (k,) absolute: residual plus rounding. converged: (k,) bool.
        complete: the whole spectrum was computed. products: operator products spent.
        status: "converged", "complete", "not converged" or "not excluded", and whether the operator was unchecked.
        rounding: the part of ``error_bounds`` that is rounding; measured for a network, estimated for other operators.
        missed_above, missed_below: no further eigenvalue beyond the k given, copies included, lies above or below, each
            except with a probability of 1 % (0 where complete).
    """

    values: np.ndarray[Any, np.dtype[np.float64]]
    vectors: Tensor
    error_bounds: np.ndarray[Any, np.dtype[np.float64]]
    converged: np.ndarray[Any, np.dtype[np.bool_]]
    complete: bool
    products: int
    rounding: float
    status: str
    missed_above: float = math.inf
    missed_below: float = -math.inf

    def _describe(self) -> Description:
        n = self.vectors.shape[-1] if self.vectors.ndim else 0
        rows = tuple(
            (with_bound(float(value), float(bound)), "yes" if done else "NO")
            for value, bound, done in zip(self.values, self.error_bounds, self.converged, strict=True)
        )
        word = self.status.split(";")[0]
        alarm = word.upper() if word.startswith("not") or not bool(np.all(self.converged)) else ""
        missed = f"beyond these none above {number(self.missed_above)} and none below {number(self.missed_below)}"
        return Description(
            f"{counted(len(rows), 'eigenpair')} of a matrix of dimension {n}",
            (
                ", ".join(value for value, _ in rows[:3]) + (" ..." if len(rows) > 3 else ""),
                f"{counted(self.products, 'product')}, status: {self.status}",
                "nothing can have been missed" if self.complete else missed,
                ".values, .error_bounds, .vectors, .converged",
            ),
            alarm,
            ("eigenvalue", "converged"),
            rows,
        )


def eigsh(
    op: Any,
    k: int = 1,
    which: str = "LA",
    tol: float = 1e-3,
    max_passes: int = 500,
    seed: int = 0,
    *,
    exclude: float | None = 0.05,
) -> Eigenpairs:
    """k eigenpairs of a symmetric operator.

    Args:
        op: :class:`layerhess.Hessian`, :class:`layerhess.GaussNewton` or :class:`layerhess.EmpiricalFisher`, one of
            their blocks, or anything with ``shape`` and ``matvec`` (a SciPy
            LinearOperator; a NumPy array works too).
        k: how many. which: "LA" largest, "SA" smallest algebraic, "LM" largest modulus, "BE" both ends (one more at
            the top for odd k; top first, then the smallest).
        tol, exclude: see :func:`layerhess.analyze`. max_passes: products with one (block of) vector(s) at most; it
            ends after n products too.
        seed: start.

    Returns:
        :class:`Eigenpairs`; ``converged`` is False for pairs that max_passes left open.

    Raises:
        InputError: bad k, which, tol or operator; network's data that cannot be used.
        CheckError: the self-check of a network's operator failed.

    >>> import numpy as np, layerhess as lh
    >>> pairs = lh.eigsh(np.diag([1.0, 5.0, -7.0]), k=2, which="LM")
    >>> [round(float(value), 9) for value in pairs.values]
    [-7.0, 5.0]
    """
    n = _check(op, k, which, tol, max_passes, exclude)
    wanted = {
        "LA": Wanted(top=k),
        "SA": Wanted(bottom=k),
        "LM": Wanted(magnitude=k),
        "BE": Wanted(top=k - k // 2, bottom=k // 2),
    }[which]
    with ExitStack() as stack:
        single = SingleOperator(op, n, seed, stack)
        width = search_width(wanted)
        held = waves({"op": n}, wanted, single.memory, single.dtype, exclude=exclude, width=width).held
        process: Process = (
            Dense(n, wanted, single.device)
            if goes_dense(n, wanted)
            else Lanczos(
                n,
                wanted,
                tol,
                single.directions,
                device=single.device,
                dtype=held["op"].dtype,
                width=width,
                exclude=exclude,
                basis_limit=held["op"].rows,
                space=single.space,
            )
        )
        rounding: float | None = None
        # A dense matrix gives no result before its last column: it is always finished.
        for _ in range(max(max_passes, n) if isinstance(process, Dense) else max_passes):
            process.tell(single.apply(process.ask()))
            noisy = getattr(process, "relative_residual", 1.0) <= 2000.0 * single.eps
            if rounding is None and (process.proposes or noisy):
                rounding = process.rounding = single.rounding(process)
            spent = isinstance(process, Lanczos) and process.steps + len(process.ask()) > n
            if process.proposes or spent:
                break
        candidates = process.candidates()
        rounding = single.rounding(process) if rounding is None else rounding
        certificate = certify(candidates, tol=tol, rounding=rounding, exclude=exclude)
    complete, converged = candidates.spectrum is not None, certificate.converged
    finished = process.proposes and bool(converged.all())
    left_open = process.proposes and bool(np.all(converged | certificate.within))
    status = ("complete" if complete else "converged") if finished else "not excluded" if left_open else "not converged"
    order = _order(candidates.values, which, wanted)
    return Eigenpairs(
        values=candidates.values[order],
        vectors=torch.stack([oriented(candidates.vectors[i]) for i in order]).double(),
        error_bounds=certificate.error_bounds[order],
        converged=converged[order],
        complete=complete,
        products=candidates.steps,
        rounding=rounding,
        status=single.said(status),
        missed_above=certificate.missed_above,
        missed_below=certificate.missed_below,
    )


def _check(op: Any, k: int, which: str, tol: float, max_passes: int, exclude: float | None) -> int:
    n = check_operator(op)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n:
        raise InputError(f"k is {k!r} for an operator of dimension {n}", where="k", what_to_do=f"use 1 <= k <= {n}")
    if which not in ENDS:
        raise InputError(f"unknown which {which!r}", where="which", what_to_do="use 'LA', 'SA', 'LM' or 'BE'")
    if not (isinstance(tol, (int, float)) and 0.0 < tol < 1.0):
        raise InputError(f"tol is {tol!r}", where="tol", what_to_do="use a number between 0 and 1, such as 1e-3")
    if exclude is not None and not (isinstance(exclude, (int, float)) and 0.0 < exclude < math.inf):
        raise InputError(f"exclude is {exclude!r}", where="exclude", what_to_do="use a number above 0, or None")
    if not isinstance(max_passes, int) or max_passes < 1:
        raise InputError(f"max_passes is {max_passes!r}", where="max_passes", what_to_do="use an integer >= 1")
    return n


def _order(values: Any, which: str, wanted: Wanted) -> list[int]:
    indices = list(range(len(values)))
    if which == "SA":
        return indices[::-1]
    if which == "LM":
        return sorted(indices, key=lambda i: -abs(values[i]))
    if which == "BE":
        top = indices[: wanted.top]
        return top + indices[wanted.top :][::-1]
    return indices
