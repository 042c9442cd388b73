"""Predictions from changes of outputs: exact where layers act additively; couplings against explicit J' S J."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import layerhess as lh
from layerhess.objective.group import ALONE
from layerhess.planning.measuring.judgement import Judgement, float_outputs, quadratic
from layerhess.planning.measuring.meter import Measurement, Meter, Room
from layerhess.planning.weights.applied import changed
from layerhess.results.options import Option, Quantize, option_of

CE = nn.CrossEntropyLoss()
OPTIONS: tuple[Option, ...] = (Quantize(2), Quantize(4))
X = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)).double()
Y = torch.randint(0, 3, (30,), generator=torch.Generator().manual_seed(1))


class Branches(nn.Module):
    """Layers side by side: their changes add up in the output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList([nn.Linear(5, 3) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x * (1.0 + i)) for i, branch in enumerate(self.branches))  # type: ignore[return-value]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def weights(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.ndim == 2]


def judged(
    made: lh.Objective, options: tuple[Option, ...] = OPTIONS, room: Room | None = None
) -> tuple[Meter, list[list[Measurement]], np.ndarray[Any, Any], Judgement]:
    """Every single step measured, and the judgement from it (in session)."""
    meter = Meter(made, room=room)
    steps = [meter.measure([{name: option} for option in options], outputs=True) for name in weights(made.model)]
    increases = np.array([[meter.increase(one).value for one in row] for row in steps])
    outputs = float_outputs(meter.float_model, ALONE)
    assert outputs is not None
    count = float(meter.float_model.counts.sum())
    return meter, steps, increases, Judgement(outputs, steps, increases, scale=meter.scale, count=count)


def every(layers: int, options: int = len(OPTIONS)) -> np.ndarray[Any, Any]:
    return np.array(list(itertools.product(range(options), repeat=layers)))


@pytest.mark.parametrize("loss", [CE, nn.CrossEntropyLoss(reduction="sum"), lambda z, y: F.cross_entropy(z, y) ** 1])
def test_it_is_exact_where_changes_of_layers_add_up(loss: Any) -> None:
    model = Branches().double()
    made = lh.Objective(model, [(X[:11], Y[:11]), (X[11:], Y[11:])], loss)
    choices = every(3)
    with made.session():
        meter, _, _, judgement = judged(made)
        plans = [dict(zip(weights(model), (OPTIONS[k] for k in row), strict=True)) for row in choices]
        measured = [meter.increase(one).value for one in meter.measure(plans)]
    np.testing.assert_allclose(judgement.increase(choices), measured, rtol=1e-6, atol=1e-9)
    additive = judgement.increase(choices) - np.array(measured)
    assert np.abs(additive).max() < 1e-6 * np.abs(measured).max()


def test_of_a_single_layer_it_is_what_was_measured() -> None:
    model = nn.Linear(5, 3).double()
    made = lh.Objective(model, (X, Y), CE)
    with made.session():
        _, _, increases, judgement = judged(made)
    np.testing.assert_allclose(judgement.increase(every(1)), increases[0], rtol=1e-12)


def test_single_steps_come_out_as_measured_on_any_network() -> None:
    """One option of each layer changes nothing: the plan of a step and of nothing else is that step."""

    def kept(weight: Tensor) -> Tensor:
        return weight.clone()

    options: tuple[Option, ...] = (option_of(kept), Quantize(2), Quantize(3))
    model = network()
    made = lh.Objective(model, (X, Y), CE)
    with made.session():
        _, _, increases, judgement = judged(made, options)
    singles = [[k if i == layer else 0 for i in range(3)] for layer in range(3) for k in range(3)]
    np.testing.assert_allclose(judgement.increase(np.array(singles)), increases.reshape(-1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("base", [(0, 1, 0), (1, 1, 1)])
def test_around_a_plan_single_steps_come_out_as_measured_there(base: tuple[int, ...]) -> None:
    model = network()
    names = weights(model)
    made = lh.Objective(model, [(X[:11], Y[:11]), (X[11:], Y[11:])], CE)
    with made.session():
        meter = Meter(made)
        (at,) = meter.measure([dict(zip(names, (OPTIONS[k] for k in base), strict=True))], outputs=True)
        steps: list[list[Measurement | None]] = []
        increases = np.zeros((3, 2))
        wanted = {}
        for layer in range(3):
            row: list[Measurement | None] = []
            for k in range(2):
                plan = tuple(k if i == layer else own for i, own in enumerate(base))
                (one,) = meter.measure([dict(zip(names, (OPTIONS[j] for j in plan), strict=True))], outputs=True)
                row.append(one)
                increases[layer, k] = meter.increase(one, at).value
                wanted[plan] = meter.increase(one).value
            steps.append(row)
        outputs = float_outputs(meter.float_model, ALONE)
        assert outputs is not None
        judgement = Judgement(
            outputs, steps, increases, base=at, start=meter.increase(at).value, scale=meter.scale, count=30.0
        )
    found = judgement.increase(np.array(list(wanted)))
    np.testing.assert_allclose(found, list(wanted.values()), rtol=1e-8, atol=1e-10)


# -- couplings ------------------------------------------------------------------------------------------------------


def linear(step: float) -> tuple[Option, ...]:
    """Options that move a weight a little: the output then moves linearly."""

    def one(weight: Tensor) -> Tensor:
        return weight + step * torch.cos(torch.arange(weight.numel(), dtype=weight.dtype)).view(weight.shape)

    def two(weight: Tensor) -> Tensor:
        return weight + step * torch.sin(torch.arange(weight.numel(), dtype=weight.dtype)).view(weight.shape)

    return option_of(one), option_of(two)


LOSSES: dict[str, tuple[Any, Tensor]] = {
    "cross entropy": (CE, Y),
    "mse": (nn.MSELoss(), torch.sin(X[:, :3])),
    "callable": (lambda z, y: F.cross_entropy(z, y), Y),
}


@pytest.mark.parametrize("name", LOSSES)
def test_couplings_are_gauss_newton_forms_of_the_changes(name: str) -> None:
    loss, target = LOSSES[name]
    model, step = network(), 1e-5
    options = linear(step)
    made = lh.Objective(model, [(X[:11], target[:11]), (X[11:], target[11:])], loss)
    with made.session():
        _, _, _, judgement = judged(made, options)
        found = judgement.couplings()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    names = weights(model)
    jacobian = jacrev(lambda own: functional_call(model, {**parameters, **own}, (X,)))(
        {n: parameters[n] for n in names}
    )
    moved = []
    for own in names:
        for option in options:
            d = changed(option, parameters[own]) - parameters[own]
            moved.append((jacobian[own].flatten(2) @ d.reshape(-1)).numpy())  # (N, 3)
    z = model(X).detach().numpy()
    if name == "mse":
        bend = np.repeat(2.0 * np.eye(3)[None] / 3.0, len(X), 0)
    else:
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        bend = np.einsum("ni,ij->nij", p, np.eye(3)) - np.einsum("ni,nj->nij", p, p)
    wanted = np.array([[np.einsum("ni,nij,nj->", a, bend, b) / len(X) for b in moved] for a in moved])
    np.testing.assert_allclose(found, wanted, rtol=0.0, atol=2e-4 * np.abs(wanted).max())
    np.testing.assert_array_equal(found, found.T)


def test_couplings_are_the_second_differences_of_the_loss_at_the_sum() -> None:
    model = Branches().double()
    made = lh.Objective(model, (X, Y), CE)
    options = linear(1e-3)
    with made.session():
        _, _, increases, judgement = judged(made, options)
        couplings = judgement.couplings()
    choices = every(3)
    together = judgement.increase(choices) - increases[np.arange(3), choices].sum(1)
    assert np.abs(together).max() > 1e-8
    np.testing.assert_allclose(
        quadratic(couplings, choices, 2), together, rtol=2e-2, atol=1e-2 * np.abs(together).max()
    )


def test_the_quadratic_sums_each_pair_once() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((6, 6))
    table = table + table.T
    for plan in every(3):
        places = [2 * layer + k for layer, k in enumerate(plan)]
        wanted = sum(table[a, b] for a, b in itertools.combinations(places, 2))
        assert quadratic(table, plan[None], 2)[0] == pytest.approx(wanted)


def test_a_loss_without_curvature_in_the_output_couples_nothing() -> None:
    def straight(z: Tensor, target: Tensor) -> Tensor:
        return (z * F.one_hot(target, 3)).mean()

    made = lh.Objective(network(), (X, Y), straight)
    with made.session():
        _, _, _, judgement = judged(made)
        assert not judgement.couplings().any()


# -- samples of rows ------------------------------------------------------------------------------------------------


def test_predictions_from_a_sample_of_rows_are_unbiased() -> None:
    model = Branches().double()
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(5)).double()
    y = torch.randint(0, 3, (200,), generator=torch.Generator().manual_seed(6))
    y[::5] = -100
    made = lh.Objective(model, [(x[:150], y[:150]), (x[150:], y[150:])], CE)
    plan = np.array([[0, 0, 0]])
    with made.session():
        _, _, increases, whole = judged(made)
        wanted, coupled = whole.increase(plan)[0], quadratic(whole.couplings(), plan, 2)[0]
        alone = increases[:, 0].sum()
        found, pairs = [], []
        for seed in range(60):
            room = Room(outputs=0.5 * 2 * 150 * 3 * 8 * 2.0, copies=1.0, batches=2, seed=seed)
            meter, _, own, judgement = judged(made, room=room)
            assert meter.float_model.share == pytest.approx(0.5)
            np.testing.assert_allclose(own, increases, rtol=1e-12)  # single steps are measured on all rows
            found.append(judgement.increase(plan)[0])
            pairs.append(quadratic(judgement.couplings(), plan, 2)[0])
    for values, truth in ((found, wanted), (pairs, coupled)):
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        assert error > 0.0 and abs(np.mean(values) - truth) < 4.0 * error + 0.02 * abs(wanted - alone)
        assert np.std(values) < 0.5 * abs(wanted - alone)


def test_a_batch_of_which_no_row_is_drawn_is_left_out() -> None:
    x, y = torch.randn(200, 5).double(), torch.randint(0, 3, (200,))
    for loss, target in ((CE, y), (nn.MSELoss(), torch.randn(200, 3).double())):
        made = lh.Objective(Branches().double(), list(zip(x.split(2), target.split(2), strict=True)), loss)
        with made.session():
            room = Room(outputs=0.4 * 100 * 2 * 3 * 8 * 2.0, batches=100)
            meter, steps, increases, judgement = judged(made, room=room)
            kept = [len(output) for output in meter.float_model.outputs if output is not None]
            assert 0 in kept and 64 <= sum(kept) < 110 and [len(part) for part in steps[0][0].outputs] == kept
            plan = np.array([[1, 1, 1]])
            assert judgement.increase(plan)[0] == pytest.approx(increases[:, 1].sum(), abs=0.02)
            assert np.isfinite(judgement.couplings()).all()


@pytest.mark.parametrize("loss", [CE, nn.CrossEntropyLoss(reduction="sum"), nn.MSELoss()])
def test_searches_look_at_a_part_of_the_rows(loss: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Branches().double()
    x = torch.randn(900, 5, generator=torch.Generator().manual_seed(5)).double()
    y = torch.randint(0, 3, (900,), generator=torch.Generator().manual_seed(6))
    y = torch.sin(x[:, :3]) if isinstance(loss, nn.MSELoss) else y
    made = lh.Objective(model, [(x[:850], y[:850]), (x[850:], y[850:])], loss)
    choices = every(3)
    with made.session():
        _, _, increases, whole = judged(made)
        assert whole.rough() is whole
        monkeypatch.setattr("layerhess.planning.measuring.judgement.ROUGHLY", 900)
        rough = judged(made)[3].rough()
        found, wanted = rough.increase(choices), whole.increase(choices)
    interaction = np.abs(wanted - increases[np.arange(3), choices].sum(1)).max()
    assert 0.0 < np.abs(found - wanted).max() < 0.3 * interaction
    assert np.corrcoef(found, wanted)[0, 1] > 0.99


def test_too_few_rows_are_not_used() -> None:
    made = lh.Objective(Branches().double(), (X, Y), CE)
    with made.session():
        meter = Meter(made, room=Room(outputs=0.5 * 30 * 3 * 8 * 2.0))
        assert meter.float_model.share == pytest.approx(0.5) and float_outputs(meter.float_model, ALONE) is None
        assert float_outputs(Meter(made).float_model, ALONE) is not None


def test_the_model_is_not_touched() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    made = lh.Objective(model, (X, Y), CE)
    with made.session():
        judged(made)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_batches_without_a_loss_do_not_forbid_predictions() -> None:
    model, nothing = Branches().double(), torch.full((4,), -100)
    data = [(X[:11], Y[:11]), (X[:0], Y[:0]), (X[:4], nothing), (X[11:], Y[11:])]
    choices = every(3)
    found = []
    for given in (data, [(X, Y)]):
        made = lh.Objective(model, given, CE)
        with made.session():
            found.append(judged(made)[3].increase(choices))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("layers", "options"), [(1, 3), (3, 2), (7, 4)])
def test_the_quadratic_is_the_sum_over_pairs(layers: int, options: int) -> None:
    rng = np.random.default_rng(layers)
    table = rng.normal(size=(layers * options,) * 2)
    table = table + table.T
    near = np.repeat(rng.integers(0, options, (1, layers)), 60, axis=0)
    for row in near:
        row[rng.integers(0, layers, rng.integers(0, 4))] = rng.integers(0, options)
    for choices in (rng.integers(0, options, (50, layers)), near, near[:1], near[:0]):
        places = np.arange(layers) * options + choices
        pairs = list(itertools.combinations(range(layers), 2))
        wanted = [sum(table[row[i], row[j]] for i, j in pairs) for row in places]
        np.testing.assert_allclose(quadratic(table, choices, options), wanted, atol=1e-12)
