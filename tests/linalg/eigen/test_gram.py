"""A spectrum from rows is called complete only where it is that of the operator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from driven_solver import draw
from layerhess.linalg.eigen.gram import Gram
from layerhess.linalg.eigen.process import Wanted
from layerhess.linalg.eigen.row_sum import RowSum


@pytest.mark.parametrize("top", [2, 25])
def test_rows_of_another_matrix_are_not_called_complete(top: int) -> None:
    rows = torch.randn(10, 25, generator=torch.Generator().manual_seed(0)).double()
    total = RowSum(25, torch.device("cpu"))
    total.add(rows, torch.ones(10))
    found = total.decompose(Wanted(top=top), 1.0, draw(25))
    assert found is not None
    matrix = rows.T @ rows
    for other, complete in ((matrix, True), (matrix + 0.1 * torch.eye(25).double(), False)):
        process = Gram(found, Wanted(top=top), exact=True)
        assert not process.proposes and np.isinf(process.candidates().residuals).all()
        assert len(process.ask()) == min(25, top + 1)
        process.tell(process.ask() @ other)
        candidates = process.candidates()
        assert process.proposes and process.complete is complete
        assert (candidates.spectrum is not None) is complete
        residuals = torch.linalg.vector_norm(candidates.vectors @ other - found.vectors @ matrix, dim=1)
        assert np.allclose(candidates.residuals, residuals.numpy(), atol=1e-12)
