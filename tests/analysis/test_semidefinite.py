"""A matrix that cannot be negative ends between 0 and its Ritz value, and at 0 where its rank is less than n."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import layerhess as lh
from layerhess.linalg.bounds import certify
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.process import Wanted
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.criteria import Criterion

GENERATOR = torch.Generator().manual_seed(3)
OUTPUT = torch.randn(6, 4, generator=GENERATOR, dtype=torch.float64)
CLASSES, NUMBERS = torch.tensor([0, 1, -100, 3, 2, 1]), torch.rand(6, 4, generator=GENERATOR, dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss", "target", "directions"),
    [
        (nn.CrossEntropyLoss(), CLASSES, 15),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 0.0]).double(), label_smoothing=0.1), CLASSES, 15),
        (nn.CrossEntropyLoss(), NUMBERS, 18),
        (nn.CrossEntropyLoss(), NUMBERS - 0.5, None),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, -2.0, 0.5, 1.0]).double()), CLASSES, None),
        (nn.MSELoss(), NUMBERS, 24),
        (nn.HuberLoss(), NUMBERS, 24),
        (nn.BCEWithLogitsLoss(), NUMBERS, 24),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(-3.0).double()), NUMBERS, None),
        (nn.PoissonNLLLoss(), NUMBERS - 3.0, 24),
        (nn.PoissonNLLLoss(log_input=False), NUMBERS - 3.0, None),
        (lambda z, t: -((z - t) ** 2).mean(), NUMBERS, None),
    ],
)
def test_known_criteria_are_convex_where_they_say_so(
    loss: object, target: torch.Tensor, directions: int | None
) -> None:
    criterion = Criterion(loss)  # type: ignore[arg-type]
    assert criterion.curved_directions(OUTPUT, target) == directions
    output = OUTPUT.abs() + 0.1 if getattr(loss, "log_input", True) is False else OUTPUT
    second = torch.autograd.functional.hessian(lambda z: criterion(z, target)[0], output).reshape(24, 24)
    values = np.linalg.eigvalsh(second.numpy())
    if directions is None:
        assert values[0] < 0.0
    else:
        assert values[0] >= -1e-12 and (values > 1e-10).sum() <= directions


def objective(loss: nn.Module, examples: int, *, hidden: str = "Tanh") -> lh.Objective:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8, bias=False), getattr(nn, hidden)(), nn.Linear(8, 3)).double()
    target = torch.randint(0, 3, (examples,)) if isinstance(loss, nn.CrossEntropyLoss) else torch.randn(examples, 3)
    return lh.Objective(net, (torch.randn(examples, 12).double(), target), loss)


def dense(given: lh.Objective, operator: type, name: str) -> np.ndarray:
    return np.linalg.eigvalsh(np.asarray(operator(given).block(name).to_dense()))


@pytest.mark.parametrize(("examples", "zero"), [(30, True), (80, False)])
def test_gauss_newton_of_a_convex_loss_ends_at_zero_or_above(examples: int, zero: bool) -> None:
    """96 parameters; 30 examples of 3 classes curve 60 directions of the outputs at most."""
    given = objective(nn.CrossEntropyLoss(), examples)
    found = lh.analyze(given, operator="gauss_newton", bottom=2, path="exact", full=False).blocks["0.weight"]
    truth = dense(given, lh.GaussNewton, "0.weight")
    assert found.converged.all() and np.all(found.interval[-2:, 0] >= -1e-12 * truth[-1])
    assert np.all(
        (found.interval[:, 0] <= truth[[-1, 1, 0]] + 1e-15) & (truth[[-1, 1, 0]] <= found.interval[:, 1] + 1e-12)
    )
    if zero:
        assert np.all(found.eigenvalues[-2:] == 0.0) and np.all(found.error_bounds[-2:] == 0.0)
        assert abs(truth[1]) < 1e-12 * truth[-1]


def test_a_licensed_block_of_the_hessian_is_semidefinite_and_others_are_not() -> None:
    class Upside(nn.Module):
        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return -(output - target).square().mean()

    bent = lh.analyze(objective(nn.CrossEntropyLoss(), 30), bottom=1, path="exact", full=False).blocks["0.weight"]
    assert bent.eigenvalues[-1] < 0.0, "no licence: the Hessian of a tanh network"
    given = objective(nn.MSELoss(), 20, hidden="ReLU")
    plain = lh.analyze(given, bottom=1, path="factors", full=False).blocks["0.weight"]
    assert "factors" in plain.path and plain.eigenvalues[-1] == 0.0 and plain.converged.all()
    turned = lh.Objective(given.model, given.data, Upside())
    found = lh.analyze(turned, operator="gauss_newton", bottom=1, full=False).blocks["0.weight"]
    assert found.eigenvalues[-1] < -1e-6, "this loss is not convex"


def test_a_small_ritz_value_of_a_semidefinite_matrix_has_converged() -> None:
    values = np.concatenate([[4.0], np.geomspace(1e-9, 1.0, 299)])
    steps = {}
    for definite in (False, True):
        process = Lanczos(
            300, Wanted(bottom=2), 1e-4, lambda i: random_unit(300, 0, "psd", i), exclude=0.05, definite=definite
        )
        while not process.proposes:
            process.tell(process.ask() * torch.from_numpy(values))
        found = certify(process.candidates(), tol=1e-4, rounding=0.0, exclude=0.05)
        assert found.converged.all()
        steps[definite] = process.steps
    assert steps[True] < steps[False] and found.missed_below == 0.0
    assert np.all(np.abs(process.candidates().values - np.sort(values)[[1, 0]]) <= found.error_bounds)


class Branching(nn.Module):
    """Piecewise linear in its weights, but squared or differentiating the network for batches of five examples."""

    def __init__(self, how: str, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 1)).double()
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) != 5:
            return self.net(x)
        if self.how == "square":
            return self.net(x).square()
        slopes = torch.func.vmap(torch.func.grad(lambda one: self.net(one).square().sum()))(x)
        return slopes.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("how", "path", "width"), [("square", "auto", 8), ("gradient", "auto", 8), ("gradient", "factors", 70)]
)
def test_what_a_later_batch_does_not_bear_out_is_not_claimed(how: str, path: str, width: int) -> None:
    """The licence is of the sample; a batch beyond it may be another function of the weights."""
    torch.manual_seed(0)
    x, y = torch.randn(17, 3).double(), torch.randn(17, 1).double()
    model, y[12:] = Branching(how, width), 9.0
    data = [(x[:12], y[:12]), (x[12:], y[12:])]
    parameters = dict(model.named_parameters())

    def gradient() -> torch.Tensor:
        loss = sum((model(a) - b).square().sum() for a, b in data) / 17.0
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(parameters.values()))])

    analysis = lh.analyze(lh.Objective(model, data, nn.MSELoss()), bottom=1, full=False, path=path, blocks="weight")
    assert any(note.startswith("all 2 blocks: H_bb = G_bb") for note in analysis.notes)
    start = 0
    for name, parameter in parameters.items():
        columns = []
        for place in range(parameter.numel()):
            entry = parameter.data.view(-1)[place]
            value, sides = float(entry), []
            for step in (1e-6, -1e-6):
                entry.fill_(value + step)
                sides.append(gradient()[start : start + parameter.numel()])
            entry.fill_(value)
            columns.append((sides[0] - sides[1]) / 2e-6)
        start += parameter.numel()
        values = np.linalg.eigvalsh(torch.stack(columns).numpy())
        if name in analysis.blocks:
            found = analysis.blocks[name]
            assert (np.abs(found.eigenvalues - values[[-1, 0]]) <= found.error_bounds + 1e-6).all(), name
            assert found.missed_below <= values[0] + 1e-6
    assert min(block.eigenvalues[-1] for block in analysis.blocks.values()) < -0.01
