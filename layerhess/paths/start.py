"""Starts from a part of the data: solvers of exact products begin where a few cheap steps on an eighth of it end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from layerhess import batches
from layerhess.blocks import Block
from layerhess.errors import InputError
from layerhess.ledger import Ledger
from layerhess.memory import Budget, is_out_of_memory
from layerhess.objective import Objective
from layerhess.paths.exact import goes_dense, source
from layerhess.products.graph import GraphMaker
from layerhess.solvers.lanczos import Lanczos
from layerhess.solvers.process import Wanted
from layerhess.survey import Survey
from layerhess.sweep import Request, Sweep
from layerhess.vectors import solver_device

PART = 8  # one example in so many
FEWEST = 4  # examples below which a part shows nothing
# Parameters times terms of the loss. Below, a pass over an eighth of the data takes about as long as one over all.
SMALLEST_WORK = 2e8
PROBES = 4  # of the output's curvature; they do not touch the network
CLOSE = 0.1  # relative residual on the part: closer to its eigenvector is no closer to that of all data


@dataclass
class Starts:
    """What the part of the data showed.

    Attributes:
        vectors: key -> (P_b,) float64, the sum of the wanted eigenvectors there. examples: how many the part has.
    """

    vectors: dict[str, Tensor] = field(default_factory=dict)
    examples: int = 0

    def note(self, total: int) -> str:
        """A sentence for the reader; empty where nothing was done."""
        if not self.vectors:
            return ""
        return (
            f"the solvers of {len(self.vectors)} operators started from eigenvectors of {self.examples} of {total} "
            "examples and a random part; the bounds are for all of them"
        )


def starts(
    objective: Objective,
    surveyed: Survey,
    blocks: Mapping[str, Block],
    wanted: Wanted,
    make_graph: GraphMaker,
    ledger: Ledger,
    *,
    seed: int,
    memory: Budget,
    uncut: bool,
    checkpoint: Callable[[], None] = lambda: None,
    time_limit: float | None = None,
    begun: float = 0.0,
) -> Starts:
    """Eigenvectors of an eighth of the examples, those of the largest output curvature in each batch (in session).

    They only say where to start; what is found, and its bounds, belong to all the data. Cost: a forward pass, and less
    than one step of every block.

    Args:
        blocks: whose products are exact. uncut: batches must not be cut, so there is no part. time_limit: seconds since
            ``begun``, on the clock of ``time.perf_counter``, after which what there is has to do.

    Returns:
        Nothing where it would not pay: small blocks, little data, little work a pass.
    """
    blocks = {key: block for key, block in blocks.items() if not goes_dense(block.numel, wanted)}
    work = sum(block.numel for block in blocks.values()) * max(surveyed.count, surveyed.examples)
    if uncut or work < SMALLEST_WORK or surveyed.examples < PART * FEWEST or objective.tied_norms:
        return Starts()
    with ledger.during("start"):
        part = [piece for batch in objective.batches() if (piece := _part(objective, batch, ledger)) is not None]
        return _of_part(
            objective, part, blocks, wanted, make_graph, ledger, seed, memory, checkpoint,
            lambda: time_limit is not None and time.perf_counter() - begun > time_limit,
        )  # fmt: skip


def _of_part(
    objective: Objective, part: list[Any], blocks: Mapping[str, Block], wanted: Wanted, make_graph: GraphMaker,
    ledger: Ledger, seed: int, memory: Budget, checkpoint: Callable[[], None], late: Callable[[], bool],
) -> Starts:  # fmt: skip
    examples = sum(batches.leading_size(piece) or 0 for piece in part)
    if examples < FEWEST:
        return Starts()
    device = solver_device(objective.device)
    solvers = {
        key: Lanczos(block.numel, wanted, CLOSE, source(block, seed, device, "start"), device=device)
        for key, block in blocks.items()
    }
    names = list(dict.fromkeys(name for block in blocks.values() for name in block.parameters))
    sweep = Sweep(
        objective.narrowed(batches.joined(part)), names, ledger, checkpoint=checkpoint, make_graph=make_graph,
        memory=memory,
    )  # fmt: skip
    steps = 6 + 3 * wanted.total
    try:
        for _ in range(steps):
            asked = {key: Request(blocks[key], s.ask()) for key, s in solvers.items() if not s.found}
            if not asked or late():
                break
            for key, products in sweep.run(asked).items():
                solvers[key].tell(products)
    except (RuntimeError, MemoryError, InputError):
        return Starts()  # a part that cannot be analysed by itself is no reason to refuse the whole
    finally:
        sweep.release()
    found = {key: s.candidates().vectors.sum(dim=0) for key, s in solvers.items() if s.steps}
    return Starts({key: row for key, row in found.items() if bool(torch.isfinite(row).all())}, examples)


def _part(objective: Objective, batch: Any, ledger: Ledger) -> Any:
    """The examples of a batch that the loss bends most at the output; evenly spread ones where that is not known."""
    size = batches.leading_size(batch)
    if size is None or size < PART:
        return None
    bent = _output_curvature(objective, batch, size, ledger)
    if bent is None:
        return batches.spread_slice(batch, size // PART)
    return batches.take(batch, bent.topk(size // PART).indices.sort().values)


def _output_curvature(objective: Objective, batch: Any, size: int, ledger: Ledger) -> Tensor | None:
    """(N,) about the trace of d2 loss / d output2 of every example, from a few random signs; None if unknown."""
    try:
        judged = objective.evaluation.with_output(objective.model, batch)
    except (InputError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return None
    ledger.count("forwards")
    output = judged.output
    if not judged.loss.requires_grad or not output.requires_grad or not output.ndim or len(output) != size:
        return None
    (slope,) = torch.autograd.grad(judged.loss, [output], create_graph=True, allow_unused=True)
    if slope is None or not slope.requires_grad:
        return None
    generator = torch.Generator().manual_seed(size)
    found = torch.zeros(size, dtype=output.dtype, device=output.device)
    for _ in range(PROBES):
        signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2.0 - 1.0
        (bent,) = torch.autograd.grad(slope, [output], signs, retain_graph=True, materialize_grads=True)
        found += (signs * bent.detach()).reshape(size, -1).sum(dim=1)
    return found if bool(torch.isfinite(found).all()) else None
