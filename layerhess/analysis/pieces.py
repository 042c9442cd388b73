"""How many examples the survey and the self-check take at a time, so that they stay in a budget that was asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

from layerhess.analysis.microbatches import GRAPH, saved_bytes
from layerhess.checks.loss import check_additivity
from layerhess.checks.survey import Survey
from layerhess.curvature.device import PIECE_SHARE, Budget
from layerhess.curvature.live_bytes import LiveBytes
from layerhess.objective import batches
from layerhess.objective.objective import Objective


def within_budget(objective: Objective, memory: Budget) -> tuple[Objective, str]:
    """The objective in pieces of batches of which a forward pass fits a budget that was asked for (in session).

    Bytes are counted for one and for two examples of the largest batch of a list, or else of the first one. Batches
    that must not be cut stay whole.

    Returns:
        It, and a sentence where batches are cut, or "".
    """
    if memory.limit is None:
        return objective, ""
    group, most = objective.group, PIECE_SHARE * memory.limit
    fits = [size for size in group.gathered(group.tried(lambda: _forward_pieces(objective, most))) if size]
    if not fits:
        return objective, ""
    said = f"memory: batches are cut into pieces of {min(fits)} examples, of which a forward pass stays in the budget"
    return objective.resized(min(fits)), said


def _forward_pieces(objective: Objective, most: float) -> int:
    """How many examples of that batch take so many bytes in a forward pass; 0 where it need not be cut."""
    of_list = isinstance(objective.data, list)  # whose batches are at hand
    looked_at = objective.batches() if of_list else itertools.islice(objective.batches(), 1)
    batch = max(looked_at, key=lambda one: batches.leading_size(one) or 0, default=None)
    size = batches.leading_size(batch) or 0
    if size < 2 or objective.tied_norms:
        return 0

    def nbytes(part: Any) -> float:
        part = batches.alone(part)
        with LiveBytes(objective.model.parameters()) as live, torch.no_grad():
            objective.evaluation.surveyed(objective.model, part, "a sample")
        return float(live.peak)

    try:
        fits = _that_fit(batch, nbytes, most)
        if fits >= size or check_additivity(objective, [batches.spread_slice(batch, 4)]).uncut:
            return 0
    except Exception:  # of the model or user code: the survey will say what is wrong
        return 0
    return fits


def sample_within(objective: Objective, surveyed: Survey, memory: Budget) -> Survey:
    """With samples in pieces whose graphs fit a budget that was asked for, where they can be cut (in session)."""
    sizes = [batches.leading_size(sample) or 0 for sample in surveyed.samples]
    if memory.limit is None or objective.tied_norms or max(sizes) < 2:
        return surveyed
    most, sample = PIECE_SHARE * memory.limit / GRAPH, surveyed.samples[sizes.index(max(sizes))]
    try:
        fits = _that_fit(sample, lambda part: float(saved_bytes(objective, part)), most)
        return surveyed.cut(objective, objective.group.agreed(fits))
    except Exception:  # user code that needs whole batches can raise anything
        return surveyed


def _that_fit(batch: Any, nbytes: Callable[[Any], float], most: float) -> int:
    """How many examples take so many bytes, one at least, judged by one and by two of them."""
    one, two = (nbytes(batches.take(batch, slice(0, n))) for n in (1, 2))
    each = max(two - one, 1.0)
    return max(1, int((most - max(0.0, one - each)) / each))
