"""Complete spectra from the rows of the factors, against dense float64 matrices that share nothing with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
import zoo
from complete_spectra import CE, DTYPES, ROUNDING, assert_complete, batches, net, problem, truth
from piecewise_linear import LICENSED
from references import curvature, dense
from witness import untouched

# -- complete spectra --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "dtype"), zoo.dtypes_in_turn([zoo.BY_NAME[name] for name, names in LICENSED.items() if names != set()])
)
def test_spectra_of_licensed_blocks_are_complete(case: zoo.Case, dtype: torch.dtype) -> None:
    name = case.name
    objective = case.build(dtype, 0).objective()
    names = LICENSED[name]
    licensed = (
        set(objective.parameters) - set(case.unused) - set(case.zero) if names is None else names - set(case.unused)
    )
    found = lh.analyze(objective, blocks=lambda n, p: n if n in licensed else None, path="gram", top=2, bottom=1)
    reference = dense.of_case(name)
    assert set(found.blocks) == licensed
    for block, spectrum in found.blocks.items():
        assert_complete(spectrum, reference.block([block]), ROUNDING[dtype])
    assert found.full is not None and "on factors" not in found.full.path and found.full.converged.all()


@pytest.mark.parametrize(
    ("case", "dtype"),
    zoo.dtypes_in_turn(
        zoo.BY_NAME[name] for name in ("mlp-tanh-mse", "tied-used-twice", "cnn-batchnorm-eval", "cnn-relu-wide")
    ),
)
def test_gauss_newton_has_complete_spectra_and_so_has_the_whole_model(case: zoo.Case, dtype: torch.dtype) -> None:
    objective = case.build(dtype, 0).objective()
    reference = curvature.of_case(case.name, "gauss_newton")
    found = lh.analyze(objective, blocks="module", operator="gauss_newton", path="gram", top=2, bottom=2)
    for spectrum in found.spectra():
        assert_complete(spectrum, reference.block(spectrum.parameters), ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(3, 2), (40, 7, 20), (300,)])
def test_unequal_batches_weights_and_ignored_targets(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    model, data = net(dtype), batches(*sizes, dtype=dtype)
    for _, y in data:
        y[1::3] = zoo.IGNORED
    weight = torch.tensor([0.5, 2.0, 1.25, 0.75], dtype=dtype)  # those of the zoo
    loss = nn.CrossEntropyLoss(weight=weight, label_smoothing=0.2)
    found = lh.analyze(lh.Objective(model, data, loss), path="gram", top=3, bottom=2, full=False)
    reference = truth(model, data, zoo.weighted_smoothed_totals)
    for name, spectrum in found.blocks.items():
        assert_complete(spectrum, reference.block([name]), ROUNDING[dtype])


def cauchy_totals(call: Callable[..., Tensor], batch: Any) -> tuple[Tensor, int]:
    x, y = batch
    return torch.log1p((call(x) - y).square()).sum(), len(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(4, 3), (60, 50)])
def test_a_loss_that_is_not_convex(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    model = net(dtype, outputs=1)
    data = [(x, 3.0 * (y % 2).unsqueeze(1).to(dtype)) for x, y in batches(*sizes, dtype=dtype)]
    loss = lh.batch_loss(lambda z, batch: cauchy_totals(lambda x: z, batch), output=lambda m, batch: m(batch[0]))
    found = lh.analyze(lh.Objective(model, data, loss), path="gram", top=2, bottom=2, full=False)
    reference = truth(model, data, cauchy_totals)
    for name, spectrum in found.blocks.items():
        assert_complete(spectrum, reference.block([name]), ROUNDING[dtype])
    first = found.blocks["0.weight"].spectrum
    assert first is not None and first[0] > 0.0 > first[-1]
    assert (first == 0.0).sum() >= 120 - sum(sizes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bottom", [1, 3])
def test_the_bottom_is_zero_exactly_where_rows_are_fewer_than_parameters(bottom: int, dtype: torch.dtype) -> None:
    objective = problem(5, 4, dtype=dtype)
    found = lh.analyze(objective, blocks="weight", path="gram", top=1, bottom=bottom, full=False)
    reference = truth(objective.model, objective.data)
    for name, spectrum in found.blocks.items():
        assert spectrum.spectrum is not None
        assert (spectrum.eigenvalues[1:] == 0.0).all() and not np.signbit(spectrum.eigenvalues[1:]).any()
        assert (spectrum.spectrum == 0.0).sum() >= spectrum.numel - 9 * 3 and (spectrum.spectrum >= 0.0).all()
        assert spectrum.steps == bottom + 2  # the pairs, and one random vector
        assert_complete(spectrum, reference.block([name]), ROUNDING[dtype])


def test_a_network_that_is_very_sure_in_float32_keeps_its_zero_bottom() -> None:
    """diag(p) - p p' in float32 has negative eigenvalues there, by rounding."""
    model, data = net(torch.float32), batches(6, dtype=torch.float32)
    with torch.no_grad():
        model[4].weight.mul_(30.0)
    found = lh.analyze(lh.Objective(model, data, CE), blocks={"first": "0.weight"}, path="gram", bottom=1, full=False)
    spectrum = found.blocks["first"]
    assert spectrum.spectrum is not None and spectrum.spectrum[-1] == 0.0
    expected = np.linalg.eigvalsh(truth(model, data).block(["0.weight"]))
    assert abs(spectrum.eigenvalues[0] - expected[-1]) <= spectrum.error_bounds[0]
    assert np.abs(spectrum.spectrum[::-1] - expected).max() <= spectrum.error_bounds.max()


# -- what rides along --------------------------------------------------------------------------------------------------


def test_estimates_of_complete_blocks_are_exact() -> None:
    objective = problem(9, 5)
    found = lh.analyze(
        objective, path="gram", top=2, trace=True, diagonal=True, density=True, coupling=True, sampling=True, full=False
    )
    reference = truth(objective.model, objective.data)
    for name, spectrum in found.blocks.items():
        matrix = reference.block([name])
        assert spectrum.spectrum is not None and spectrum.trace is not None and spectrum.diagonal is not None
        assert spectrum.trace.value == pytest.approx(np.trace(matrix), rel=1e-12) and spectrum.trace.standard_error == 0
        assert spectrum.trace.value == pytest.approx(spectrum.spectrum.sum(), rel=1e-10)
        assert np.allclose(spectrum.diagonal.value[name].numpy().ravel(), np.diag(matrix), atol=1e-14)
        assert spectrum.density is not None and spectrum.density.probes == 0
        assert np.isfinite(spectrum.sampling_errors).all() and np.isfinite(spectrum.trace.sampling_error)
    assert found.converged and found.coupling is not None


def test_estimates_alone_have_complete_spectra_too() -> None:
    found = lh.analyze(problem(9, 5), path="gram", top=0, trace=lh.Trace(method="hutch++"), full=False)
    assert all(s.complete and s.trace is not None and s.trace.standard_error == 0.0 for s in found.blocks.values())


def test_the_network_is_run_once_and_the_numbers_that_are_told_are_those_of_other_paths() -> None:
    found = lh.analyze(problem(9, 5), path="gram", full=False)
    solve = found.counts.by_phase["solve"]
    assert solve["forwards"] == 1 and found.counts.passes == 2, "two batches together"
    other = lh.analyze(problem(9, 5), path="exact", full=False)
    assert found.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-12)
    assert found.loss == other.loss and found.cost is not None and found.settings["path"] == "gram"


@pytest.mark.parametrize("path", ["gram", "auto"])
def test_the_model_comes_back(path: str) -> None:
    objective = problem(9, 5, dtype=torch.float32)
    with untouched(objective.model):
        lh.analyze(objective, path=path, top=8, bottom=2)
