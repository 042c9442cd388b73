"""Intervals of traces and diagonals hold the rounding of the products, where no random vector is left to blame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import layerhess as lh
from references import dense
from zoo import BY_NAME

NAMES = ("mlp-relu-ce", "mlp-tanh-mse", "mlp-layernorm-one-batch", "cnn-batchnorm-eval", "partly-frozen", "lstm",
         "attention-encoder-layer")  # fmt: skip


def few_items(dtype: torch.dtype) -> lh.Objective:
    """A Fisher matrix of 16 items has rank 16: the deflated probes see nothing but rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 4))
    data = (torch.randn(16, 8), torch.randint(4, (16,)))
    return lh.Objective(model.to(dtype), (data[0].to(dtype), data[1]), nn.CrossEntropyLoss())


def true_fisher() -> np.ndarray:
    """In float64, from the rounded weights, by a gradient for every item."""
    objective = few_items(torch.float32)
    model = objective.model.double()
    x, y = objective.data
    gradients = []
    for i in range(16):
        loss = nn.functional.cross_entropy(model(x[i : i + 1].double()), y[i : i + 1])
        parts = torch.autograd.grad(loss, list(model.parameters()))
        gradients.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
    g = np.array(gradients)
    return np.asarray(g.T @ g / 16)


def test_a_float32_trace_whose_probes_agree_is_covered_all_the_same() -> None:
    truth = true_fisher()
    trace, n = float(np.trace(truth)), len(truth)
    diagonal = np.diag(truth)
    widths = []
    for seed in range(12):
        found = lh.trace(lh.EmpiricalFisher(few_items(torch.float32)), seed=seed, method="hutch++", rel=1e-4)
        assert found.low <= trace <= found.high, seed
        assert found.rounding > 0.0
        widths.append(found.high - found.low)
        entries = lh.diagonal(lh.EmpiricalFisher(few_items(torch.float32)), seed=seed, probes=60)
        value = torch.cat([part.reshape(-1) for part in entries.value.values()]).numpy()
        error = torch.cat([part.reshape(-1) for part in entries.standard_error.values()]).numpy()
        assert len(value) == n and (np.abs(value - diagonal) <= 8 * error + entries.rounding).all()
    assert np.median(widths) <= 1e-4 * trace, "the largest of them hangs on the processor's last bits"


@pytest.mark.parametrize("name", NAMES)
def test_traces_that_were_read_are_within_their_rounding(name: str) -> None:
    """Unit vectors in float32, against the float64 Hessian at the very same, rounded weights and data."""
    case = BY_NAME[name]
    built = case.build(torch.float32, 0)
    batches = built.data if isinstance(built.data, list) else [built.data]
    truth = dense.reference_for(built.model.double(), _doubled(batches), case.totals)
    analysis = lh.analyze(case.build(torch.float32, 0).objective(), trace=True, diagonal=True, full=False)
    seen = 0
    for spectrum in analysis.blocks.values():
        matrix = truth.block(list(spectrum.parameters))
        found, entries = spectrum.trace, spectrum.diagonal
        assert found is not None and entries is not None
        if found.method != "exact" or spectrum.status.startswith("zero"):
            continue
        seen += 1
        assert found.standard_error == 0.0
        assert found.low <= np.trace(matrix) <= found.high, (spectrum.name, found, np.trace(matrix))
        assert found.rounding <= 1e-3 * np.abs(matrix).sum()
        value = torch.cat([part.reshape(-1) for part in entries.value.values()]).numpy()
        assert (np.abs(value - np.diag(matrix)) <= entries.rounding).all(), spectrum.name
    assert seen >= 2


def _doubled(data: Any) -> Any:
    if isinstance(data, torch.Tensor):
        return data.double() if data.is_floating_point() else data
    if isinstance(data, dict):
        return {key: _doubled(value) for key, value in data.items()}
    return type(data)(_doubled(value) for value in data) if isinstance(data, (list, tuple)) else data


def test_float64_arithmetic_has_its_rounding_too() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((200, 200))
    matrix = (matrix + matrix.T) * 1e3
    exact = lh.trace(matrix, probes=400)
    assert exact.method == "exact" and 0.0 < exact.rounding <= 1e-9
    assert exact.low < exact.value < exact.high
    assert 0.0 < lh.diagonal(matrix, probes=400).rounding <= 1e-9


def test_a_float32_operator_of_another_kind_counts_as_float32() -> None:
    class SingleOperator:
        shape, dtype = (3, 3), np.dtype(np.float32)

        def matvec(self, v: np.ndarray) -> np.ndarray:
            return (np.float32(1 / 3) * v).astype(np.float32)

    found = lh.trace(SingleOperator())
    assert found.method == "exact" and found.low <= float(np.float32(1 / 3)) * 3 <= found.high
    assert found.rounding >= 1e-7
