"""Small problems for the Gram path, and what a complete spectrum must be beside its dense matrix."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import layerhess as lh
import zoo
from layerhess.results.spectrum import Spectrum
from references import dense

CE = nn.CrossEntropyLoss()
DTYPES = (torch.float64, torch.float32)
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-5}  # of a block's norm; the dense truth has float64 weights


def net(dtype: torch.dtype = torch.float64, outputs: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, outputs))
    return nn.Sequential(*layers).to(dtype)


def batches(*sizes: int, dtype: torch.dtype = torch.float64, outputs: int = 4) -> list[tuple[Tensor, Tensor]]:
    drawn = torch.Generator().manual_seed(1)
    made = [
        (torch.randn(n, 6, generator=drawn).to(dtype), torch.randint(outputs, (n,), generator=drawn)) for n in sizes
    ]
    return made


def problem(*sizes: int, dtype: torch.dtype = torch.float64) -> lh.Objective:
    return lh.Objective(net(dtype), batches(*sizes, dtype=dtype), CE)


def truth(model: nn.Module, data: Any, totals: zoo.Totals = zoo.cross_entropy_totals) -> dense.Reference:
    """In float64, whatever the model is."""
    exact = [tuple(part.double() if part.is_floating_point() else part for part in batch) for batch in data]
    return dense.reference_for(copy.deepcopy(model).double(), exact, totals)


def assert_complete(spectrum: Spectrum, matrix: np.ndarray[Any, Any], rounding: float) -> None:
    values = np.linalg.eigvalsh(matrix)[::-1]
    norm = np.abs(values).max()
    assert spectrum.path == "gram on factors" and spectrum.complete and spectrum.status == "complete"
    assert spectrum.spectrum is not None and len(spectrum.spectrum) == spectrum.numel
    assert (np.diff(spectrum.spectrum) <= 0.0).all()
    assert np.abs(spectrum.spectrum - values).max() <= rounding * norm + 1e-300
    assert spectrum.missed_probability == 0.0 and spectrum.missed_factor == 1.0
    tops = sum(end == "top" for end in spectrum.end)
    wanted = np.concatenate([values[:tops], values[len(values) - (len(spectrum.end) - tops) :]])
    assert (np.abs(spectrum.eigenvalues - wanted) <= spectrum.error_bounds + 1e-14 * norm).all()
    rows = np.stack([np.concatenate([v.double().numpy().ravel() for v in e.values()]) for e in spectrum.eigenvectors])
    assert np.allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-6 if rounding > 1e-9 else 1e-9)
    residuals = np.linalg.norm(rows @ matrix - spectrum.eigenvalues[:, None] * rows, axis=1)
    assert (residuals <= spectrum.error_bounds + rounding * norm).all()
