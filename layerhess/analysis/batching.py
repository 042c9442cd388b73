"""How the data goes through the model in passes: in pieces of batches, batch by batch, or several together."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layerhess.analysis.microbatches import Microbatches, microbatches, saved_bytes
from layerhess.checks import SelfCheck
from layerhess.checks.joined import ONE_BY_ONE, why_apart, why_not_whole
from layerhess.checks.survey import Survey
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.device import PIECE_SHARE, Budget
from layerhess.curvature.journal import Journal
from layerhess.objective import batches
from layerhess.objective.batches import Together
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import preserved_random_state

SAVED = 32 << 20  # bytes that a forward pass saves, from which on a batch is not small: its work outweighs its calls
TIMES = 8.0  # so many times what a forward pass saves may be in use; with factors, that of every direction
SMALL = 4.0  # so many batches of usual size fit together at least: two or three larger ones are slower together
OWN = 16  # times the examples of one batch, at most: what a forward pass needs beside what it saves grows no more
LOOKED_AT = 16  # batches among which two that are alike are looked for


@dataclass(frozen=True)
class _Pair:
    """Two batches that are alike: rows of the larger, bytes that an example saves, and why they stay apart."""

    kind: tuple[str, str]
    rows: int
    each: float
    why: str


def batching(
    objective: Objective, surveyed: Survey, checked: SelfCheck, make_graph: GraphMaker, blocks: Sequence[Block],
    memory: Budget, journal: Journal, *, step: int, held: bool = True,
) -> tuple[Objective, Microbatches, str]:  # fmt: skip
    """Choose by the budget and the shapes (in session): the objective for passes, the choice, and a sentence on it.

    Args:
        blocks: those that products will be asked for. memory: the budget for graphs. step: bytes of a training step.
        held: joined batches are held against the same apart, in two passes over all data.
    """
    directions = max((work.directions for work in checked.licence.works.values()), default=0)
    found = microbatches(objective, surveyed, make_graph, blocks, memory, step=step, directions=directions)
    found = Microbatches(*journal.settled("micro-batches", dataclasses.astuple(found), here=True))
    if found.size is not None and checked.uncut:
        return objective, found, ""
    if found.size is not None:
        note = f"memory: batches are cut into pieces of {found.size} examples to stay within the budget"
        return objective.resized(found.size), found, note
    additive = all(check.passed for check in checked.checks if check.name == "additivity")
    if objective.tied_norms or not additive or checked.trace.coarsest not in (torch.float32, torch.float64):
        return objective, found, ""
    together, note = joined_size(objective, surveyed, memory, max(TIMES, directions + 4.0))
    if held and together and (why := why_not_whole(objective, objective.joined(together), make_graph, blocks)):
        together, note = None, why
    known, note = journal.settled("which batches are joined", [together, note], here=True)
    return objective.joined(None if known is None else Together(known[0], tuple(known[1]))), found, note


def note_on_joined(together: Together | None) -> str:
    """A sentence for the reader, after the passes."""
    if together is None:
        return ""
    return f"small batches went through the model together, up to {together.examples:,} examples at a time"


def joined_size(
    objective: Objective, surveyed: Survey, memory: Budget, times: float = TIMES
) -> tuple[Together | None, str]:
    """Which batches may be joined, as far as two of them tell; None where they stay apart (in session, on all ranks).

    A product with a small batch takes as long as its hundreds of calls, whatever their size. The size follows from
    shapes and the budget, and is a power of two, so that a little more or less of free memory changes no last digit.

    Args:
        memory: the budget for graphs. times: what a forward pass saves is in use at most.

    Returns:
        These, and a sentence where small batches could not be joined.
    """
    group = objective.group
    given = objective.batch_size is not None or surveyed.batches < 2 or not surveyed.examples
    if given or objective.random_modules:
        return None, ""
    pair = next(filter(None, group.gathered(group.tried(lambda: _alike(objective)))), None)
    if pair is None or not pair.each:
        return None, ""
    most = min(min(SAVED, PIECE_SHARE * memory.room / times) / pair.each, OWN * pair.rows)
    if most < SMALL * max(pair.rows, surveyed.examples / surveyed.batches):
        return None, ""
    if pair.why:
        return None, f"{ONE_BY_ONE}: {pair.why}"
    return Together(1 << math.floor(math.log2(most)), pair.kind), ""


def _alike(objective: Objective) -> _Pair | None:
    """The first two batches of one kind near the beginning; None where there are none."""
    seen: dict[tuple[str, str], Any] = {}
    with preserved_random_state():
        for batch in itertools.islice(objective.batches(), LOOKED_AT):
            rows = batches.leading_size(batch)
            if not rows:
                continue
            kind = batches.kind(batch)
            if (other := seen.setdefault(kind, batch)) is not batch:
                each = saved_bytes(objective, other) / (batches.leading_size(other) or 1)
                rows = max(rows, batches.leading_size(other) or 0)
                return _Pair(kind, rows, each, why_apart(objective, (other, batch)))
    return None
