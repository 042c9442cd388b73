"""Trace, diagonal, density and coupling through ``analyze``, against dense float64 references."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from sklearn.datasets import load_digits
from torch import Tensor, nn

import layerhess as lh
from grouped_batches import flat, grouped_problem
from references import dense
from witness import untouched
from zoo import BY_NAME

EVERYTHING: dict[str, Any] = {"trace": True, "diagonal": True, "density": True, "coupling": True}
NAMES = (
    "mlp-relu-ce",
    "mlp-gelu-smoothing-weights-ignored",
    "cnn-batchnorm-eval",
    "lstm",
    "transformer-tied-ignore",
    "gpt2-logits",
    "partly-frozen",
    "mlp-tanh-wide",
)
FAST = ("mlp-relu-ce", "partly-frozen")
SEEDS = 5


def true_blocks(name: str, analysis: lh.Analysis) -> dict[str, np.ndarray]:
    """The dense block of each spectrum of the analysis, the full model's under "(full)"."""
    reference = dense.of_case(name)
    blocks = {key: reference.block(list(s.parameters)) for key, s in analysis.blocks.items()}
    return {**blocks, "(full)": reference.matrix}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow, id=name) for name in NAMES]
)
def test_estimates_are_right_on_average_and_know_how_far_off_they_are(name: str) -> None:
    """Means over seeds within 4 standard errors of the truth; errors of single runs as large as stated."""
    case = BY_NAME[name]
    objective = case.build(torch.float64, 0).objective()
    scores: dict[str, list[float]] = {"trace": [], "mean": [], "second": [], "coupling": []}
    covered: list[bool] = []
    diagonal_scores: list[float] = []
    for seed in range(SEEDS):
        analysis = lh.analyze(objective, seed=seed, **EVERYTHING)
        truth = true_blocks(name, analysis)
        for spectrum in analysis.spectra():
            matrix = truth[spectrum.name]
            n, size = len(matrix), np.abs(np.linalg.eigvalsh(matrix)).sum()
            slack = 1e-9 * max(size, 1e-12)
            trace = spectrum.trace
            assert trace is not None and trace.converged, trace
            if trace.method == "exact":
                level = 1e-9 * reference_norm(name) * n if spectrum.status.startswith("zero") else slack
                assert abs(trace.value - np.trace(matrix)) <= level
            else:
                scores["trace"].append((trace.value - np.trace(matrix)) / max(trace.standard_error, slack))
                covered.append(trace.low - slack <= np.trace(matrix) <= trace.high + slack)
            diagonal = spectrum.diagonal
            assert diagonal is not None
            off, error = flat(diagonal.value) - np.diag(matrix), flat(diagonal.standard_error)
            if diagonal.probes:
                diagonal_scores.append(float(np.linalg.norm(off) / max(np.linalg.norm(error), slack)))
            density = spectrum.density
            assert density is not None
            if density.probes:
                tiny = 1e-9 * max(abs(density.nodes).max(), 1e-300)
                scores["mean"].append((density.mean - np.trace(matrix) / n) / max(density.mean_error, tiny))
                square = (matrix**2).sum() / n
                floor = 1e-9 * max(square, 1e-300)
                scores["second"].append((density.second - square) / max(density.second_error, floor))
            mass = trapezoid(density.value, density.grid)
            assert mass == pytest.approx(1.0, abs=2e-3)
        coupling = analysis.coupling
        assert coupling is not None
        reference = dense.of_case(name)
        places = [reference.index(list(s.parameters)) for s in analysis.blocks.values()]
        table = np.array([[np.linalg.norm(reference.matrix[np.ix_(b, c)]) for c in places] for b in places])
        assert np.allclose(coupling.value, coupling.value.T)
        assert np.abs(coupling.value - table).max() <= np.abs(table).max() * 0.75
        diagonal_share = (np.diag(table) ** 2).sum() / (table**2).sum()
        scores["coupling"].append(
            (coupling.off_diagonal_share - (1 - diagonal_share)) / max(coupling.share_error, 1e-9)
        )
    for kind, values in scores.items():
        if values:
            # Student's t of few probes has long tails: medians say whether the errors are of the stated size.
            assert abs(np.median(values)) <= 4 * 1.3 / math.sqrt(SEEDS), (kind, np.round(values, 1))
            # A right median is 0.7 to 1.2 here; that of few values scatters by a third of 3 / sqrt(their number).
            assert np.median(np.abs(values)) <= 1.2 * (1.0 + 3.0 / math.sqrt(len(values))), (kind, np.round(values, 1))
    if len(covered) >= 20:
        assert np.mean(covered) >= 0.85
    if diagonal_scores:
        assert np.median(diagonal_scores) <= 1.6 and max(diagonal_scores) <= 6.0


@pytest.mark.parametrize("seeds", [20, pytest.param(40, marks=pytest.mark.slow)])
def test_intervals_cover_where_probes_are_few_and_skewed(seeds: int) -> None:
    """A trained network, whose spectra have outliers: who stops on a lucky standard error covers too rarely."""
    images, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(images[:200] / 16.0), torch.tensor(digits[:200])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)).double()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    objective = lh.Objective(model, (x, y), nn.CrossEntropyLoss())
    matrix = lh.Hessian(objective, check=False).to_dense().numpy()
    covered, scores = [], []
    for seed in range(seeds):
        analysis = lh.analyze(objective, seed=seed, trace=True, path="exact")  # with factors it would be exact
        start = 0
        for name, spectrum in analysis.blocks.items():
            truth = np.trace(matrix[start : start + spectrum.numel, start : start + spectrum.numel])
            start += spectrum.numel
            trace = spectrum.trace
            assert trace is not None and trace.converged, name
            if trace.standard_error > 0.0:
                covered.append(trace.low <= truth <= trace.high)
                scores.append((trace.value - truth) / trace.standard_error)
        full = analysis.full.trace if analysis.full is not None else None
        assert full is not None
        covered.append(full.low <= np.trace(matrix) <= full.high)
        scores.append((full.value - np.trace(matrix)) / full.standard_error)
    assert len(covered) >= 3 * seeds
    assert np.mean(covered) >= 0.9
    assert abs(np.mean(scores)) <= 0.4


@pytest.mark.parametrize("probes", [16, 20, 64])
def test_as_many_probes_as_asked_for(probes: int) -> None:
    """Full products, then the blocks' own: it comes to an end, and counts what was asked."""
    analysis = lh.analyze(twenty_blocks(), trace=lh.Trace(probes=probes), path="exact")
    used = {s.trace.probes for s in analysis.spectra() if s.trace is not None and s.trace.method != "exact"}
    assert used and max(used) == probes


def reference_norm(name: str) -> float:
    return dense.of_case(name).norm


def test_the_worked_example_has_its_couplings_exactly() -> None:
    """The 2-2-1 linear net of the worked example, its Hessian written out by hand."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([[2.0, 3.0], [4.0, 1.0]]).double())
            self.v = nn.Parameter(torch.tensor([2.0, 1.0]).double())

        def forward(self, x: Tensor) -> Tensor:
            return (self.v @ (self.w @ x)).reshape(1)

    model, x, y = Net(), torch.ones(2).double(), torch.tensor([14.0]).double()
    analysis = lh.analyze(lh.Objective(model, (x, y), nn.MSELoss()), coupling=True, trace=True, diagonal=True)
    # y_hat = 15, residual 1: H_ww = 2 (v v') (x x'), H_vv = 2 (W x)(W x)', H_wv = 2 (v_i x_j (W x)_k + delta_ik x_j)
    v, h, ones = np.array([2.0, 1.0]), np.array([5.0, 5.0]), np.ones(2)
    rows = np.kron(v, ones)
    h_ww, h_vv = 2 * np.outer(rows, rows), 2 * np.outer(h, h)
    h_wv = 2 * (np.outer(rows, h) + np.kron(np.eye(2), ones[:, None]))
    assert analysis.coupling is not None
    expected = [[np.linalg.norm(h_ww), np.linalg.norm(h_wv)], [np.linalg.norm(h_wv), np.linalg.norm(h_vv)]]
    assert analysis.coupling.value == pytest.approx(np.array(expected), rel=1e-12)
    assert (analysis.coupling.standard_error <= 1e-12).all()  # rounding, no probes
    total = sum(x**2 for row in expected for x in row)
    assert analysis.coupling.off_diagonal_share == pytest.approx(2 * np.sum(h_wv**2) / total, rel=1e-12)
    assert analysis.full is not None and analysis.full.trace is not None
    assert analysis.full.trace.value == pytest.approx(120.0, rel=1e-12) and analysis.full.trace.standard_error == 0.0


def twenty_blocks() -> lh.Objective:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(6, 24), nn.ReLU()]
    for _ in range(8):
        layers += [nn.Linear(24, 24), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(24, 3)).double()
    return lh.Objective(model, (torch.randn(40, 6).double(), torch.randint(3, (40,))), nn.CrossEntropyLoss())


@pytest.mark.parametrize("path", [pytest.param("auto", marks=pytest.mark.slow), "exact"])
def test_everything_costs_little_more_than_the_largest_request(path: str) -> None:
    """At most 1.2 times the products of the densities, the largest single request, on a model of 20 blocks.

    Sampling errors included where factors have every example's own curvature; exact products need a third derivative or
    small pieces for them, which come on top.
    """
    largest = lh.analyze(twenty_blocks(), top=0, path=path, density=True).counts.products
    together = lh.analyze(twenty_blocks(), bottom=1, path=path, sampling=path == "auto", **EVERYTHING)
    assert len(together.blocks) == 20
    assert together.counts.products <= 1.2 * largest
    assert together.counts.full_products > 0 and together.counts.passes < 150


def test_estimates_can_be_asked_for_without_eigenvalues() -> None:
    model, batches = grouped_problem()
    analysis = lh.analyze(lh.Objective(model, batches, nn.CrossEntropyLoss()), top=0, trace=True)
    block = analysis.blocks["0.weight"]
    assert not len(block.eigenvalues) and block.status == "no eigenvalues were asked for"
    assert block.trace is not None and block.trace.converged and analysis.converged
    assert block.density is None and block.diagonal is None and analysis.coupling is None


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_a_trace_by_each_method(method: str) -> None:
    model, batches = grouped_problem()
    objective = lh.Objective(model, batches[:4], nn.CrossEntropyLoss())
    analysis = lh.analyze(objective, trace=lh.Trace(rel=0.1, method=method, max_probes=600))
    matrix = lh.Hessian(objective, check=False).to_dense().numpy()
    assert analysis.full is not None and analysis.full.trace is not None
    trace = analysis.full.trace
    assert abs(trace.value - np.trace(matrix)) <= 5 * max(trace.standard_error, 1e-9)
    assert trace.method in (method, "exact")
    for spectrum in analysis.blocks.values():
        assert spectrum.trace is not None and spectrum.trace.method in (method, "exact")


def test_a_trace_that_is_not_reached_is_not_converged() -> None:
    analysis = lh.analyze(twenty_blocks(), trace=lh.Trace(rel=1e-7, max_probes=20), path="exact")
    block = analysis.blocks["2.weight"]
    assert block.trace is not None and not block.trace.converged and not block.ok and not analysis.converged
    assert "above" in block.trace.status


def test_the_model_comes_back_after_all_of_it() -> None:
    objective = twenty_blocks()
    with untouched(objective.model):
        lh.analyze(objective, sampling=True, **EVERYTHING)


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_product_that_is_not_finite_in_one_batch_names_the_batch() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3).double())

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.w).abs().pow(1.5).sum(dim=1, keepdim=True)

    batches = [(torch.rand(4, 3).double() + 0.5, torch.zeros(4, 1).double()) for _ in range(40)]
    batches[33][0][1] = 0.0  # the second derivative of |x|^1.5 at 0 is infinite, times x^2 = 0: NaN
    with pytest.raises(lh.InputError, match=r"NaN or infinite.*batch 33"):
        lh.analyze(lh.Objective(Root(), batches, nn.MSELoss()), trace=True)


def test_a_block_of_one_parameter() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    data = (torch.randn(9, 1).double(), torch.randn(9, 1).double())
    analysis = lh.analyze(lh.Objective(model, data, nn.MSELoss()), sampling=True, **EVERYTHING)
    matrix = lh.Hessian(lh.Objective(model, data, nn.MSELoss())).to_dense().numpy()
    for i, spectrum in enumerate(analysis.blocks.values()):
        assert spectrum.trace is not None and spectrum.trace.value == pytest.approx(matrix[i, i], rel=1e-9, abs=1e-12)
    assert analysis.coupling is not None
    assert analysis.coupling.value == pytest.approx(np.abs(matrix), rel=1e-9, abs=1e-12)


def test_couplings_of_a_small_model_are_read_but_for_rounding() -> None:
    """Three weights of 40 parameters: reading them costs no more than four times the probes."""
    model = nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 1)).double()
    data = (torch.randn(9, 8).double(), torch.randn(9, 1).double())
    for options in ({"density": True}, {"top": 1}):
        objective = lh.Objective(model, data, nn.MSELoss())
        analysis = lh.analyze(objective, blocks="weight", full=False, coupling=True, **options)
        names, matrix = list(analysis.blocks), lh.Hessian(objective, check=False).to_dense().numpy()
        places = dict(zip(("0.weight", "2.weight", "4.weight"), (range(24), range(27, 39), range(43, 47)), strict=True))
        assert analysis.coupling is not None and analysis.coupling.probes == 0
        truth = [[np.linalg.norm(matrix[np.ix_(places[a], places[b])]) for b in names] for a in names]
        assert analysis.coupling.value == pytest.approx(np.array(truth), rel=1e-9)
        assert (analysis.coupling.standard_error <= 1e-11 * np.linalg.norm(matrix)).all()  # rounding, no probes


def test_a_steps_count_above_the_block_shrinks_and_says_so() -> None:
    model, batches = grouped_problem()
    objective = lh.Objective(model, batches[:6], nn.CrossEntropyLoss())
    analysis = lh.analyze(objective, top=0, density=lh.Density(steps=50, probes=2))
    density = analysis.blocks["2.weight"].density  # 36 parameters, of which softmax sees no more than 2 / 3
    assert density is not None and density.steps == 26 and "reached every eigenvalue" in density.status
    analysis = lh.analyze(objective, top=0, density=lh.Density(steps=70, probes=2))
    density = analysis.blocks["0.weight"].density  # 60 parameters
    assert density is not None and density.steps == 60 and "allow" in density.status


@pytest.mark.parametrize("operator", ["gauss_newton", "empirical_fisher"])
def test_estimates_of_the_other_operators(operator: str) -> None:
    model, batches = grouped_problem()
    objective = lh.Objective(model, batches[:6], nn.CrossEntropyLoss())
    kinds: dict[str, Callable[..., Any]] = {"gauss_newton": lh.GaussNewton, "empirical_fisher": lh.EmpiricalFisher}
    matrix = kinds[operator](objective, check=False).to_dense().numpy()
    analysis = lh.analyze(objective, operator=operator, sampling=True, **EVERYTHING)
    assert analysis.full is not None and analysis.full.trace is not None and analysis.coupling is not None
    trace = analysis.full.trace
    assert abs(trace.value - np.trace(matrix)) <= 5 * trace.standard_error + trace.rounding
    names = list(analysis.blocks)
    edges = np.cumsum([0, *(s.numel for s in analysis.blocks.values())])
    for i in range(len(names)):
        for j in range(len(names)):
            truth = np.linalg.norm(matrix[edges[i] : edges[i + 1], edges[j] : edges[j + 1]])
            off = abs(analysis.coupling.value[i, j] - truth)
            assert off <= 5 * analysis.coupling.standard_error[i, j] + 1e-9
