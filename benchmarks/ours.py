"""Our side of the benchmark: one call, its self-check, bounds and certificates inside the measured time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

import layerhess as lh

from .workloads import Problem

__all__ = ["Answer", "analyse"]


@dataclass(frozen=True)
class Answer:
    """Every block's top eigenvalue and the blocks that were not certified at the tolerance (there should be none)."""

    values: dict[str, float]
    unconverged: list[str]


def _token_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    """Sum of the cross entropy over all positions, and their number."""
    ids, target = batch
    return F.cross_entropy(model(ids).flatten(0, 1), target.flatten(), reduction="sum"), target.numel()


def analyse(problem: Problem, tol: float = 1e-3) -> Answer:
    """All weight blocks' top eigenvalues, certified."""
    loss = lh.batch_loss(_token_loss) if problem.family == "gpt" else problem.loss
    objective = lh.Objective(problem.model, problem.batches, loss, mode="eval")
    analysis = lh.analyze(objective, blocks="weight", top=1, full=False, tol=tol)
    values = {name: float(block.eigenvalues[0]) for name, block in analysis.blocks.items()}
    return Answer(values, [name for name, block in analysis.blocks.items() if not block.converged[0]])
