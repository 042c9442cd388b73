"""The fast path is on by default: it must be licensed, say so, and agree with the exact engine wherever it is used."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from piecewise_linear import TRICKY, Branches, Changing
from references import curvature, dense
from witness import refused, untouched
from zoo import CASES, Case


def on_factors(analysis: lh.Analysis) -> set[str]:
    """The blocks that were solved on factors."""
    return {name for name, s in analysis.blocks.items() if s.path.endswith("on factors")}


def assert_within_bounds(analysis: lh.Analysis, reference: dense.Reference, slack: float) -> None:
    for name, spectrum in analysis.blocks.items():
        truth = np.linalg.eigvalsh(reference.block(list(spectrum.parameters)))[::-1]
        places = [i if end == "top" else i - len(spectrum.end) for i, end in enumerate(spectrum.end)]
        off = np.abs(spectrum.eigenvalues - truth[places])
        assert (off <= spectrum.error_bounds + slack * reference.norm + 1e-15).all(), (name, spectrum.path)


# No block of these is licensed.
NEVER = (
    "mlp-silu-nll-weights", "cnn-batchnorm-train", "cnn-batchnorm-train-tanh", "cnn-residual-train",
    "transformer-tied-ignore", "gpt2-own-loss", "gpt2-logits", "bert-words-own-loss", "bert-words-logits",
)  # fmt: skip
WITHOUT_FACTORS = {"hessian": (*NEVER, "mlp-tanh-bce"), "gauss_newton": NEVER}

# Each case with one matrix in float64, in turn; the other matrix and float32 are slow, and so are those whose products
# are exact: other sweeps over the zoo judge their eigenvalues.
IN_TURN = [
    pytest.param(case, dtype, operator, id=f"{case}-{operator}-{dtype}", marks=() if now else pytest.mark.slow)
    for number, case in enumerate(CASES)
    for place, operator in enumerate(("hessian", "gauss_newton"))
    for dtype in (torch.float64, torch.float32)
    for now in [dtype == torch.float64 and number % 2 == place and case.name not in WITHOUT_FACTORS[operator]]
]


@pytest.mark.parametrize(("case", "dtype", "operator"), IN_TURN)
def test_the_whole_zoo_through_the_fast_path(case: Case, dtype: torch.dtype, operator: str) -> None:
    """Every certified eigenvalue lies within its bound of the dense truth, whichever path was taken."""
    objective = curvature.with_output(case, case.build(dtype, 0)).objective()
    found = lh.analyze(objective, operator=operator, top=2, bottom=1, full=False)
    reference = dense.of_case(case.name) if operator == "hessian" else curvature.of_case(case.name, operator)
    rounding = 2e-5 if dtype == torch.float32 else 0.0  # the dense truth has float64 weights
    assert_within_bounds(found, reference, max(case.inherent, 1e-12, rounding))
    assert bool(on_factors(found)) == (case.name not in WITHOUT_FACTORS[operator])
    if not on_factors(found):
        return
    exact = lh.analyze(objective, operator=operator, top=2, bottom=1, full=False, path="exact")
    assert not on_factors(exact)
    for name in on_factors(found):
        one, other = found.blocks[name], exact.blocks[name]
        allowed = one.error_bounds + other.error_bounds + 1e-15
        assert (np.abs(one.eigenvalues - other.eigenvalues) <= allowed).all(), name
        assert one.licence.startswith("checked on "), one.licence


@pytest.mark.parametrize("kind", TRICKY)
def test_networks_that_look_piecewise_linear_and_are_not(kind: str) -> None:
    torch.manual_seed(0)
    model = Branches(kind).double()
    batches = [(torch.randn(n, 5).double(), torch.randint(3, (n,))) for n in (17, 11)]
    objective = lh.Objective(model, batches, nn.CrossEntropyLoss())
    found = lh.analyze(objective, blocks="weight", top=3)
    expected = TRICKY[kind] - ({"right"} if kind in ("twice", "shifted weights") else set())
    assert {name.removesuffix(".weight") for name in on_factors(found)} == expected
    matrix = lh.Hessian(objective, blocks="weight", check=False)
    for name, spectrum in found.blocks.items():
        truth = np.linalg.eigvalsh(matrix.block(name).to_dense().numpy())[::-1][:3]
        assert (np.abs(spectrum.eigenvalues - truth) <= spectrum.error_bounds + 1e-12).all(), name
    assert found.full is not None and not found.full.path.endswith("on factors")
    whole = np.linalg.eigvalsh(matrix.to_dense().numpy())[::-1][:3]
    assert (np.abs(found.full.eigenvalues - whole) <= found.full.error_bounds + 1e-12).all()


@pytest.mark.parametrize("other", ["smooth", "by hand"])
def test_a_batch_that_runs_another_network_has_exact_products(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(8, 4).double(), torch.randint(3, (8,))) for _ in range(12)]
    batches[7][0][0, 0] = 1000.0
    objective = lh.Objective(Changing(other).double(), batches, nn.CrossEntropyLoss())
    # The licence is given on batches that do not show it.
    monkeypatch.setattr("layerhess.checks.survey.Sampler.chosen", lambda sampler, _: [sampler._first[::2]])
    found = lh.analyze(objective, blocks="weight", full=False)
    assert "first.weight" in on_factors(found)
    matrix = lh.Hessian(objective, blocks="weight", check=False)
    for name, spectrum in found.blocks.items():
        truth = np.linalg.eigvalsh(matrix.block(name).to_dense().numpy())[-1]
        assert abs(spectrum.eigenvalues[0] - truth) <= spectrum.error_bounds[0] + 1e-12, name


def relu_problem(**options: Any) -> lh.Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 4))
    batches = [(torch.randn(30, 6), torch.randint(4, (30,))) for _ in range(3)]
    return lh.Objective(model, batches, nn.CrossEntropyLoss(), **options)


def test_the_full_gauss_newton_matrix_has_factors_too() -> None:
    objective = relu_problem()
    found = lh.analyze(objective, operator="gauss_newton", top=3, path="factors")
    assert found.full is not None and found.full.path == "lanczos on factors"
    truth = np.linalg.eigvalsh(lh.GaussNewton(objective, check=False).to_dense().double().numpy())[::-1][:3]
    assert (np.abs(found.full.eigenvalues - truth) <= found.full.error_bounds + 1e-6 * truth[0]).all()
    assert found.counts.by_phase["solve"]["backwards"] == 6  # three batches together
    assert any("all 6 blocks: products come" in note for note in found.notes)


def test_the_model_comes_back() -> None:
    objective = relu_problem()
    with untouched(objective.model):
        lh.analyze(objective)


def test_the_path_of_each_block_is_told() -> None:
    found = lh.analyze(relu_problem(), full=True)
    assert on_factors(found) == set(found.blocks)
    assert any("all 6 blocks: H_bb = G_bb" in note and "not proved" in note for note in found.notes)
    assert any(check.name == "factors" and check.passed for check in found.checks)
    bent = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    smooth = lh.analyze(lh.Objective(bent, (torch.randn(9, 3).double(), torch.randn(9, 1).double()), nn.MSELoss()))
    assert smooth.blocks["0.weight"].licence == "the network is not piecewise linear in it"
    assert smooth.settings["path"] == "auto"


def test_exact_products_can_be_asked_for() -> None:
    found = lh.analyze(relu_problem(), path="exact")
    assert not on_factors(found) and all(s.licence == "" for s in found.spectra())


def test_factors_alone_are_refused_where_a_block_has_no_licence() -> None:
    found = lh.analyze(relu_problem(), path="factors", full=False)
    assert on_factors(found) == set(found.blocks)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    objective = lh.Objective(model, (torch.randn(9, 3), torch.randn(9, 1)), nn.MSELoss())
    with refused(model, "0.weight", "piecewise linear", "path='auto'"):
        lh.analyze(objective, path="factors")


def test_estimates_are_made_of_the_same_products() -> None:
    objective = relu_problem()
    asked = {"trace": True, "density": lh.Density(probes=4, steps=12), "diagonal": True}
    ours = lh.analyze(objective, path="factors", **asked)
    exact = lh.analyze(objective, path="exact", **asked)
    for one, other in zip(ours.spectra(), exact.spectra(), strict=True):
        assert one.density is not None and other.density is not None
        assert one.density.mean == pytest.approx(other.density.mean, rel=1e-4, abs=1e-6)
        assert one.trace is not None and other.trace is not None
        slack = 5.0 * (one.trace.standard_error + other.trace.standard_error) + 1e-4 * abs(other.trace.value)
        assert abs(one.trace.value - other.trace.value) <= slack


def test_licensed_blocks_need_no_probes_for_traces_and_diagonals() -> None:
    objective = relu_problem()
    found = lh.analyze(objective, trace=True, diagonal=True)
    hessian = lh.Hessian(objective)
    for name, spectrum in found.blocks.items():
        dense = hessian.block(name).to_dense().double()
        assert spectrum.trace is not None and spectrum.trace.method == "exact" and spectrum.trace.standard_error == 0.0
        assert abs(spectrum.trace.value - float(dense.trace())) <= 1e-5 * float(dense.trace())
        assert spectrum.diagonal is not None and spectrum.diagonal.method == "exact"
        flat = torch.cat([part.reshape(-1) for part in spectrum.diagonal.value.values()])
        assert torch.allclose(flat, dense.diagonal(), rtol=1e-4, atol=1e-6 * float(dense.diagonal().max()))
    whole = found.full.trace if found.full is not None else None
    assert whole is not None and whole.method == "exact"
    plain = lh.analyze(objective, trace=lh.Trace(method="hutchinson", probes=20))
    assert all(s.trace is not None and s.trace.method in ("hutchinson", "exact") for s in plain.blocks.values())


def test_the_network_is_run_once_where_factors_are_kept() -> None:
    found = lh.analyze(relu_problem(), full=False, tol=1e-5, path="factors")
    exact = lh.analyze(relu_problem(), full=False, tol=1e-5, path="exact")
    solve = found.counts.by_phase["solve"]
    assert solve["forwards"] == 1  # three batches together
    assert solve["backwards"] == 6  # the C - 1 directions, the gradient, and two that tell items apart
    assert solve["products"] == exact.counts.by_phase["solve"]["products"]


def test_batches_of_any_cut_give_the_same() -> None:
    whole, split = lh.analyze(relu_problem(), full=False), lh.analyze(relu_problem(batch_size=7), full=False)
    for one, other in zip(whole.spectra(), split.spectra(), strict=True):
        assert np.abs(one.eigenvalues - other.eigenvalues) <= one.error_bounds + other.error_bounds


def test_the_cost_is_told_in_gradients() -> None:
    found = lh.analyze(relu_problem())
    cost = found.cost
    assert cost is not None and cost.gradient_seconds > 0.0
    assert set(cost.gradients) == set(found.seconds) and {"survey", "checks", "solve", "rounding"} <= set(
        cost.gradients
    )
    assert cost.total * cost.gradient_seconds == pytest.approx(sum(found.seconds.values()))
    steps = sum(s.steps for s in found.blocks.values())
    assert found.full is not None and cost.one_by_one == pytest.approx(1.1 * steps + 3.2 * found.full.steps)
    slow, fast = (
        str(dataclasses.replace(found, cost=dataclasses.replace(cost, gradient_seconds=seconds)))
        for seconds in (1e-3, 9e-4)
    )
    assert "In gradients over the same data" in slow and "block by block would have cost" in slow
    assert "Time: " in fast and " s (" in fast and "gradients over" not in fast and "would have cost" not in fast


def _sure_network(low: float, high: float) -> tuple[nn.Module, Tensor, Tensor]:
    """ReLU, in float32, on examples whose class is so sure that the loss is almost zero (logits ``low`` apart)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4))
    x = torch.randn(4000, 10)
    with torch.no_grad():
        model[4].weight.mul_(60.0)
        best = model(x).topk(2, dim=1).values
        gap = best[:, 0] - best[:, 1]
        x = x[(gap > low) & (gap < high)][:64]
        return model, x, model(x).argmax(dim=1)


@pytest.mark.parametrize(("low", "high"), [(9.0, 12.0), (11.0, 14.0)])
def test_where_float32_leaves_a_doubt_float64_has_the_last_word(low: float, high: float) -> None:
    """Exact products of a very sure network are noise from the fourth digit on: that is no reason to refuse factors."""
    model, x, y = _sure_network(low, high)
    found = lh.analyze(lh.Objective(model, (x, y), nn.CrossEntropyLoss()), blocks="weight", full=False)
    assert on_factors(found) == set(found.blocks)
    double = model.double()
    for name, block in found.blocks.items():
        weight = dict(double.named_parameters())[name]

        def loss(w: Tensor, name: str = name) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(double, {name: w}, (x.double(),)), y)

        size = weight.numel()
        hessian = torch.func.hessian(loss)(weight.detach()).reshape(size, size)
        top = float(torch.linalg.eigvalsh(hessian.detach())[-1])
        assert abs(block.eigenvalues[0] - top) <= block.error_bounds[0], name
