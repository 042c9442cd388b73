"""Chooses whether a network's segments are computed anew by every product: where one graph does not fit the budget."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from layerhess.analysis.microbatches import GRAPH, saved_bytes
from layerhess.checks.segments import disagreement, soundness
from layerhess.checks.survey import Survey
from layerhess.curvature.device import PIECE_SHARE, Budget, is_out_of_memory
from layerhess.curvature.matrices import CurvatureMatrix
from layerhess.curvature.segments.found import AUTO, Segment, found_segments, named_segments
from layerhess.curvature.segments.segmented import Segmented
from layerhess.errors import first_line
from layerhess.objective import batches
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective

LEAST_HELD, MOST_HELD = 0.9, 2.5  # gradients' memory in segments, where none or all keep graphs of first derivatives
NONE, GRADIENTS = "no segments, for want of memory", "segments compared by gradients"  # what is settled
Settled = Callable[[str, Any], Any]
COMPARED_SHARE = 0.5  # of the budget: up to here a product without segments is made on one example, to compare


@dataclass(frozen=True)
class Choice:
    """The segments that are used, none where the budget needs none; a sentence for the reader, or "".

    Attributes:
        held: so many of them keep the graphs of first derivatives.
    """

    segments: tuple[Segment, ...] = ()
    note: str = ""
    held: int = 0

    def of(self, matrix: CurvatureMatrix) -> CurvatureMatrix:
        """The matrix whose graphs are made that way."""
        if not self.segments:
            return matrix
        return replace(matrix, make_graph=Segmented(matrix.make_graph, self.segments, self.held))


def choose_segments(
    objective: Objective, surveyed: Survey, matrix: CurvatureMatrix, full: Block, memory: Budget, seed: int,
    *, step: int = 0, asked: Any = AUTO, factors: bool = False, settled: Settled = lambda key, value: value,
) -> Choice:  # fmt: skip
    """The segments for an analysis (in session).

    Segments cost one more evaluation of the network for a full product, and about twice the time for blocks alone. So
    they are used where the graph of the smallest piece of a batch does not fit its share of the budget, or where the
    user names them. On one example it is checked that they change nothing.

    Args:
        full: all parameters. step: bytes of a training step on the largest batch, 0 if unknown. asked: "auto", None, or
            names. factors: products from factors were demanded. settled: tells what an earlier run did where memory ran
            out, see :meth:`layerhess.curvature.journal.Journal.settled`.

    Raises:
        InputError: names that no module has.
    """
    if asked is None or factors:
        return Choice()
    piece = PIECE_SHARE * (math.inf if memory.limit is None else memory.limit)
    if asked == AUTO and 0 < GRAPH * step <= piece:
        return Choice()
    wanted = found_segments(objective.model) if asked == AUTO else named_segments(objective.model, asked)
    if not wanted:
        return Choice()
    batch, pieces = _smallest_piece(objective, surveyed)
    needed = GRAPH * saved_bytes(objective, batch) * pieces
    if asked == AUTO and needed <= piece:
        return Choice()
    if settled(NONE, False):
        return Choice()
    try:
        found = objective.group.tried(lambda: soundness(objective, batch, wanted))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):  # the network changes in place what torch lets nobody change, for one
            said = first_line(error, 80)
            return Choice(note=f"memory: no segment of the network can be computed anew (torch says '{said}')")
        settled(NONE, True)
        return Choice()  # the self-check will say that one example is too much
    left = "; ".join(f"{segment}: {why}" for segment, why in list(found.faults.items())[:2])
    if not found.sound:
        return Choice(note=f"memory: no segment of the network can be computed anew ({left})")
    compared = memory.limit is None or needed / pieces <= COMPARED_SHARE * memory.limit

    def apart(products: bool) -> tuple[float, float]:
        return disagreement(objective, batch, matrix.make_graph, found.sound, full, seed, products=products)

    for products in (True, False):
        if products and (not compared or settled(GRADIENTS, False)):
            continue
        try:
            off, most = objective.group.tried(functools.partial(apart, products))
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                return Choice()  # the self-check will say what is wrong with the network itself
        settled(GRADIENTS if products else NONE, True)
    else:
        return Choice()
    if not off <= most:
        return Choice(note=f"memory: the network's segments were not used: products with them are off by {off:.1e}")
    why = "as asked" if asked != AUTO else f"the graph of one {'example' if pieces == 1.0 else 'batch'} is too large"
    return Choice(
        found.sound,
        f"memory: {_named(found.sound)} computed anew by every product, which takes longer and less memory ({why})"
        + (f"; not {left}" if left else ""),
        _held(len(found.sound), GRAPH * piece / needed),
    )


def _held(count: int, gradients: float) -> int:
    """How many of so many segments may keep their graphs, where there is room for so many gradients' memory."""
    share = (gradients - LEAST_HELD) / (MOST_HELD - LEAST_HELD)
    return int(count * min(max(share, 0.0), 1.0))


def _smallest_piece(objective: Objective, surveyed: Survey) -> tuple[Any, float]:
    """One example of the sample, or a batch that cannot be cut; and how many times as large a piece of the data is."""
    size = batches.leading_size(surveyed.sample)
    if not size:
        return surveyed.sample, 1.0
    if objective.tied_norms:  # BatchNorm in train mode: one example of a batch has no outputs, or others
        return surveyed.sample, surveyed.largest / size
    return batches.take(surveyed.sample, slice(0, 1)), 1.0


def _named(segments: Sequence[Segment]) -> str:
    first, last = str(segments[0]), str(segments[-1])
    if len(segments) == 1:
        return f"1 segment ({first}) is"
    return f"{len(segments)} segments ({first} to {last}) are"
