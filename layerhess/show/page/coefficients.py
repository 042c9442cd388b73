"""How strongly two blocks bend together: the coupling coefficient, and the picture of all pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerhess.linalg.estimates import CouplingEstimate, Floats

LEVELS = 20  # shades
NAMED = 60  # blocks up to which each has its name beside its row
DRAWN = 300  # blocks up to which pairs are drawn at all: beyond it a page of megabytes shows nothing an eye can tell


def coefficients(found: CouplingEstimate) -> Floats:
    """(B, B): ||A_bc||_F / sqrt(||A_bb||_F ||A_cc||_F), NaN where a block is zero.

    >>> import numpy as np
    >>> made = CouplingEstimate(("a", "b"), np.array([[4.0, 3.0], [3.0, 9.0]]), np.zeros((2, 2)), 0.2, 0.0, 0, "exact")
    >>> coefficients(made).round(3).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    own = np.sqrt(np.where(np.diag(found.value) > 0.0, np.diag(found.value), np.nan))
    with np.errstate(invalid="ignore"):
        return np.asarray(found.value / np.outer(own, own))


@dataclass(frozen=True)
class Triangle:
    """The lower triangle of all pairs, in unit squares.

    Attributes:
        blocks: names in model order. named: they stand beside their rows.
        shades: (opacity, path): the cells that have that shade, as an SVG path.
        crosses: for each block the path of its row and column.
        values: the coefficients row by row, in hundredths, for the pointer; -1 where unknown.
        most: the coefficient of the darkest shade, 1 or more: above 1 where the matrix is indefinite.
    """

    blocks: Sequence[str]
    named: bool
    shades: list[tuple[float, str]]
    crosses: list[str]
    values: list[int]
    size: int
    most: float


def triangle(found: CouplingEstimate) -> Triangle | None:
    """The picture of a coupling; None for fewer than two blocks, or for too many."""
    size = len(found.blocks)
    if not 2 <= size <= DRAWN:
        return None
    values = coefficients(found)
    most = max(1.0, float(np.max(values[np.isfinite(values)], initial=1.0)))
    cells: dict[int, list[str]] = {}
    flat: list[int] = []
    for row in range(size):
        for column in range(row + 1):
            value = float(values[row, column])
            flat.append(round(100.0 * value) if math.isfinite(value) else -1)
            if math.isfinite(value):
                level = min(LEVELS, math.ceil(LEVELS * value / most - 1e-9))
                cells.setdefault(level, []).append(f"M{column} {row}h1v1h-1z")
    shades = [(level / LEVELS, "".join(parts)) for level, parts in sorted(cells.items()) if level > 0]
    crosses = [f"M0 {b}h{b + 1}v{size - b}h-1v{b + 1 - size}h-{b}z" for b in range(size)]
    return Triangle(found.blocks, size <= NAMED, shades, crosses, flat, size, most)
