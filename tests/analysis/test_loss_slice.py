"""The loss along directions: closed forms, dense Hessians, the loss itself; the model comes back; refusals."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from ctrl_c import press_ctrl_c
from delicate import BATCHES, delicate
from references import dense
from witness import untouched
from zoo_losses import cross_entropy_totals

Direction = dict[str, Tensor]


def network(activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3)).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 4, generator=rng).double(), torch.randint(3, (n,), generator=rng)) for n in (11, 4, 1, 8)]


def objective(model: nn.Module, **options: Any) -> lh.Objective:
    return lh.Objective(model, batches(), nn.CrossEntropyLoss(), **options)


def loss_at(model: nn.Module, *moves: tuple[float, Direction]) -> float:
    """The mean loss of a copy that was moved, over all examples at once."""
    far = copy.deepcopy(model)
    with torch.no_grad():
        for alpha, direction in moves:
            for name, parameter in far.named_parameters():
                if name in direction:
                    parameter += alpha * direction[name]
        x, y = torch.cat([x for x, _ in batches()]), torch.cat([y for _, y in batches()])
        return float(nn.functional.cross_entropy(far(x), y))


def random_direction(model: nn.Module, names: tuple[str, ...], seed: int) -> Direction:
    rng = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    return {name: 0.1 * torch.randn(parameters[name].shape, generator=rng).double() for name in names}


def test_of_a_quadratic_loss_the_quadratic_is_the_loss() -> None:
    """Least squares: L(w + a d) = mean (x'w + b + a x'd - y)^2, from NumPy."""
    rng = np.random.default_rng(0)
    x, y, w, d = (
        rng.standard_normal((9, 3)),
        rng.standard_normal((9, 1)),
        rng.standard_normal(3),
        rng.standard_normal(3),
    )
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(w)[None])
    data = [(torch.from_numpy(x[:2]), torch.from_numpy(y[:2])), (torch.from_numpy(x[2:]), torch.from_numpy(y[2:]))]
    direction = {"weight": torch.from_numpy(d)[None]}
    found = lh.loss_slice(lh.Objective(model, data, nn.MSELoss()), direction, radius=2.5, points=7)
    truth = np.array([np.mean((x @ (w + a * d) - y[:, 0]) ** 2) for a in np.linspace(-2.5, 2.5, 7)])
    assert found.alpha == pytest.approx(np.linspace(-2.5, 2.5, 7))
    assert found.loss == pytest.approx(truth, rel=1e-12) and found.quadratic == pytest.approx(truth, rel=1e-12)
    assert found.slope == pytest.approx(float(np.mean(2 * (x @ w - y[:, 0]) * (x @ d))), rel=1e-12)
    assert found.curvature == pytest.approx(float(np.mean(2 * (x @ d) ** 2)), rel=1e-12)
    assert found.agrees and found.norms == pytest.approx((np.linalg.norm(d),))
    assert abs(found.difference_curvature - found.curvature) <= found.difference_error  # type: ignore[operator]


@pytest.mark.parametrize("names", [("0.weight",), ("0.bias", "2.weight"), ("0.weight", "0.bias", "2.weight", "2.bias")])
def test_slope_and_curvature_are_those_of_the_dense_hessian_and_the_losses_those_of_a_moved_copy(
    names: tuple[str, ...],
) -> None:
    model = network()
    direction = random_direction(model, names, 1)
    found = lh.loss_slice(objective(model, batch_size=3), direction, radius=2.0, points=5)
    reference = dense.reference_for(model, batches(), cross_entropy_totals)
    flat = torch.cat([direction[name].reshape(-1) for name in reference.places if name in direction]).numpy()
    assert found.curvature == pytest.approx(flat @ reference.block(list(names)) @ flat, rel=1e-9)
    truth = [loss_at(model, (float(a), direction)) for a in found.alpha]
    assert found.loss == pytest.approx(truth, rel=1e-12) and found.value == pytest.approx(loss_at(model), rel=1e-12)
    h = 1e-6
    slope = (loss_at(model, (h, direction)) - loss_at(model, (-h, direction))) / (2 * h)
    assert found.slope == pytest.approx(slope, rel=1e-6, abs=1e-9)
    assert isinstance(found.slope, float) and isinstance(found.curvature, float)
    expected = found.value + found.alpha * found.slope + found.alpha**2 * found.curvature / 2
    assert found.quadratic == pytest.approx(expected, rel=1e-12)
    assert found.agrees and found.parameters == names
    assert found.difference_error < 1e-4 * abs(found.curvature)  # type: ignore[operator]


def test_two_directions_give_a_surface_whose_first_index_is_the_first_direction() -> None:
    model = network()
    first, second = random_direction(model, ("0.weight", "0.bias"), 1), random_direction(model, ("2.weight",), 2)
    found = lh.loss_slice(objective(model), (first, second), radius=1.5, points=5)
    truth = [[loss_at(model, (float(a), first), (float(b), second)) for b in found.alpha] for a in found.alpha]
    assert found.loss == pytest.approx(np.array(truth), rel=1e-12) and found.loss[0, 4] != found.loss[4, 0]
    reference = dense.reference_for(model, batches(), cross_entropy_totals)
    names = ["0.weight", "0.bias", "2.weight"]
    rows = [torch.cat([d.get(n, torch.zeros(())).expand(s).reshape(-1) for n, s in _shapes(model, names)]).numpy()
            for d in (first, second)]  # fmt: skip
    block = reference.block(names)
    curvature = np.array([[u @ block @ v for v in rows] for u in rows])
    assert found.curvature == pytest.approx(curvature, rel=1e-9)
    assert found.agrees
    assert np.all(np.abs(found.difference_curvature - curvature) <= found.difference_error + 1e-9)
    a, b = np.meshgrid(found.alpha, found.alpha, indexing="ij")
    slope = np.asarray(found.slope)
    bent = (curvature[0, 0] * a**2 + 2 * curvature[0, 1] * a * b + curvature[1, 1] * b**2) / 2
    assert found.quadratic == pytest.approx(found.value + slope[0] * a + slope[1] * b + bent, rel=1e-9)


def _shapes(model: nn.Module, names: list[str]) -> list[tuple[str, torch.Size]]:
    return [(name, p.shape) for name, p in model.named_parameters() if name in names]


def test_along_an_eigenvector_the_curvature_is_its_eigenvalue() -> None:
    model = network()
    analysis = lh.analyze(objective(model), tol=1e-8)
    for spectrum in analysis.spectra():
        found = lh.loss_slice(objective(model), spectrum.eigenvectors[0], radius=0.1, points=3)
        assert found.curvature == pytest.approx(spectrum.eigenvalues[0], rel=1e-7)
        assert found.norms == pytest.approx((1.0,)) and found.parameters == spectrum.parameters


def test_a_sum_is_sliced_as_a_sum() -> None:
    model, direction = network(), random_direction(network(), ("2.weight",), 1)
    mean = lh.loss_slice(objective(model), direction, points=3)
    total = lh.loss_slice(lh.Objective(model, batches(), nn.CrossEntropyLoss(reduction="sum")), direction, points=3)
    assert total.loss == pytest.approx(24 * mean.loss, rel=1e-12) and total.agrees
    assert (total.slope, total.curvature) == pytest.approx((24 * mean.slope, 24 * mean.curvature), rel=1e-9)


def test_in_float32_the_curvature_is_confirmed_within_its_larger_errors() -> None:
    single = network().float()
    data = [(x.float(), y) for x, y in batches()]
    direction = {name: part.float() for name, part in random_direction(single, ("2.weight",), 4).items()}
    found = lh.loss_slice(lh.Objective(single, data, nn.CrossEntropyLoss()), direction, points=3)
    exact = lh.loss_slice(objective(single.double()), direction, points=3)
    assert found.agrees and 0.0 < found.difference_error < 0.05 * abs(found.curvature)  # type: ignore[operator]
    assert found.difference_error > exact.difference_error  # type: ignore[operator]
    assert abs(found.value - exact.value) <= found.rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_differences_of_smooth_losses_agree_however_far_and_flat_they_are(dtype: torch.dtype) -> None:
    """Steps that are too large can agree by chance with their neighbours, and not with the curvature."""
    for seed in (*range(12), 27, 66, 75, 99):
        torch.manual_seed(seed)
        activation = (nn.Tanh(), nn.GELU(), nn.Softplus())[seed % 3]
        model = nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 2)).to(dtype)
        data = (torch.randn(30, 4).to(dtype), torch.randint(2, (30,)))
        far = 10.0 ** (seed % 4 - 2)
        found = lh.loss_slice(lh.Objective(model, data, nn.CrossEntropyLoss()), ("random", seed), far, points=3)
        assert found.agrees, (seed, found)
        apart = abs(found.difference_curvature - found.curvature)
        assert apart <= found.difference_error  # type: ignore[operator]


class Ramp(nn.Module):
    """mean |w - x|: straight but for a kink at every example, so that no second derivative shows how it bends."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.b = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.w - x) + torch.relu(x - self.w) + self.b**2


def test_a_loss_that_bends_in_its_kinks_is_said_to_differ_from_its_curvature() -> None:
    x = torch.linspace(-1.0, 1.0, 20_000).double()[:, None]  # several kinks within the least step
    loss = lh.batch_loss(lambda model, batch: (model(batch[0]).sum(), float(len(batch[0]))))
    found = lh.loss_slice(lh.Objective(Ramp(), (x, x), loss), {"w": torch.ones(1).double()}, points=5)
    assert found.curvature == 0.0 and found.difference_curvature == pytest.approx(1.0, rel=0.05)
    assert not found.agrees and "DIFFERS" in found.status and "kinks" in found.status


def test_far_losses_may_be_infinite() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    loss = lh.batch_loss(lambda m, batch: (m(batch).square().exp().sum(), float(len(batch))))
    found = lh.loss_slice(
        lh.Objective(model, [torch.ones(2, 1).double()], loss), {"weight": torch.ones(1, 1)}, radius=1e3, points=3
    )
    assert np.isinf(found.loss[[0, 2]]).all() and math.isfinite(found.loss[1]) and np.isfinite(found.quadratic).all()


# -- the model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["as-is", "eval"])
def test_a_slice_leaves_no_trace(mode: str) -> None:
    model = delicate()
    with untouched(model):
        found = lh.loss_slice(
            lh.Objective(model, BATCHES, nn.CrossEntropyLoss(), mode=mode), (("random", 0), ("random", 1)), points=3
        )
    assert found.loss.shape == (3, 3) and np.isfinite(found.loss).all()


@pytest.mark.parametrize("at", [1, 30, 100])
@pytest.mark.parametrize("how", ["raises", "ctrl-c"])
def test_the_model_is_as_it_was_after_an_error_and_after_ctrl_c(how: str, at: int) -> None:
    """In the middle of the evaluations, when the weights are elsewhere."""
    model, calls, there = delicate(), 0, dict[str, bool]()
    first = model.first.weight.detach().clone()

    def progress(done: int, expected: int) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            there["moved"] = not torch.equal(model.first.weight, first)
            if how == "raises":
                raise RuntimeError("stop here")
            press_ctrl_c()

    kind = RuntimeError if how == "raises" else KeyboardInterrupt
    with untouched(model), pytest.raises(kind):
        lh.loss_slice(lh.Objective(model, BATCHES, nn.CrossEntropyLoss()), ("random", 0), progress=progress)
    assert calls == at and there["moved"] == (at > 1)


def test_progress_counts_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    lh.loss_slice(objective(network()), ("random", 0), points=5, progress=lambda *now: told.append(now))
    assert [done for done, _ in told] == list(range(1, told[-1][1] + 1)) and len({n for _, n in told}) == 1


# -- refusals ----------------------------------------------------------------------------------------------------------

GOOD = torch.ones(3, 5)


@pytest.mark.parametrize(
    ("direction", "said"),
    [
        ({"3.weight": GOOD}, "unknown parameters: 3.weight"),
        ({"2.weight": torch.ones(5, 3)}, "shape (5, 3) for '2.weight', whose shape is (3, 5)"),
        ({"2.weight": torch.zeros(3, 5)}, "is zero"),
        ({"2.weight": GOOD, "2.bias": torch.tensor([1.0, float("nan"), 0.0])}, "a NaN or an infinity"),
        ({"2.weight": GOOD.long()}, "no tensor of real numbers"),
        ({"2.weight": GOOD.numpy()}, "no tensor of real numbers"),
        ({}, "has no tensor"),
        (GOOD, "the direction is Tensor"),
        ("random", "the direction is 'random'"),
        (("random",), "a random direction is"),
        (("random", 0.5), "a random direction is"),
        (({"2.weight": GOOD},) * 3, "a tuple of 3"),
        (({"2.weight": GOOD}, {"2.weight": GOOD.T}), "shape (5, 3)"),
    ],
)
def test_unusable_directions_are_refused_before_any_work(direction: Any, said: str) -> None:
    model = network()
    refusing = lh.Objective(model, batches(), lh.batch_loss(lambda m, b: pytest.fail("the loss was computed")))
    with untouched(model), pytest.raises(lh.InputError) as caught:
        lh.loss_slice(refusing, direction)
    assert said in str(caught.value) and caught.value.what_to_do


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"radius": 0.0}, "radius"),
        ({"radius": float("inf")}, "radius"),
        ({"radius": True}, "radius"),
        ({"points": 2}, "points"),
        ({"points": 5.5}, "points"),
        ({"within": "nothing.*"}, "within"),
        ({"direction": {"2.weight": GOOD}, "within": "2.weight"}, "within"),
    ],
)
def test_unusable_arguments_are_refused(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(lh.InputError) as caught:
        lh.loss_slice(objective(network()), **{"direction": ("random", 0), **changes})
    assert caught.value.where == where


def test_a_frozen_parameter_and_no_objective_are_refused() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    with pytest.raises(lh.InputError, match="frozen parameters: 0.weight"):
        lh.loss_slice(objective(model), {"0.weight": torch.ones(5, 4)})
    with pytest.raises(lh.InputError, match="the objective is Sequential"):
        lh.loss_slice(model, ("random", 0))  # type: ignore[arg-type]


def test_what_analyze_refuses_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    with untouched(model), pytest.raises((lh.InputError, lh.CheckError)):
        lh.loss_slice(objective(model), ("random", 0))
