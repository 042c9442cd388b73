"""What a finished solver knows of its block."""

from __future__ import annotations

import torch

from layerhess.analysis.probing.block_samples import Known
from layerhess.analysis.tasks import Task
from layerhess.linalg.eigen.dense import Dense
from layerhess.linalg.eigen.gram import Gram
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.stochastic.deflation import Deflation


def known_of(task: Task) -> Known:
    """Nothing, where the solver's vectors were dropped."""
    if task.zero_bound is not None:
        return Known(zero=True)
    if task.released:
        return Known()
    if isinstance(task.process, Dense):
        matrix = task.process.matrix
        lengths = torch.linalg.vector_norm(matrix, dim=1)
        if not task.process.proposes:
            return Known()
        square = float(lengths.square().sum())
        return Known(diagonal=matrix.diagonal().clone(), lengths=lengths, matrix=matrix, square=square)
    if isinstance(task.process, Gram):
        if not task.process.complete:
            return Known()
        found = task.process.candidates()
        values = torch.from_numpy(found.values).to(found.vectors)
        assert found.spectrum is not None
        return Known(
            diagonal=task.process.diagonal,
            deflation=Deflation(found.vectors, values[:, None] * found.vectors),
            square=float((found.spectrum**2).sum()),
        )
    if isinstance(task.process, Lanczos):
        return Known(deflation=Deflation(*task.process.basis.gathered()))
    return Known()
