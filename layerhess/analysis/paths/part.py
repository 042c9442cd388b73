"""The most curved examples, whose factors are held where those of all the data cannot be: they guide the solvers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerhess.analysis.microbatches import Pieces
from layerhess.checks.survey import Survey
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import DataPass, Request
from layerhess.curvature.device import Budget
from layerhess.linalg.eigen.guide import Guide
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.process import Source, Wanted
from layerhess.objective import batches
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective

PHASE = "part"  # of the counters
PART_SHARE = 0.25  # of the budget, for the factors of the part
CARRIED, LEAST_CARRIED = 0.9, 0.8  # of the outputs' curvature, that a part should carry and has to
MOST_EXAMPLES = 0.25  # of all, since making their factors costs that much of a pass
STARTS = 5  # eigenvectors beyond those wanted
STARTS_TOL, STARTS_WIDTH, STARTS_PRODUCTS = 0.1, 4, 30  # good enough: a part differs from the whole by more
OWN_DRAWS = 1 << 40  # numbers of its random vectors, apart from those of the searches that it guides


@dataclass(frozen=True)
class Curved:
    """Examples picked for the curvature of their outputs.

    Attributes:
        data: batches of them, prepared. examples: how many. carried: their share of the curvature of all outputs.
    """

    data: list[Any]
    examples: int
    carried: float


class Part:
    """Products with the matrix of some examples alone, whose factors are held.

    Args:
        data_pass: over pieces of them, which it should be able to keep. pieces: how many. note: a sentence for the
            reader.
    """

    def __init__(self, data_pass: DataPass, pieces: int, note: str) -> None:
        self._data_pass = data_pass
        self._pieces = pieces
        self._usable = True
        self._guides = 0
        self._note = note

    @property
    def note(self) -> str:
        """A sentence for the reader; empty where it guides nobody."""
        return self._note if self._usable and self._guides else ""

    def guide(self, block: Block, wanted: Wanted, draw: Source, device: torch.device) -> Guide | None:
        """For the search of a block's largest eigenvalues; None where the factors cannot be had after all."""
        search = Lanczos(
            block.numel,
            Wanted(top=min(wanted.top + STARTS, block.numel)),
            STARTS_TOL,
            lambda number: draw(OWN_DRAWS + number),
            basis_limit=STARTS_PRODUCTS + STARTS_WIDTH,
            device=device,
            width=STARTS_WIDTH,
        )
        while not search.found and search.steps < STARTS_PRODUCTS:
            rows = self._multiply(block, search.ask())
            if rows is None:
                return None
            search.tell(rows)
        self._guides += 1
        return Guide(functools.partial(self._multiply, block), search.candidates().vectors)

    def _multiply(self, block: Block, rows: Tensor) -> Tensor | None:
        """None from the first failure on: a guide is never worth an error."""
        if self._usable:
            try:
                with self._data_pass.counters.during(PHASE):
                    products = self._data_pass.run({block.name: Request(block, rows)})[block.name]
            except Exception:  # a model may be tied to the composition of its batches, and memory be short after all
                self._usable = False
            else:
                self._usable = self._data_pass.kept == self._pieces and bool(torch.isfinite(products).all())
                if self._usable:
                    return products
            self.release()
        return None

    def release(self) -> None:
        """Drop the factors."""
        self._data_pass.release()


def part_of(
    objective: Objective, surveyed: Survey, names: list[str], found: Pieces, make_graph: GraphMaker, memory: Budget,
    counters: Counters, checkpoint: Callable[[], None],
) -> Part | None:  # fmt: skip
    """The examples of the largest output curvature, as far as they fit; None where they say too little of the rest.

    On a ResNet-20 and 2,048 digits an eighth of the examples carries 84 % of the curvature, and the top eigenvectors of
    its blocks have residuals of 1 to 4 % on all of them; those of as many examples at random 20 to 50 %.

    Args:
        objective: in session, with the batches of the survey. names: of the parameters. found: how the passes go.
    """
    if not found.per_example or memory.limit is None:
        return None
    curved = most_curved(objective, surveyed, int(PART_SHARE * memory.limit / found.per_example))
    if curved is None:
        return None
    data = [piece for batch in curved.data for piece in batches.pieces(batch, found.size)]
    data_pass = DataPass(
        objective.narrowed(data), names, counters, keep=1.5 * PART_SHARE, checkpoint=checkpoint, make_graph=make_graph,
        memory=memory,
    )  # fmt: skip
    note = (
        f"memory: the factors of all data do not fit, so they are made anew in every pass; those of the "
        f"{curved.examples:,} most curved examples ({curved.carried:.0%} of the outputs' curvature) say where to look"
    )
    return Part(data_pass, len(data), note)


def most_curved(objective: Objective, surveyed: Survey, most: int) -> Curved | None:
    """At most so many examples; None where they carry too little, or cannot be found again.

    Args:
        objective: in session, with the batches of the survey.
    """
    if not surveyed.curvature or not batches.is_stable(objective.data):
        return None
    every = torch.cat(list(surveyed.curvature))
    order = every.argsort(descending=True, stable=True)
    carried = every[order].cumsum(0) / every.sum()
    enough = int(torch.searchsorted(carried, CARRIED)) + 1
    count = min(enough, most, int(MOST_EXAMPLES * len(every)))
    if count < 1 or not float(carried[count - 1]) >= LEAST_CARRIED:
        return None
    order = order[:count].sort().values
    made, start = [], 0
    for own, batch in zip(surveyed.curvature, objective.batches(), strict=False):
        inside = order[(order >= start) & (order < start + len(own))] - start
        start += len(own)
        if len(inside):
            made.append(batches.take(batch, inside))
    if sum(batches.leading_size(piece) or 0 for piece in made) < count:  # fewer batches than the survey saw
        return None
    whole = batches.joined(made)
    return Curved(made if whole is None else [whole], count, float(carried[count - 1]))
