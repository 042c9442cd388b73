"""Losses on probabilities: right with a small bound, or refused by name where torch no longer differentiates them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from layerhess.checks.saturation import LOG, POINTS, SURE, Saturation, _roughness, saturated

X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
HALF = torch.rand(12, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 2.0
HARD = (HALF > 0.25).double()
CLASSES = torch.arange(12) % 4


def network(last: nn.Module, scale: float, shift: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), last).double()
    with torch.no_grad():
        model[2].weight.mul_(scale)  # type: ignore[operator]
        model[2].bias.add_(shift)  # type: ignore[operator]
    return model


def top(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> np.ndarray:
    """The eigenvalues of the whole Hessian in float64, from the largest down."""
    model = copy.deepcopy(model).double()
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def of(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        named = {name: v.view(s) for (name, s), v in zip(shapes.items(), parts, strict=True)}
        return loss(torch.func.functional_call(model, named, (x,)), y)

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return np.linalg.eigvalsh(torch.autograd.functional.hessian(of, flat, vectorize=True).numpy())[::-1]


def entropy(p: Tensor, y: Tensor) -> Tensor:
    return -(y * p.log() + (1.0 - y) * torch.log1p(-p)).mean()


def nll(p: Tensor, y: Tensor) -> Tensor:
    return -p.log().gather(1, y[:, None]).mean()


def divergence(p: Tensor, y: Tensor) -> Tensor:
    return (y * (y / p).log()).sum(dim=1).mean()


def poisson(rate: Tensor, y: Tensor) -> Tensor:
    return (rate - y * (rate + 1e-8).log()).mean()


def gaussian(variance: Tensor, y: Tensor) -> Tensor:
    return (variance.log() + y**2 / variance).mean()


LOSSES: dict[str, tuple[nn.Module, Any, Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "bce": (nn.Sigmoid(), nn.BCELoss(), entropy, HARD),
    "bce after softmax": (nn.Softmax(dim=1), F.binary_cross_entropy, entropy, HALF),
    "nll of probabilities": (nn.Softmax(dim=1), nll, nll, CLASSES),
    "kl": (nn.Softmax(dim=1), divergence, divergence, (HALF + 0.1) / (HALF + 0.1).sum(dim=1, keepdim=True)),
    "poisson without log": (nn.Softplus(), nn.PoissonNLLLoss(log_input=False), poisson, HARD * 3.0),
    "gaussian with a variance": (nn.Softplus(), gaussian, gaussian, HALF),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_on_a_part_of_the_line_has_a_small_bound_that_holds(name: str, dtype: torch.dtype) -> None:
    last, loss, written, target = LOSSES[name]
    for scale in (1.0, 10.0):
        model, x = network(last, scale).to(dtype), X.to(dtype)
        y = target.to(dtype) if target.is_floating_point() else target
        found = lh.analyze(lh.Objective(model, (x, y), loss), tol=1e-4)
        assert found.full is not None
        value, bound = float(found.full.eigenvalues[0]), float(found.full.error_bounds[0])
        true = top(model, written, x.double(), y.double() if y.is_floating_point() else y)
        assert np.abs(true - value).min() <= bound <= 5e-3 * abs(value), (scale, value, bound)


def refusal(model: nn.Module, x: Tensor, y: Tensor, loss: Any) -> str:
    with pytest.raises(lh.CheckError) as caught:
        lh.analyze(lh.Objective(model, (x, y), loss))
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_outputs_are_refused_by_name_in_any_batch_and_however_the_loss_is_called(dtype: torch.dtype) -> None:
    model, x, y = network(nn.Sigmoid(), 1.0).to(dtype), X.to(dtype), HALF.to(dtype)
    x[-1] = 1e4 * x[-1]
    with torch.no_grad():
        model[0].weight.mul_(0.1)  # type: ignore[operator]
        model[2].weight.mul_(40.0)  # type: ignore[operator]
    by_hand = lh.batch_loss(lambda m, batch: (F.binary_cross_entropy(m(batch[0]), batch[1], reduction="sum"), 8))
    for data, loss in (((x, y), nn.BCELoss()), ([(x[:6], y[:6]), (x[6:], y[6:])], by_hand)):
        with pytest.raises(lh.CheckError) as caught:
            lh.analyze(lh.Objective(model, data, loss))
        said = str(caught.value)
        assert "BCELoss" in said and "BCEWithLogitsLoss" in said and "1e-12" in said and len(said) <= 400
    said = refusal(network(nn.Sigmoid(), 1.0, -25.0).to(dtype), X.to(dtype), y, nn.BCELoss())
    assert "BCELoss" in said and "BCEWithLogitsLoss" in said and "cancel" in said and len(said) <= 400


def test_outputs_that_are_sure_and_right_are_no_reason_to_refuse() -> None:
    model = network(nn.Sigmoid(), 40.0).float()
    y = (model(X.float()) > 0.5).float()
    with torch.no_grad():
        assert bool((model(X.float()) == 1.0).any())
    found = lh.analyze(lh.Objective(model, (X.float(), y), nn.BCELoss()))
    logits = lambda z, t: F.binary_cross_entropy_with_logits(z, t)  # noqa: E731
    true = top(model[:3], logits, X.float().double(), y.double())
    assert found.full is not None and found.full.solved
    assert np.abs(true - found.full.eigenvalues[0]).min() <= found.full.error_bounds[0] <= 0.05 * true[0]


def test_what_saturation_falsifies_is_added_up_over_calls() -> None:
    found = Saturation()
    p, y = torch.tensor([0.5, 1e-13, 1.0], dtype=torch.float64), torch.tensor([1.0, 0.25, 1.0]).double()
    with found.watching():
        nn.BCELoss()(p, y)
        F.binary_cross_entropy(input=p[:1], target=y[:1], weight=torch.tensor([2.0]))
    nn.BCELoss()(p, y)
    assert (found.outputs, found.clamped) == (4, 2)
    assert found.wrong == pytest.approx(0.25) and found.right == pytest.approx(0.75)
    assert found.slope == pytest.approx(1.5)
    Saturation(wrong=9e-8, right=1.0, slope=1e7, outputs=1).refuse()
    for bad in (Saturation(wrong=2e-7, right=1.0, outputs=1), Saturation(right=1e-9, slope=1.0, outputs=1)):
        with pytest.raises(lh.CheckError, match="BCELoss"):
            bad.refuse()


# -- losses written by hand --------------------------------------------------------------------------------------------


def by_hand(p: Tensor, y: Tensor) -> Tensor:
    return -(y * torch.log(p) + (1.0 - y) * torch.log(1.0 - p)).mean()


def away_from_zero(p: Tensor, y: Tensor) -> Tensor:
    return -(y * torch.log2(p + 1e-12) + (1.0 - y) * torch.log2(1.0 - p + 1e-12)).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("last", "shift", "loss"),
    [(nn.Sigmoid(), 25.0, by_hand), (nn.Sigmoid(), 30.0, by_hand), (nn.Sigmoid(), -30.0, by_hand),
     (nn.Sigmoid(), 30.0, away_from_zero), (nn.Softmax(dim=1), 30.0, nll)],
    ids=["25", "30", "-30", "away from zero", "softmax"],
)  # fmt: skip
def test_a_log_of_saturated_probabilities_is_named_and_so_is_the_way_out(
    last: nn.Module, shift: float, loss: Any, dtype: torch.dtype
) -> None:
    model = nn.Sequential(nn.Linear(5, 4), last).double()
    with torch.no_grad():
        model[0].bias[:3] += shift  # type: ignore[index]
        model[0].bias[3] -= shift  # type: ignore[index]
    y = CLASSES if loss is nll else HARD.to(dtype)
    with pytest.raises((lh.CheckError, lh.InputError)) as caught:  # the latter where the loss is NaN
        lh.analyze(lh.Objective(model.to(dtype), (X.to(dtype), y), loss))
    said = str(caught.value)
    assert LOG in said and "logits" in said and "BCEWithLogitsLoss" in said and "Linear" not in said
    assert len(said) <= 400


def test_outputs_that_all_saturate_are_named() -> None:
    """Where products use torch's own functions, as in half precision; the forms of our own keep their digits."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    for bias, y, loss in ((32.0, 0 * CLASSES, nn.CrossEntropyLoss()),
                          (32.0, torch.ones(len(X), 4).double(), nn.BCEWithLogitsLoss())):  # fmt: skip
        with torch.no_grad():
            model[2].bias.zero_()  # type: ignore[union-attr, operator]
            assert saturated(lh.Objective(model, (X, y), loss), [(X, y)]) == ""
            model[2].bias[: 1 if y.dim() == 1 else 4] = bias  # type: ignore[index]
        objective = lh.Objective(model, (X, y), loss)
        assert saturated(objective, [(X, y)]) == SURE
        assert lh.analyze(objective).converged


class Shifted(nn.Module):
    """One weight, and outputs that it hardly moves."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + 30.0


def test_a_gradient_that_moves_by_less_than_its_rounding_cannot_refute_a_product() -> None:
    """Its differences are all 0, and so is their error."""
    x, y = X[:3, :1], torch.tensor([[1.0], [1.0], [0.0]]).double()
    z = x.numpy() + 30.0
    true = float(np.mean(x.numpy() ** 2 * np.exp(-z) / (1.0 + np.exp(-z)) ** 2))
    found = lh.analyze(lh.Objective(Shifted(), (x, y), nn.BCEWithLogitsLoss()))
    assert found.full is not None and abs(found.full.eigenvalues[0] - true) <= found.full.error_bounds[0] < 0.05 * true


def named(loss: Callable[[Tensor], Tensor], numbers: list[float]) -> str:
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    x = torch.tensor(numbers, dtype=torch.float64)[:, None]
    objective = lh.Objective(model, (x, x), lambda o, t: loss(o).sum())
    return saturated(objective, [(x, x)])


def test_logs_of_every_spelling_are_looked_at_and_only_of_what_is_between_0_and_1() -> None:
    ends, inner, beyond = [0.5, 1e-9], [0.5, 1e-6], [1.5, 1e-9]
    spellings: list[Callable[[Tensor], Tensor]] = [
        torch.log, torch.log2, torch.log10, torch.special.entr, torch.logit, lambda p: torch.log(1.0 - p),
        lambda p: torch.log1p(-p), lambda p: torch.xlogy(torch.ones_like(p), p),
        lambda p: torch.special.xlog1py(torch.ones_like(p), -p),
    ]  # fmt: skip
    for spelled in spellings:
        assert named(spelled, ends) == LOG and named(spelled, inner) == ""
    assert named(lambda v: torch.log(v), beyond) == "" and named(lambda v: (v + 1.0).log(), ends) == ""


def test_all_outputs_saturate_or_they_are_no_cause() -> None:
    def pair(z: Tensor) -> Tensor:
        return torch.cat([z, 0.0 * z], dim=1)

    normalisations: list[Callable[[Tensor], Tensor]] = [
        lambda z: pair(z).log_softmax(dim=1)[:, 0],
        lambda z: pair(z).T.log_softmax(dim=-2)[0],
        lambda z: F.cross_entropy(pair(z), torch.zeros(len(z), dtype=torch.long)),
        lambda z: F.binary_cross_entropy_with_logits(z, torch.ones_like(z)),
    ]
    for loss in normalisations:
        assert named(loss, [20.0, -30.0]) == SURE and named(loss, [900.0, -900.0]) == SURE
        assert named(loss, [20.0, 9.0]) == "" == named(loss, [0.0, 30.0])


# -- what is left of float64 -------------------------------------------------------------------------------------------


class Exponential(nn.Module):
    """A sigmoid by hand, whose own rounding does not cancel with that of 1 - p."""

    def forward(self, z: Tensor) -> Tensor:
        return 1.0 / (1.0 + torch.exp(-z))


@pytest.mark.parametrize("last", [nn.Sigmoid(), Exponential()], ids=["Sigmoid", "by hand"])
@pytest.mark.parametrize("mixed", [False, True])
def test_digits_that_float64_loses_are_in_the_bound_or_it_is_refused(last: nn.Module, mixed: bool) -> None:
    """For outputs behind z = 10 to 21, of six of nine examples or of all, against p (1 - p) from exp(-z)."""
    answered = 0
    for seed, z in enumerate((10.0, 15.0, 17.0, 19.0, 21.0)):
        torch.manual_seed(seed)
        x, y = torch.randn(9, 3).double(), (torch.rand(9, 1) > 0.5).double()
        x[:, 2], x[:3, 2] = 1.0, 0.0 if mixed else 1.0
        linear = nn.Linear(3, 1, bias=False).double()
        with torch.no_grad():
            linear.weight[0, 2] = z
        e = np.exp(-linear(x).detach().numpy().ravel())
        true = np.linalg.eigvalsh((x.numpy().T * (e / (1.0 + e) ** 2)) @ x.numpy() / 9)[-1]
        try:
            found = lh.analyze(lh.Objective(nn.Sequential(linear, last), (x, y), by_hand), blocks="module").full
        except lh.CheckError as error:
            assert LOG in str(error)
            continue
        assert found is not None
        if found.solved:
            answered += 1
            assert abs(found.eigenvalues[0] - true) <= found.error_bounds[0] + 1e-14 * true <= 1e-3 * true
    assert answered >= (4 if mixed else 1)


@pytest.mark.parametrize("smooth", [True, False])
def test_roughness_is_the_error_of_a_row_and_neither_curvature_nor_one_kink(smooth: bool) -> None:
    rng, place = np.random.default_rng(0), np.array(POINTS)[:, None]
    curved = rng.standard_normal(50) + 1e-5 * place * rng.standard_normal(50)
    curved += (1e-10 if smooth else 1e-14) * place**2 * rng.standard_normal(50)
    curved[place[:, 0] > 0.5] += 0.0 if smooth else 1e-3
    size = np.linalg.norm(curved, axis=1).max()
    for level in (1e-12, 1e-8):
        lines = [torch.from_numpy(curved + level * rng.standard_normal(curved.shape)) for _ in range(2)]
        assert _roughness(lines, smooth) == pytest.approx(level * np.sqrt(50) / size, rel=0.4)
    assert _roughness([torch.from_numpy(curved)] * 2, smooth) <= 2e-14


@pytest.mark.parametrize("logit", [8.0, 14.0, 16.0])
def test_what_rounded_probabilities_leave_open_in_the_loss_is_said(logit: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1), nn.Sigmoid())
    with torch.no_grad():
        model[0].weight.fill_(1.0), model[0].bias.zero_()  # type: ignore[operator, union-attr]
    x = torch.tensor([[logit], [0.3], [-1.0], [logit]])
    y = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    true = float(nn.BCELoss()(torch.sigmoid(x.double()), y.double()))
    for dtype in (torch.float32, torch.float64):
        found = lh.analyze(lh.Objective(model.to(dtype), (x.to(dtype), y.to(dtype)), nn.BCELoss()))
        figures = [
            float(said.split("good to ")[1].split(" ")[0]) for said in found.notes if "the loss is good to" in said
        ]
        assert len(figures) == (dtype == torch.float32 and logit > 10.0)
        assert abs(found.loss - true) <= max([1e-5 * true, *figures])
        assert all(figure < 0.2 * true for figure in figures)
