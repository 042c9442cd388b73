"""What the checks measure, number by number: on matrices, losses and models whose faults were put in with a size."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from layerhess.checks import rounding
from layerhess.checks.factors import Licence, _off
from layerhess.checks.finite_differences import finite_differences, scaled_direction
from layerhess.checks.forward_trace import Trace, non_finite_weight, state_versions, trace
from layerhess.checks.jacobian import Moves, disagreements
from layerhess.checks.loss import check_additivity, check_determinism
from layerhess.checks.output import check_cut, check_items, notes_on_convexity
from layerhess.checks.randomness import randomness_refused, refuse_state_that_follows, repeats
from layerhess.checks.rounding import OutputError, RoundingMeter, output_error
from layerhess.checks.sample import Sample
from layerhess.checks.second_derivative import check_second_derivative
from layerhess.checks.self_check import SelfCheck
from layerhess.checks.suspects import SKIP, UNKNOWN, WEIGHT_NORM, advice, failure, refuse_failed, suspects_of
from layerhess.checks.symmetry import Symmetry, asymmetric_tensors, size_of_product, symmetry
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.output_graph import FisherGraph, GaussNewtonGraph
from layerhess.errors import CheckError, InputError
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.blocks import make_block
from layerhess.objective.objective import Objective
from layerhess.results.record import Check

N = 12
CPU = torch.device("cpu")
CE = nn.CrossEntropyLoss()
self_check: Any = importlib.import_module("layerhess.checks.self_check")  # the module, not its function


def mlp(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), *(between or [nn.Tanh()]), nn.Linear(5, 3)).double()


X = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).double()
Y = torch.arange(9) % 3


def objective(model: nn.Module | None = None, loss: Any = CE, data: Any = None, **options: Any) -> Objective:
    return Objective(model or mlp(), data or (X, Y), loss, **options)


def full_of(made: Objective) -> Any:
    return make_block(FULL, made.parameters)


# -- symmetry ----------------------------------------------------------------------------------------------------------


class Dense:
    """A pass that multiplies by a matrix, which need not be symmetric."""

    def __init__(self, matrix: np.ndarray, model: Any = None) -> None:
        self.matrix = torch.from_numpy(matrix)
        self.objective = model or SimpleNamespace(device=CPU)
        self.vectors: list[Tensor] = []

    def run(self, requests: Mapping[str, Any]) -> dict[str, Tensor]:
        start, places = 0, {}
        if isinstance(self.objective, Objective):
            for name, p in self.objective.parameters.items():
                places[name] = range(start, start + p.numel())
                start += p.numel()
        made = {}
        for key, request in requests.items():
            self.vectors.append(request.vectors)
            own = [i for name in request.block.parameters for i in places.get(name, range(N))]
            made[key] = request.vectors @ self.matrix[np.ix_(own, own)].T
        return made


def one_tensor() -> Any:
    return {"b": make_block("b", {"w": torch.zeros(N)})}


def asymmetric(size: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, N, N))
    return (a + a.T) + size * (b - b.T)


@pytest.mark.parametrize("size", [0.0, 1e-6, 0.3])
def test_asymmetry_is_that_of_two_random_vectors_and_of_one_with_its_product(size: float) -> None:
    matrix = asymmetric(size)
    found = symmetry(Dense(matrix), one_tensor(), 3)["b"]  # type: ignore[arg-type]
    u, v = (random_unit(N, 3, "symmetry b", i).numpy() for i in (0, 1))
    norm = max(np.linalg.norm(matrix @ u), np.linalg.norm(matrix @ v))
    random = abs(v @ matrix @ u - u @ matrix @ v) / norm * math.sqrt(N)
    w = matrix @ u / np.linalg.norm(matrix @ u)
    steered = abs(w @ matrix @ u - u @ matrix @ w) / max(np.linalg.norm(matrix @ u), abs(u @ matrix @ w))
    assert found.norm == pytest.approx(norm, rel=1e-12)
    assert found.asymmetry == pytest.approx(max(random, steered), rel=1e-6, abs=1e-14)
    assert (found.asymmetry > 1e-9) is (size > 0.0)
    assert size_of_product(Dense(matrix), one_tensor()["b"], 3) == pytest.approx(np.linalg.norm(matrix @ u))  # type: ignore[arg-type]


def test_nothing_and_not_a_number() -> None:
    assert symmetry(Dense(np.zeros((N, N))), one_tensor(), 0)["b"] == Symmetry(0.0, 0.0)  # type: ignore[arg-type]
    broken = asymmetric(0.0)
    broken[0, 0] = np.nan
    assert math.isnan(symmetry(Dense(broken), one_tensor(), 0)["b"].asymmetry)  # type: ignore[arg-type]


def test_of_one_dimension_nothing_can_be_asymmetric() -> None:
    class Scalar(Dense):
        def run(self, requests: Mapping[str, Any]) -> dict[str, Tensor]:
            return {key: 3.0 * request.vectors for key, request in requests.items()}

    found = symmetry(Scalar(np.eye(1)), {"b": make_block("b", {"w": torch.zeros(1)})}, 0)["b"]  # type: ignore[arg-type]
    assert found == Symmetry(0.0, 3.0)


def test_parts_of_less_curvature_are_lifted_so_that_their_faults_show() -> None:
    """Two tensors, the second with a thousandth of the curvature and all of the fault."""
    matrix = np.zeros((N, N))
    matrix[:6, :6] = 1e3 * asymmetric(0.0)[:6, :6]
    matrix[6:, 6:] = asymmetric(1.0)[:6, :6]
    both = {"b": make_block("b", {"w": torch.zeros(6), "v": torch.zeros(6)})}

    class Two(Dense):
        def run(self, requests: Mapping[str, Any]) -> dict[str, Tensor]:
            self.vectors += [request.vectors for request in requests.values()]
            return {key: request.vectors @ self.matrix.T for key, request in requests.items()}

    judge = Two(matrix)
    found = symmetry(judge, both, 0)["b"]  # type: ignore[arg-type]
    u = torch.stack([random_unit(N, 0, "symmetry b", i) for i in (0, 1)])
    applied = u @ judge.matrix.T
    rms = [float(part.square().mean().sqrt()) for part in applied.split(6, dim=1)]
    factor = min(math.sqrt(rms[0] / rms[1]), 30.0)
    assert factor > 5.0
    scaled = u.clone()
    scaled[:, 6:] *= factor
    torch.testing.assert_close(judge.vectors[1], scaled)
    balanced = (scaled @ judge.matrix.T).clone()
    balanced[:, 6:] *= factor
    gap = abs(float(u[1] @ balanced[0] - u[0] @ balanced[1])) / float(balanced.norm(dim=1).max()) * math.sqrt(N)
    assert found.asymmetry >= gap * (1 - 1e-9) > 10 * symmetry(Two(matrix), one_tensor(), 0)["b"].asymmetry  # type: ignore[arg-type]


def test_asymmetric_tensors_are_those_above_the_limit_that_are_not_zero() -> None:
    class Four(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in "abcd":
                self.register_parameter(name, nn.Parameter(torch.zeros(3).double()))

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.a + self.b + self.c + self.d)

    made = Objective(Four(), (torch.ones(1, 3).double(), torch.ones(1, 3).double()), nn.MSELoss())
    matrix = np.zeros((N, N))
    for place, (scale, size) in enumerate([(1.0, 0.0), (1.0, 0.5), (1e-15, 0.5), (0.1, 0.01)]):
        own = slice(3 * place, 3 * place + 3)
        matrix[own, own] = scale * asymmetric(size, seed=place)[:3, :3]
    names = list(made.parameters)
    found = asymmetric_tensors(Dense(matrix, made), names, 0, 1e-4)  # type: ignore[arg-type]
    assert set(found) == {"b", "d"}  # c is rounding beside the others
    alone = {n: symmetry(Dense(matrix, made), {n: make_block(n, {n: made.parameters[n]})}, 0)[n] for n in names}  # type: ignore[arg-type]
    assert {n: alone[n].asymmetry for n in found} == found
    assert set(asymmetric_tensors(Dense(matrix, made), names, 0, found["d"] * 1.01)) == {"b"}  # type: ignore[arg-type]


# -- which member of a block is the worst ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "words"),
    [({"0.weight": 0.1, "0.bias": 0.4}, "asymmetric by 4.0e-01"), ({"0.weight": 0.4, "0.bias": 0.1}, "by 4.0e-01"),
     ({"0.weight": 0.4, "0.bias": math.nan}, "NaN or infinite"), ({"0.weight": math.nan, "0.bias": 0.4}, "NaN or infin")],
)  # fmt: skip
def test_a_block_is_as_wrong_as_its_worst_member(
    measured: dict[str, float], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = objective()
    monkeypatch.setattr(self_check, "asymmetric_tensors", lambda judge, names, seed, limit: measured)
    monkeypatch.setattr(self_check, "symmetry", lambda judge, blocks, seed: {"rest": Symmetry(1e-9, 1.0)})
    blocks = {"0": make_block("0", {n: made.parameters[n] for n in ("0.weight", "0.bias")})}
    blocks["2"] = make_block("2", {n: made.parameters[n] for n in ("2.weight", "2.bias")})
    found = SelfCheck(Trace())
    self_check._locate(made, None, blocks, {"0": 0.4}, 1e-3, 0, found)  # type: ignore[arg-type]
    assert (
        list(found.failed) == ["0"] and words in found.failed["0"].detail and "0 (Linear)" in found.failed["0"].module
    )


@pytest.mark.parametrize("left", [1e-9, 0.5])
def test_a_fault_that_no_tensor_explains_fails_what_is_wrong_or_everything(
    left: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = objective()
    monkeypatch.setattr(self_check, "asymmetric_tensors", lambda judge, names, seed, limit: {})
    monkeypatch.setattr(self_check, "symmetry", lambda judge, blocks, seed: {"rest": Symmetry(left, 1.0)})
    blocks = {n: make_block(n, {n: made.parameters[n]}) for n in ("0.weight", "2.weight")}
    found = SelfCheck(Trace())
    self_check._locate(made, None, blocks, {"0.weight": 0.2}, 1e-3, 0, found)  # type: ignore[arg-type]
    assert list(found.failed) == (["0.weight", "2.weight"] if left > 1e-3 else ["0.weight"])
    detail = found.failed["0.weight"].detail
    assert ("part of one that is asymmetric by 5.0e-01 as a whole" in detail) is (left > 1e-3)
    assert ("asymmetric by 2.0e-01" in detail) is (left < 1e-3)


# -- finite differences ------------------------------------------------------------------------------------------------


class BentTanh(torch.autograd.Function):
    """tanh with a right first derivative, and a second one that is ``wrong`` times too large."""

    wrong = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return BentSlope.apply(g, *ctx.saved_tensors)


class BentSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return g * (1 - x.tanh() ** 2)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> Any:
        g, x = ctx.saved_tensors
        t = x.tanh()
        return h * (1 - t**2), BentTanh.wrong * h * g * (-2 * t * (1 - t**2))


class Bent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return BentTanh.apply(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("wrong", [1.0, 1.01, 3.0])
def test_differences_of_gradients_agree_or_say_by_how_much_not(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BentTanh, "wrong", wrong)
    made = objective(mlp(Bent()))
    right = objective(mlp(nn.Tanh()))
    blocks = {n: make_block(n, {n: p}) for n, p in made.parameters.items()}
    before = {n: p.detach().clone() for n, p in made.parameters.items()}
    counters = Counters()
    with made.session(), right.session():
        judged, step = finite_differences(made, (X, Y), blocks, full_of(made), 5, counters)
        direction = scaled_direction(made, full_of(made), 5)
        names = list(made.parameters)
        bad = HessianGraph(made, (X, Y), names, Counters()).product(names, direction)
        good = HessianGraph(right, (X, Y), names, Counters()).product(names, direction)
    assert set(judged) == set(names) and 0.0 < step < 1e-4
    for name, ours, theirs in zip(names, bad, good, strict=True):
        assert ours is not None and theirs is not None
        off = float((ours - theirs).norm() / ours.norm())
        assert judged[name] == pytest.approx(off, rel=1e-2, abs=1e-6), name
    for name, p in made.parameters.items():
        torch.testing.assert_close(p.detach(), before[name], rtol=0, atol=1e-15)
    assert counters.total("forwards") == counters.total("backwards")


def test_the_direction_is_as_long_as_each_tensor_and_padding_stays() -> None:
    model = nn.Sequential(nn.Embedding(5, 2, padding_idx=3), nn.Linear(2, 3)).double()
    with torch.no_grad():
        model[1].bias.zero_()
    made = Objective(model, (torch.tensor([0, 3]), torch.tensor([0, 1])), CE)
    direction = scaled_direction(made, full_of(made), 0)
    sizes = {n: float(p.detach().norm()) for n, p in made.parameters.items()}
    least = min(size for size in sizes.values() if size > 0.0)
    for name, part in direction.items():
        assert float(part.norm()) == pytest.approx(sizes[name] or least), name
    assert not direction["0.weight"][3].any() and direction["0.weight"][2].any()
    drawn = random_unit(full_of(made).numel, 0, "finite differences", 0)
    own = full_of(made).split(drawn)["1.weight"]
    torch.testing.assert_close(direction["1.weight"] / direction["1.weight"].norm(), own / own.norm())


# -- the Jacobian ------------------------------------------------------------------------------------------------------


class BentLine(torch.autograd.Function):
    """2 x; its backward is 2 g, and the derivative of that in g is 2 ``wrong``: J is not the transpose of J'."""

    wrong = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2.0 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return BentBack.apply(g)


class BentBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor) -> Tensor:
        return 2.0 * g

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> Any:
        return 2.0 * BentLine.wrong * h


class Line(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return BentLine.apply(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("wrong", [1.0, 1.01, 0.5, math.nan])
def test_products_with_the_jacobian_and_its_transpose(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """J is ``wrong`` times what it should be below the fault: lengths are off by wrong^2, forms by wrong."""
    monkeypatch.setattr(BentLine, "wrong", wrong)
    made = objective(mlp(Line()))
    names = list(made.parameters)
    with made.session():
        found = disagreements(made, (X, Y), names, GaussNewtonGraph, 0, Counters())
        moves = Moves(made, (X, Y), full_of(made), GaussNewtonGraph, 0, Counters())
        off = moves.disagreement(["0.weight"])
        fine = moves.disagreement(["2.weight"])
    assert fine == pytest.approx(0.0, abs=1e-8) and moves.error < 1e-4
    for name in ("2.weight", "2.bias"):
        assert found[name] < 1e-12
    for name in ("0.weight", "0.bias"):
        expected = math.inf if math.isnan(wrong) else abs(wrong**2 - wrong) / max(wrong**2, wrong)
        assert found[name] == pytest.approx(expected, abs=1e-12)
    if not math.isnan(wrong):
        assert off == pytest.approx(abs(wrong - 1.0) / wrong, rel=1e-4, abs=1e-8)


def test_what_the_output_does_not_depend_on_is_absent() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    made = objective(Partly())
    with made.session():
        found = disagreements(made, (X, Y), list(made.parameters), GaussNewtonGraph, 0, Counters())
        moves = Moves(made, (X, Y), full_of(made), GaussNewtonGraph, 0, Counters())
        assert moves.disagreement(["unused.weight"]) is None and moves.disagreement(["used.weight"]) is not None
    assert set(found) == {"used.weight", "used.bias"}


# -- the output --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 1e-6, 1e-2])
def test_a_gradient_beside_the_output_is_measured(weight: float) -> None:
    model = mlp()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) + weight * model[2].bias.square().sum()

    made = objective(model, loss)
    names = list(made.parameters)
    with made.session():
        inputs = list(made.parameters.values())
        whole = torch.autograd.grad(9 * loss(model(X), Y), inputs)
        alone = torch.autograd.grad(9 * F.cross_entropy(model(X), Y), inputs)
        share = float((whole[3] - alone[3]).norm() / whole[3].norm())
        if weight > 1e-3:
            with pytest.raises(CheckError, match=f"{share:.1e} of a gradient") as caught:
                check_cut(made, [(X, Y)], [4], names, Counters())
            assert caught.value.where == "parameters 2.bias"
        else:
            detail = check_cut(made, [(X, Y)], [4], names, Counters()).detail
            figure = float(detail.split("to ")[-1])
            assert figure == pytest.approx(share, rel=0.1, abs=1e-12)


def test_a_gradient_that_is_not_finite_names_its_batch() -> None:
    made = objective(mlp(), lambda o, t: (o - o.detach()).square().sum(1).sqrt().mean())
    with made.session(), pytest.raises(InputError, match="gradient is NaN or infinite") as caught:
        check_cut(made, [(X, Y)], [4], list(made.parameters), Counters())
    assert caught.value.where.startswith("batch 4, 0.weight, 0.bias, 2.weight")


LOSSES: dict[str, tuple[Any, tuple[bool, bool]]] = {
    "convex": (CE, (False, False)),
    "linear": (nn.L1Loss(), (True, False)),
    "concave": (lambda o, t: -(o**2).mean(), (False, True)),
    "indefinite in one item": (
        lambda o, t: (o**2 * torch.tensor([1.0] * 3 + [-1.0] + [1.0] * 5)[:, None]).mean(),
        (False, True),
    ),
    "quadratic": (lambda o, t: (o**2).mean(), (False, False)),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_what_is_said_of_a_losss_convexity(kind: str) -> None:
    loss, (linear, indefinite) = LOSSES[kind]
    data = (X, torch.zeros(9, 3).double()) if kind == "linear" else (X, Y)
    made = objective(loss=loss, data=data)
    with made.session():
        notes = notes_on_convexity(made, [data], 0, Counters())
        nothing = notes_on_convexity(made, [(X[:0], data[1][:0])], 0, Counters()) if kind == "convex" else []
    assert [("linear in" in n, "not convex" in n) for n in notes] == [(linear, indefinite)] * (linear or indefinite)
    assert nothing == []


def test_items_must_add_up_and_be_alone() -> None:
    made = objective()
    with made.session():
        detail = check_items(made, [(X, Y)], FisherGraph, torch.float64, Counters()).detail
    assert all(float(figure) < 1e-12 for figure in re.findall(r"to (\d\S+)", detail))

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            z = self.inner(x)
            return z - z.mean(dim=0)

    tied = objective(Centred())
    with tied.session():
        with pytest.raises(InputError, match="depends on the other items") as caught:
            check_items(tied, [(X, Y)], FisherGraph, torch.float64, Counters())
        z = tied.model.inner(X)
        whole = F.cross_entropy(z - z.mean(0), Y, reduction="none")
        parts = torch.cat(
            [F.cross_entropy(p - p.mean(0), y, reduction="none") for p, y in ((z[:3], Y[:3]), (z[3:], Y[3:]))]
        )
        change = float(((whole - parts).abs().max() / whole.max()).detach())
    assert f"{change:.1e}" in str(caught.value) and caught.value.where == "Centred"
    summed = objective(loss=lh.batch_loss(lambda model, batch: (CE(model(batch[0]), batch[1]), 1)))
    with summed.session(), pytest.raises(InputError, match="do not add up"):
        check_items(summed, [(X, Y)], FisherGraph, torch.float64, Counters())


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_values_repeat_up_to_the_order_of_summation(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    assert repeats(2.0, 2.0 * (1 + 99 * eps), dtype) and not repeats(2.0, 2.0 * (1 + 102 * eps), dtype)
    assert repeats(-2.0, -2.0 * (1 + 99 * eps), dtype) and not repeats(1e-9, -1e-9, dtype)
    assert repeats(0.0, 0.0, dtype) and repeats(math.inf, math.inf, dtype) and not repeats(math.nan, math.nan, dtype)


class Random(nn.Module):
    def __init__(self, size: float, train_only: bool) -> None:
        super().__init__()
        self.size, self.train_only = size, train_only

    def forward(self, x: Tensor) -> Tensor:
        return x + self.size * torch.randn(x.shape).to(x) if self.training or not self.train_only else x


class Moving(nn.Module):
    def __init__(self, weight: nn.Parameter | None = None) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1.0 + 0.1 * self.calls)


@pytest.mark.parametrize("train_only", [True, False])
def test_a_random_loss_names_its_modules_and_whether_eval_mode_helps(train_only: bool) -> None:
    made = objective(nn.Sequential(mlp(), Random(0.1, train_only)).double())
    before = torch.get_rng_state()
    with made.session():
        with pytest.raises(InputError, match="the loss is random") as caught:
            check_determinism(made, (X, Y), trace(made, (X, Y)))
        refusal = randomness_refused(made, (X, Y), 1.0, 2.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert caught.value.where == refusal.where == "active randomness in 1 (Random)" and "gave 1, then 2" in str(refusal)
    assert ("mode='eval'" in caught.value.what_to_do) is train_only and made.model.training


def test_a_tiny_randomness_is_no_rounding_and_a_state_is_called_one() -> None:
    made = objective(nn.Sequential(mlp(), Random(1e-15, False)).double())
    with made.session(), pytest.raises(InputError, match="the loss is random"):
        check_determinism(made, (X, Y), Trace())
    state = objective(nn.Sequential(mlp(), Moving()).double())
    with state.session():
        seen = trace(state, (X, Y))
        with pytest.raises(InputError, match="changes from call to call") as caught:
            check_determinism(state, (X, Y), seen)
    assert seen.stateful == ["1"] and caught.value.where == "a state kept by 1 (Moving)"
    fixed = objective()
    with fixed.session():
        assert check_determinism(fixed, (X, Y), trace(fixed, (X, Y))).detail.endswith("to 0.0e+00")
        with pytest.raises(InputError, match="changes parameters") as caught:
            check_determinism(fixed, (X, Y), Trace(changed=["a", "b"]))
    assert caught.value.where == "a, b"


def test_a_state_that_follows_the_weights_is_refused_and_the_weights_come_back() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Linear(5, 3)).double()
    made = objective(model)
    plain = objective()
    with made.session(), plain.session():
        for _ in range(50):
            made.terms((X, Y))
        before = [p.detach().clone() for p in made.parameters.values()]
        with pytest.raises(InputError, match="a state that every call adapts") as caught:
            refuse_state_that_follows(made, (X, Y), ["0"])
        assert all(torch.equal(p, old) for p, old in zip(made.parameters.values(), before, strict=True))
        refuse_state_that_follows(plain, (X, Y), ["0"])
    assert caught.value.where == "the buffers of 0"


def test_a_batch_is_held_against_its_parts() -> None:
    added = objective()
    for made, uncut, words in (
        (added, "", "equals the sum over its two parts"),
        (objective(data=[(X, torch.tensor(1))], loss=lambda o, t: o.sum()), "the sample cannot be split", "not applic"),
        (
            objective(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()),
            "BatchNorm runs in train mode",
            "not app",
        ),
        (
            objective(loss=lh.batch_loss(lambda m, b: (m(b[0]).sum() ** 2, 1))),
            "is not the sum over its examples",
            "split",
        ),
    ):
        with made.session():
            found = check_additivity(made, next(iter(made.batches())))
        assert (found.uncut == uncut or uncut in found.uncut) and words in found.check.detail
        assert bool(found.note) is (words == "split") and found.check.passed is (words != "split")
    bad = lh.batch_loss(lambda m, b: (m(b[0]).sum() ** 2, 1))
    for options, words in (
        ({"batch_size": 4}, "batch_size was given, but"),
        (
            {"data": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 9, shuffle=True)},
            "the loader shuffles",
        ),
    ):
        made = objective(loss=bad, **options)
        with made.session(), pytest.raises(InputError, match=words):
            check_additivity(made, (X, Y))


# -- the watched pass --------------------------------------------------------------------------------------------------


class Watched(nn.Module):
    """Custom functions, a call without gradients, a kink, half precision, an infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bent, self.off = nn.Linear(4, 3).double(), Bent(), nn.Linear(3, 3).double()
        self.kink = False
        self.half = False
        self.infinite = False

    def forward(self, x: Tensor) -> Tensor:
        z = self.bent(self.first(x))
        with torch.no_grad():
            gate = self.off(z)
        z = z + gate
        if self.kink:
            z = z.relu()
        if self.half:
            z = z.to(torch.bfloat16).double()
        return z / 0.0 if self.infinite else z


def test_one_watched_pass_tells_what_every_module_did() -> None:
    made = objective(Watched())
    with made.session():
        seen = trace(made, (X, Y))
    assert seen.custom == ["bent (BentTanh)"] and seen.without_grad == ["off"]
    assert seen.smooth and seen.coarsest == torch.float64 and seen.non_finite == "" and not seen.attention
    assert (
        seen.changed == seen.stateful == []
        and ("first", "linear") in seen.calls
        and ("", "cross_entropy") in seen.calls
    )
    assert seen.modules_calling({"linear"}) == ["first (linear)", "off (linear)"]
    assert seen.modules_calling({"cross_entropy"}) == ["the loss (cross_entropy)"]
    made.model.kink = made.model.half = made.model.infinite = True
    with made.session():
        other = trace(made, (X, Y))
    assert not other.smooth and other.coarsest == torch.bfloat16 and other.non_finite == "Watched"


def test_changed_weights_and_states_are_noticed() -> None:
    class Renorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.state = nn.Embedding(4, 3, max_norm=0.1).double(), Moving().double()
            self.norm = nn.BatchNorm1d(3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.state(self.embedding(x)))

    made = Objective(Renorm(), (torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 0])), CE)
    with made.session():
        seen = trace(made, made.data)
    assert seen.changed == ["embedding.weight"] and seen.stateful == ["state"]
    versions = state_versions(made.model)
    assert versions["state.calls"][0] == id(made.model.state.calls)
    assert non_finite_weight(made) == ""
    made.model.state.calls.fill_(math.inf)
    assert non_finite_weight(made) == "state.calls"
    made.model.embedding.weight.data[0, 0] = math.nan
    assert non_finite_weight(made) == "embedding.weight"


# -- suspects ----------------------------------------------------------------------------------------------------------


def test_suspects_are_the_modules_that_own_the_tensors() -> None:
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Linear(5, 3), mlp()).double()
    normed.register_parameter("own", nn.Parameter(torch.ones(())))
    made = objective(normed)
    names = list(made.parameters)
    assert suspects_of(made, names[:1]) == "(root) (Sequential)"
    assert suspects_of(made, ["0.parametrizations.weight.original0"]) == "0 (Linear), weight_norm"
    assert suspects_of(made, ["0.bias"]) == "0 (Linear)"
    assert (
        suspects_of(made, ["1.weight", "1.bias", "2.0.weight", "2.2.bias", "own"])
        == "1 (Linear); 2.0 (Linear); 2.2 (Linear)"
    )
    old = nn.utils.weight_norm(nn.Linear(4, 5))
    assert (
        suspects_of(objective(nn.Sequential(old, nn.Linear(5, 3)).double()), ["0.weight_g"])
        == "0 (Linear), weight_norm"
    )
    assert advice(["a", "b, weight_norm"], True) == WEIGHT_NORM
    assert advice(["a"], False) == UNKNOWN and advice(["a"], True) == UNKNOWN + SKIP


def test_a_failed_check_and_the_refusal_made_of_several() -> None:
    made = objective()
    seen = Trace(custom=["f (X)"], without_grad=["g"])
    one = failure("symmetry", made, "0.weight", ["0.weight"], seen, "off by 1")
    assert not one.passed and one.block == "0.weight" and one.name == "symmetry"
    assert one.detail == f"the product of block '0.weight' is off by 1; suspect module: {one.module}"
    assert one.module == (
        "0 (Linear), or the custom autograd function in f (X), or the call without gradients of g"
    )  # fmt: skip
    whole = failure("symmetry", made, FULL, ["2.weight"], Trace(), "quite off")
    error = refuse_failed(made, {}, {FULL: whole, "0.weight": one}, skippable=True)
    assert (
        "block 0.weight; module 0 (Linear)" in error.where
        and "quite off" not in str(error)
        and error.what_to_do.endswith(SKIP)
    )
    assert f"block {FULL}" in refuse_failed(made, {}, {FULL: whole}).where


# -- the second derivative ---------------------------------------------------------------------------------------------


def second(made: Objective) -> float:
    with made.session():
        return check_second_derivative(made, (X, Y), list(made.parameters), trace(made, (X, Y)), Counters())


class Cut(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(4, 5).double(), nn.Linear(5, 3).double(), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "hidden":
            with torch.no_grad():
                z = self.a(x)
            return self.b(z)
        z = self.b(self.a(x).tanh())
        if self.how == "cdist":
            return torch.cdist(z, torch.zeros(3, 3).double())
        return z.detach() if self.how == "cut" else Once.apply(z) if self.how == "once" else z


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2.0 * x

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> Any:
        return 2.0 * g


@pytest.mark.parametrize(
    ("how", "words", "where"),
    [("hidden", "gradients switched off", "a"), ("cut", "does not depend on any trainable", "loss"),
     ("once", "differentiated only once", "(root) (Once)"), ("cdist", "no second derivative", "the loss (cdist)")],
)  # fmt: skip
def test_what_cannot_be_differentiated_twice_is_named(how: str, words: str, where: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        second(objective(Cut(how)))
    assert where in caught.value.where or how == "cdist"
    assert 0.0 < second(objective(Cut(""))) < 60.0


# -- rounding ----------------------------------------------------------------------------------------------------------


class TwoPasses:
    """Products of two precisions, as they were put in."""

    def __init__(self, ours: Tensor, other: Tensor) -> None:
        self.passes = tuple(SimpleNamespace(run=lambda requests, rows=rows: {"b": rows}) for rows in (ours, other))


def meter(
    dtype: torch.dtype, sample: Sample, output: OutputError = OutputError(), coarsest: Any = None
) -> RoundingMeter:
    made = RoundingMeter(SimpleNamespace(dtype=dtype), sample, coarsest or dtype, Counters())  # type: ignore[arg-type]
    made._of_output = output
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("excess", [1.0, 8.0])
@pytest.mark.parametrize("norm", [0.5, 4.0, 1000.0])
def test_a_measured_rounding_is_three_times_the_worst_difference_scaled_to_the_data(
    norm: float, excess: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = make_block("b", {"w": torch.zeros(2)})
    ours = torch.tensor([[3.0, 4.0], [0.0, 1.0]]).double()
    other = ours + torch.tensor([[0.0, 3e-3], [4e-3, 3e-3]]).double()
    made = meter(dtype, Sample([], excess))
    monkeypatch.setattr(made, "_open", lambda: TwoPasses(ours, other).passes)
    found, how = made.measure({"b": (block, torch.eye(2).double(), norm)})["b"]
    size = max(float(other.norm(dim=1).max()), 0.01 * norm)
    error = 5e-3 * max(1.0 / excess, norm / size) * (2.0**-29 if dtype == torch.float64 else 1.0)
    assert how == "measured" and found == pytest.approx(3.0 * error, rel=1e-6)


def test_what_the_output_says_is_the_least_and_what_it_lost_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    block = make_block("b", {"w": torch.zeros(2)})
    rows = torch.ones(1, 2).double()
    for given, expected in (
        (OutputError(moved=1e-3), 3e-3), (OutputError(evaluated=2e-3), 6e-3), (OutputError(moved=5e-3, evaluated=2e-3), 15e-3),
        (OutputError(lost=7e-3), 21e-3), (OutputError(), 0.0),
    ):  # fmt: skip
        made = meter(torch.float32, Sample([]), given)
        monkeypatch.setattr(made, "_open", lambda: TwoPasses(rows, rows).passes)
        assert made.measure({"b": (block, rows, 2.0)})["b"] == (pytest.approx(2.0 * expected), "measured")


@pytest.mark.parametrize(
    ("coarsest", "factor"), [(torch.float32, 1.0), (torch.bfloat16, 2.0**16), (torch.float64, 2.0**-29)]
)
def test_without_a_copy_a_rounding_is_assumed(
    coarsest: torch.dtype, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = meter(torch.float32, Sample([]), coarsest=coarsest)
    monkeypatch.setattr(made, "_open", lambda: None)
    block = make_block("b", {"w": torch.zeros(2)})
    assert made.measure({"b": (block, torch.eye(2).double(), 3.0)})["b"] == (pytest.approx(3e-5 * factor), "assumed")


def test_a_network_is_measured_against_its_copy_and_failures_are_told() -> None:
    model = mlp().float()
    made = objective(model, data=(X.float(), Y))
    names = list(made.parameters)
    block = make_block("all", made.parameters)
    v = random_unit(block.numel, 0, "v", 0)
    with made.session(), RoundingMeter(made, Sample([(X.float(), Y)]), torch.float32, Counters()) as measuring:
        found, how = measuring.measure({"all": (block, v[None], 1.0)})["all"]
        assert measuring.failure == "" and how == "measured"
        double = made.cast(torch.float64, [(X.float(), Y)])
        with double.session():
            coarse = HessianGraph(made, (X.float(), Y), names, Counters()).product(
                names, {n: p.float() for n, p in block.split(v).items()}
            )
            fine = HessianGraph(double, (X.float().double(), Y), names, Counters()).product(names, block.split(v))
        pairs = [(a, b) for a, b in zip(coarse, fine, strict=True) if a is not None and b is not None]
        off = torch.cat([(a.double() - b).reshape(-1) for a, b in pairs]).norm() / 9
        size = torch.cat([b.reshape(-1) for _, b in pairs]).norm() / 9
        assert found == pytest.approx(3.0 * float(off) * max(1.0, 1.0 / float(size)), rel=1e-3)

    class Stuck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp().float()

        def forward(self, x: Tensor) -> Tensor:
            if x.dtype == torch.float64:
                raise ValueError("no float64\nhere")
            return self.inner(x)

    stuck = objective(Stuck(), data=(X.float(), Y))
    whole = make_block("all", stuck.parameters)
    with stuck.session(), RoundingMeter(stuck, Sample([(X.float(), Y)]), torch.float32, Counters()) as measuring:
        assert measuring.measure({"all": (whole, v[None], 2.0)})["all"] == (pytest.approx(2e-5), "assumed")
        assert measuring.failure == "ValueError: no float64"


def test_at_most_five_candidates_from_the_first_to_the_last_are_measured() -> None:
    for count in (1, 5):
        rows = torch.arange(float(count))[:, None]
        assert rounding._outermost(rows) is rows
    assert rounding._outermost(torch.arange(9.0)[:, None])[:, 0].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]


def seen(z: Tensor, again: Any) -> Any:
    return SimpleNamespace(output=z, again=again)


def test_the_outputs_own_error_is_its_movement_its_clutter_and_what_float64_lost() -> None:
    """S is z^2 on the diagonal for the loss sum z^4 / 12: everything follows in closed form."""

    def quartic(z: Tensor) -> Tensor:
        return (z**4).sum() / 12.0

    fine = torch.tensor([[1.0, 2.0], [3.0, 0.5], [0.0, 0.0]]).double()
    coarse = (fine * (1.0 + torch.tensor([[1e-3], [2e-3], [0.0]]).double())).float()
    evaluation = SimpleNamespace(surveyed=lambda model, batch, where: seen(fine, quartic))
    copied = SimpleNamespace(data=[0], evaluation=evaluation, model=None, dtype=torch.float64)
    sample = Sample([0], curvature=2.0, seen=[seen(coarse, quartic)])
    found = output_error(sample, copied)  # type: ignore[arg-type]
    r = 2.0 * ((torch.arange(2).double() * 0.6180339887498949) % 1.0) - 1.0
    exact, moved = fine**2 * r, coarse.double() ** 2 * r
    relative = ((moved - exact).norm(dim=1) / exact.norm(dim=1))[:2]
    assert found.moved == pytest.approx(float(relative.square().mean().sqrt()), rel=1e-6)
    here = (coarse**2 * r.float()).double()
    clutter = here - moved
    expected = math.hypot(float(clutter.sum(0).norm()), float(clutter.norm())) / 3 / 2.0
    assert found.evaluated == pytest.approx(expected, rel=0.5) and found.evaluated < 1e-6
    assert found.lost == 0.0  # S vanishes at zero outputs
    cross = lambda z: F.cross_entropy(z, torch.tensor([0, 0, 0]), reduction="sum")  # noqa: E731
    sure = torch.tensor([[30.0, 0.0], [31.0, 0.0], [32.0, 0.0]]).double()
    copied.evaluation = SimpleNamespace(surveyed=lambda model, batch, where: seen(sure, cross))
    lost = output_error(Sample([0], curvature=1.0, seen=[seen(sure.float(), cross)]), copied).lost  # type: ignore[arg-type]
    p = 1.0 / (1.0 + math.exp(-30.0))
    assert lost == pytest.approx(4.0 * 2.0**-52 * 0.25 / (p * (1 - p)), rel=1e-3)
    unknown = Sample([0], curvature=1.0, seen=[seen(sure.float(), None)])
    assert output_error(unknown, copied) == OutputError()  # type: ignore[arg-type]


# -- licences ----------------------------------------------------------------------------------------------------------


def test_a_licence_says_what_it_is_made_of() -> None:
    assert Licence().checks("x") == [] and Licence(reasons={"a": "why"}).sentence("a") == "why"
    found = Licence(blocks={"a": ("a",), "b": ("b",)}, agreement=2e-7, examples=12)
    assert found.checks("9 examples") == [
        Check("factors", True, "products by factors agree with exact ones to 2.0e-07 in 2 blocks, on 9 examples")
    ]
    assert found.sentence("a") == "checked on 12 examples" and found.sentence("c") == ""
    assert dataclasses.replace(found, examples=0).sentence("a") == "checked on a sample"
    one, zero = torch.tensor([3.0, 4.0]), torch.zeros(2)
    assert _off(one, 2 * one) == 0.5 and _off(zero, zero) == 0.0 and _off(one, zero) == math.inf


def places(figures: Sequence[float]) -> dict[str, Symmetry]:
    return {name: Symmetry(0.0, figure) for name, figure in zip("ab", figures, strict=False)}


@pytest.mark.parametrize("numbers", [None, [4, 7]])
def test_the_batch_that_is_not_finite_is_numbered_by_the_pass_or_by_its_place(numbers: list[int] | None) -> None:
    asked = []

    class Pass:
        objective = SimpleNamespace(device=CPU)

        def first_not_finite(self, request: Any) -> int | None:
            asked.append(request.block.name)
            return 1

    blocks = {name: make_block(name, {name: torch.zeros(3)}) for name in "ab"}
    where = self_check._not_finite_in(Pass(), blocks, places([1.0, math.nan]), 0, numbers)  # type: ignore[arg-type]
    assert asked == ["b"] and where == (" in batch 1" if numbers is None else " in batch 7")
    assert self_check._not_finite_in(Pass(), blocks, places([1.0, 2.0]), 0) == ""  # type: ignore[arg-type]


def test_words_about_precision_and_size() -> None:
    assert "runs in bfloat16" in self_check._half_precision_inside(torch.bfloat16)
    assert "about 78%" in self_check._half_precision_inside(torch.bfloat16)
    for data, words in (([(X, Y), (X[:2], Y[:2])], "11 examples"), ([(X, Y[:2])], "a sample of the batches")):
        assert self_check._size(SimpleNamespace(objective=SimpleNamespace(data=data))) == words  # type: ignore[arg-type]
    found = SelfCheck(Trace(), place=" in batch 2")
    assert self_check._asymmetric(0.25, found) == "asymmetric by 2.5e-01"
    assert self_check._asymmetric(math.nan, found) == "NaN or infinite in batch 2"
