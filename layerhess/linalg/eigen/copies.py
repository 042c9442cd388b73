"""Copies of an eigenvalue: which pairs found beside others belong among the wanted, and what a search could not see."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from layerhess.linalg.eigen.process import Beside, Floats, Wanted


def crowded(found: Floats, allowed: Floats, wanted: Wanted, width: int) -> bool:
    """Do as many wanted values agree as a search from ``width`` vectors can see copies?

    Args:
        found: (k,) the wanted values, descending. allowed: (k,) their tolerances.
    """
    ends = [slice(0, wanted.top), slice(wanted.top, len(found))]
    return any(
        bool(np.any(values[: 1 - width] - values[width - 1 :] <= 2.0 * slack[width - 1 :]))
        for values, slack in ((found[end], allowed[end]) for end in ends)
        if len(values) >= width
    )


def ends_looked_at(values: Floats, wanted: Wanted, looked_at: tuple[bool, bool]) -> list[int]:
    """Positions of the extreme Ritz values that a search for more pairs waits for: top and bottom, or the largest."""
    if wanted.magnitude:
        return [int(np.abs(values).argmax())]
    return [end for end, looked in zip((len(values) - 1, 0), looked_at, strict=True) if looked]


def belonging(values: Floats, locked: Floats, lengths: Floats, wanted: Wanted, slack: float) -> NDArray[np.bool_]:
    """(m,) bool: which Ritz values outside of the locked ones belong among the wanted.

    Args:
        values: (m,) ascending. locked: (l,) ascending, at least as many as are wanted. lengths: (l,) of their
            residuals. slack: values closer than this and half a residual cannot be told apart.
    """
    keep = wanted.indices(locked)
    slack += 0.5 * float(lengths[keep].max())
    belongs = np.zeros(len(values), dtype=bool)
    if wanted.magnitude:
        belongs |= np.abs(values) > np.abs(locked[keep]).min() + slack
    if wanted.top:
        belongs |= values > locked[keep[wanted.top - 1]] + slack
    if wanted.bottom:
        belongs |= values < locked[keep[wanted.top]] - slack
    return belongs


def beside(kept: Floats, lengths: Floats, wanted: Wanted) -> Beside:
    """What is kept out of a search beside the wanted pairs of each end; see :class:`Search`.

    Args:
        kept: (l,) ascending. lengths: (l,) of their residuals.
    """
    both = np.zeros(len(kept), dtype=bool)
    if wanted.magnitude:
        both[wanted.indices(kept)] = True
    up, down = both.copy(), both.copy()
    up[Wanted(top=wanted.top).indices(kept)] = True
    down[Wanted(bottom=wanted.bottom).indices(kept)] = True
    return (
        (float(kept[~up].max(initial=-np.inf)), float(np.linalg.norm(lengths[~up]))),
        (float(kept[~down].min(initial=np.inf)), float(np.linalg.norm(lengths[~down]))),
    )


def other_end_is_smaller(values: Floats, lengths: Floats, found: Floats, allowed: Floats, wanted: Wanted) -> bool:
    """For the largest in modulus: can neither end of the spectrum still grow past what was found?

    Args:
        values: (m,) ascending Ritz values. lengths: (m,) of their residuals. allowed: (m,) their tolerances.
        found: the pairs known.
    """
    if not wanted.magnitude:
        return True
    smallest = np.sort(np.abs(found))[-min(wanted.magnitude, len(found))]
    growing = [end for end in (0, len(values) - 1) if lengths[end] > allowed[end]]
    return all(abs(values[end]) + lengths[end] <= smallest for end in growing)
