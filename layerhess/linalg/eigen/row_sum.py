"""Eigenvalues of A = R' D R from its rows R, by LAPACK on A itself or on the Gram matrix R R', the smaller one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerhess.linalg.eigen.process import Floats, Source, Wanted, dense_eigh, graded_eigh

PIECE = 1 << 22  # numbers held in float64 in addition to the rows
SMALL = 1e-8  # of the largest: an eigenvector R' u of a smaller eigenvalue would have lost half of its digits
ROUNDING = 16.0  # times m eps, of the largest: an eigenvalue of R R' below this may be zero


@dataclass(frozen=True)
class Decomposition:
    """All eigenvalues of a symmetric matrix and some of its vectors.

    Attributes:
        values: (n,) ascending. vectors: (k, n) orthonormal rows, of the wanted pairs from the largest down.
        diagonal: (n,) of the matrix. probe: (n,) a random unit vector. image: the matrix times it.
    """

    values: Floats
    vectors: Tensor
    diagonal: Tensor
    probe: Tensor
    image: Tensor


@dataclass(frozen=True)
class RowOutline:
    """What is known of rows without them: dimension, how many were added, whether all signs are positive, dtype.

    Attributes:
        whole: they were summed up already.
    """

    n: int
    count: int
    definite: bool
    dtype: torch.dtype
    whole: bool


class RowSum:
    """R' D R, (n, n), for rows of R and signs D that are added in any portions.

    Up to n rows are held, in their own precision, and decomposed by their Gram matrix: with m < n rows, n - m
    eigenvalues are 0, exactly. From n rows on, R' D R is summed up in float64 instead and no row is held.

    1. All signs positive: R R' = U L U' has the eigenvalues, v = R' u / sqrt(l) the vectors. Both matrices are positive
       semidefinite, so what rounding puts below zero is zero.
    2. Other signs, or vectors of eigenvalues near zero, where R' u cancels: R' = Q T (Householder), T D T' = W L W' has
       the eigenvalues, and the columns of Q W are the vectors, orthonormal whatever the eigenvalues.
    3. Vectors of the n - m zeros: random ones without their parts in the rows' span.

    Eigenvalues have absolute errors of about eps ||R||^2, small ones too. Cost: m^2 n + m^3, or m n^2 + n^3.

    Args:
        n: dimension. device: where the rows are.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self.n = n
        self.count = 0
        self.definite = True
        self._device = device
        self._held: list[Tensor] = []
        self._signs: list[Tensor] = []
        self._matrix: Tensor | None = None

    def add(self, rows: Tensor, signs: Tensor) -> None:
        """Rows (m, n), in any floating dtype, and their signs (m,)."""
        self.count += len(rows)
        self.definite = self.definite and bool((signs > 0.0).all())
        self._held.append(rows)
        self._signs.append(signs.double())
        if self._matrix is None and self.count < self.n:
            return
        # Rows are added up some hundreds at a time: a product with few of them would read the whole matrix for little.
        if self._matrix is None or sum(len(part) for part in self._held) >= min(self.n, 256):
            self._flush()

    def state(self) -> dict[str, Any]:
        """What it holds, by name; :meth:`of` is the way back."""
        return {"n": self.n, "count": self.count, "definite": self.definite, "held": list(self._held),
                "signs": list(self._signs), "matrix": self._matrix}  # fmt: skip

    @classmethod
    def of(cls, state: dict[str, Any], device: torch.device) -> RowSum:
        """The sum with this :meth:`state`, on ``device``."""
        made = cls(state["n"], device)
        made.count, made.definite, matrix = state["count"], state["definite"], state["matrix"]
        made._matrix = None if matrix is None else matrix.to(device)
        made._held, made._signs = ([part.to(device) for part in state[name]] for name in ("held", "signs"))
        return made

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        matrix = 0 if self._matrix is None else 8 * self.n**2
        return matrix + sum(part.numel() * part.element_size() for part in self._held)

    @property
    def outline(self) -> RowOutline:
        """What other processes need to know of it."""
        dtype = self._held[0].dtype if self._held else torch.float64
        return RowOutline(self.n, self.count, self.definite, dtype, self._matrix is not None)

    def join(self, every: Sequence[RowOutline | None], number: int, add_up: Callable[[Tensor], Tensor]) -> None:
        """Take in the rows of all processes, in their order.

        Args:
            every: their outlines, None for one without rows. number: which of them this is. add_up: adds a float64
                tensor to the others'.
        """
        counts = [0 if one is None else one.count for one in every]
        known = [one for one in every if one is not None]
        self.count, self.definite = sum(counts), all(one.definite for one in known)
        if self.count >= self.n or any(one.whole for one in known):
            self._flush()
            assert self._matrix is not None
            self._matrix = add_up(self._matrix)
            return
        rows = torch.zeros((self.count, self.n + 1), dtype=torch.float64, device=self._device)
        start = sum(counts[:number])
        for part, signs in zip(self._held, self._signs, strict=True):
            rows[start : start + len(part), :-1] = part
            rows[start : start + len(part), -1] = signs
            start += len(part)
        rows = add_up(rows)
        self._held, self._signs = [rows[:, :-1].to(known[0].dtype)], [rows[:, -1]]

    def decompose(self, wanted: Wanted, denominator: float, draw: Source) -> Decomposition | None:
        """Decompose R' D R / denominator and drop the rows. None where a row is NaN or infinite.

        Args:
            wanted: which eigenvectors. draw: for the probe (number 0), and for vectors of a null space.
        """
        if self._matrix is not None:
            return self._wide(wanted, denominator, draw)
        empty = torch.empty((0, self.n), dtype=torch.float64, device=self._device)
        rows = torch.cat([empty, *(part.double() for part in self._held)])
        signs = torch.cat([empty[:, 0], *self._signs])
        self._held, self._signs = [], []
        return self._thin(rows, signs, wanted, denominator, draw)

    def _flush(self) -> None:
        if self._matrix is None:
            self._matrix = torch.zeros((self.n, self.n), dtype=torch.float64, device=self._device)
        step = max(1, PIECE // self.n)
        for part, signs in zip(self._held, self._signs, strict=True):
            for start in range(0, len(part), step):
                rows = part[start : start + step].double()
                self._matrix.addmm_((rows * signs[start : start + step, None]).T, rows)
        self._held, self._signs = [], []

    def _wide(self, wanted: Wanted, denominator: float, draw: Source) -> Decomposition | None:
        self._flush()
        assert self._matrix is not None
        matrix = (self._matrix + self._matrix.T) / (2.0 * denominator)
        self._matrix = None
        if not bool(torch.isfinite(matrix).all()):
            return None
        values, vectors = graded_eigh(matrix)
        values = _not_negative(values) if self.definite else values
        probe = draw(0).to(matrix)
        chosen = vectors[:, wanted.indices(values)].T.contiguous()
        return Decomposition(values, chosen, matrix.diagonal().clone(), probe, matrix @ probe)

    def _thin(
        self, rows: Tensor, signs: Tensor, wanted: Wanted, denominator: float, draw: Source
    ) -> Decomposition | None:
        gram = rows @ rows.T
        if not bool(torch.isfinite(gram).all()):
            return None
        squared, u = dense_eigh(gram)
        inside = _not_negative(squared) if self.definite else squared
        order, places = _placed(inside, self.n, wanted)
        basis: Tensor | None = None
        if not self.definite or any(i >= 0 and inside[i] <= SMALL * inside[-1] for i in places):
            basis, triangle = torch.linalg.qr(rows.T)
            inside, u = dense_eigh((triangle * signs) @ triangle.T)
            inside = _not_negative(inside) if self.definite else inside
            order, places = _placed(inside, self.n, wanted)
        chosen = u[:, [i for i in places if i >= 0]].T
        found = torch.nn.functional.normalize(chosen @ (rows if basis is None else basis.T), dim=1)
        if missing := sum(i < 0 for i in places):
            null = torch.stack([draw(1 + i).to(rows) for i in range(missing)])
            for _ in range(2):
                if basis is not None:
                    null = null - null @ basis @ basis.T
                else:
                    null = null - null @ rows.T @ _pseudo_inverse(squared, u) @ rows
            null = torch.linalg.qr(torch.cat([found, null]).T)[0].T[len(found) :]
            found = _in_order(places, found, null)
        values = np.concatenate([np.zeros(self.n - len(rows)), inside])[order] / denominator + 0.0
        probe = draw(0).to(rows)
        image = (signs * (rows @ probe)) @ rows / denominator
        return Decomposition(values, found, signs @ rows.square() / denominator, probe, image)


def _placed(inside: Floats, n: int, wanted: Wanted) -> tuple[np.ndarray, list[int]]:
    """Positions in (zeros, inside) of the n ascending eigenvalues; for the wanted ones the position in inside, or -1.

    Zeros come first among equal values, so that the bottom of a semidefinite matrix is taken from its null space.
    """
    zeros = n - len(inside)
    order = np.argsort(np.concatenate([np.zeros(zeros), inside]), kind="stable")
    ascending = np.concatenate([np.zeros(zeros), inside])[order]
    return order, [max(int(order[i]) - zeros, -1) for i in wanted.indices(ascending)]


def _not_negative(values: Floats) -> Floats:
    return np.maximum(values, 0.0)


def _pseudo_inverse(squared: Floats, u: Tensor) -> Tensor:
    """Of R R' = U L U'."""
    floor = ROUNDING * len(squared) * np.finfo(np.float64).eps * max(float(squared[-1]), 0.0) if len(squared) else 0.0
    kept = squared > floor
    inverse = np.where(kept, 1.0 / np.where(kept, squared, 1.0), 0.0)
    return (u * torch.from_numpy(inverse).to(u)) @ u.T


def _in_order(places: list[int], found: Tensor, null: Tensor) -> Tensor:
    inside, outside = iter(found), iter(null)
    return torch.stack([next(inside) if i >= 0 else next(outside) for i in places])
