"""Our side of the benchmark: one call, its self-check, bounds and certificates inside the measured time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

import layerhess as lh

from .truth import Values
from .workloads import FULL, Problem, Question

__all__ = ["Answer", "NotAvailable", "analyse", "objective_of"]


class NotAvailable(Exception):
    """This layerhess has no way to answer the question."""


@dataclass(frozen=True)
class Answer:
    """Every target's eigenvalues and the targets that were not certified at the tolerance (there should be none)."""

    values: Values
    unconverged: list[str]
    analysis: lh.Analysis


def _token_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    """Sum of the cross entropy over all positions, and their number."""
    ids, target = batch
    return F.cross_entropy(model(ids).flatten(0, 1), target.flatten(), reduction="sum"), target.numel()


def objective_of(problem: Problem) -> lh.Objective:
    """The workload's loss over its data, as layerhess takes it."""
    loss = lh.batch_loss(_token_loss) if problem.tokens else problem.loss
    return lh.Objective(problem.model, problem.batches, loss, mode="eval")


def analyse(problem: Problem, tol: float = 1e-3, memory: int | None = None) -> Answer:
    """The eigenvalues asked for, certified; within a memory budget of so many bytes.

    Raises:
        NotAvailable: complete spectra, where the installed layerhess has no such path.
    """
    try:
        analysis = lh.analyze(objective_of(problem), tol=tol, memory=memory, **_arguments(problem.question))
    except lh.InputError as error:
        if problem.question.complete and error.where == "path":
            raise NotAvailable(str(error)) from error
        raise
    if problem.question.complete:
        values = {name: _all_of(block) for name, block in analysis.blocks.items()}
        return Answer(values, [name for name, block in analysis.blocks.items() if not block.complete], analysis)
    renamed = {"all": FULL}
    values = {renamed.get(name, name): block.eigenvalues.tolist() for name, block in analysis.blocks.items()}
    return Answer(values, [name for name, block in analysis.blocks.items() if not block.solved], analysis)


def _arguments(question: Question) -> dict[str, Any]:
    if question.complete:
        return {"blocks": "weight", "full": False, "top": question.k, "path": "gram"}
    # One block of everything is the full model, and nothing beside it is asked for.
    blocks: Any = {"all": "*"} if question.full else "weight"
    return {"blocks": blocks, "full": False, "top": question.k, "copies": question.copies}


def _all_of(block: lh.Spectrum) -> list[float]:
    if block.spectrum is not None and len(block.spectrum) == block.numel:
        return block.spectrum.tolist()
    return block.eigenvalues.tolist()
