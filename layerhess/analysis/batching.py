"""How the data goes through the model in passes: in pieces of batches, batch by batch, or several together."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from layerhess.analysis.microbatches import Microbatches, microbatches, saved_bytes
from layerhess.checks import SelfCheck
from layerhess.checks.joined import why_apart
from layerhess.checks.survey import Survey
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.device import PIECE_SHARE, Budget
from layerhess.curvature.journal import Journal
from layerhess.objective import batches
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import preserved_random_state

SAVED = 32 << 20  # bytes that a forward pass saves, from which on a batch is not small: its work outweighs its calls
TIMES = 8.0  # so many times what a forward pass saves may be in use; with factors, that of every direction
SMALL = 4.0  # so many batches of usual size fit together at least: two or three larger ones are slower together
LOOKED_AT = 16  # batches among which two that are alike are looked for


def batching(
    objective: Objective, surveyed: Survey, checked: SelfCheck, make_graph: GraphMaker, blocks: Sequence[Block],
    memory: Budget, journal: Journal, *, step: int,
) -> tuple[Objective, Microbatches, str]:  # fmt: skip
    """Choose by the budget and the shapes (in session): the objective for passes, the choice, and a sentence on it.

    Args:
        blocks: those that products will be asked for. memory: the budget for graphs. step: bytes of a training step.
    """
    directions = max((work.directions for work in checked.licence.works.values()), default=0)
    found = microbatches(objective, surveyed, make_graph, blocks, memory, step=step, directions=directions)
    found = Microbatches(*journal.settled("micro-batches", dataclasses.astuple(found), here=True))
    if found.size is not None and checked.uncut:
        return objective, found, ""
    if found.size is not None:
        note = f"memory: batches are cut into pieces of {found.size} examples to stay within the budget"
        return objective.resized(found.size), found, note
    if objective.tied_norms or not all(check.passed for check in checked.checks if check.name == "additivity"):
        return objective, found, ""
    joined = joined_size(objective, surveyed, memory, max(TIMES, directions + 4.0))
    size, note = journal.settled("joined batches", list(joined), here=True)
    return objective if size is None else objective.joined(size), found, note


def note_on_joined(size: int | None) -> str:
    """A sentence for the reader, after the passes."""
    return "" if size is None else f"small batches went through the model together, up to {size:,} examples at a time"


def joined_size(objective: Objective, surveyed: Survey, memory: Budget, times: float = TIMES) -> tuple[int | None, str]:
    """Up to how many examples batches are joined; None where they stay apart (in session, on all ranks).

    A product with a small batch takes as long as its hundreds of calls, whatever their size. The size follows from
    shapes and the budget alone, so that the same run has the same last digits.

    Args:
        memory: the budget for graphs. times: what a forward pass saves is in use at most.

    Returns:
        It, and a sentence where small batches could not be joined.
    """
    group, size = objective.group, batches.leading_size(surveyed.sample)
    given = objective.batch_size is not None or surveyed.batches < 2 or not surveyed.examples
    if given or objective.random_modules or not size:
        return None, ""
    each = group.agreed(group.tried(lambda: saved_bytes(objective, surveyed.sample))) / size
    most = int(min(SAVED, PIECE_SHARE * memory.room / times) / each) if each else 0
    if most < SMALL * surveyed.examples / surveyed.batches:
        return None, ""
    pair = group.tried(lambda: _alike(objective, most))
    found = group.gathered(group.tried(lambda: None if pair is None else why_apart(objective, pair)))
    if all(why is None for why in found):
        return None, ""
    if why := next(filter(None, found), ""):
        return None, f"small batches were processed one by one: {why}"
    return most, ""


def _alike(objective: Objective, most: int) -> tuple[Any, Any] | None:
    """Two batches near the beginning that would be joined; None where there are none."""
    seen: dict[tuple[str, str], Any] = {}
    with preserved_random_state():
        for batch in itertools.islice(objective.batches(), LOOKED_AT):
            rows = batches.leading_size(batch)
            if rows is None or rows >= most:
                continue
            other = seen.setdefault(batches.kind(batch), batch)
            if other is not batch and rows + (batches.leading_size(other) or 0) <= most:
                return other, batch
    return None
