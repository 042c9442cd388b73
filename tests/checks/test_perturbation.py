"""Rounding that is read off products at weights moved by their last digit, held against float64."""

from __future__ import annotations

import copy
import math
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from checked_network import X, Y, mlp, objective
from layerhess.checks.candidate import Candidate
from layerhess.checks.matrix_rounding import Rounding
from layerhess.checks.rounding import RoundingMeter
from layerhess.checks.sample import Sample
from layerhess.curvature.counters import Counters
from layerhess.curvature.device import Budget
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.blocks import make_block
from layerhess.objective.perturbation import perturbed, perturbed_copy

ROOM = Budget(1 << 30)
DIFFERENCE = nn.MSELoss()


class InFloat32(nn.Module):
    """A network that runs in no other dtype, as models do that cast inside."""

    def __init__(self, inner: nn.Module, stuck: bool = False) -> None:
        super().__init__()
        self.inner = inner
        self.handle = threading.Lock() if stuck else None  # no deepcopy takes it

    def forward(self, x: Tensor) -> Tensor:
        if next(self.parameters()).dtype != torch.float32:
            raise ValueError("float32 only\nhere")
        return self.inner(x)


def test_without_a_copy_in_another_precision_weights_are_moved_by_their_last_digit() -> None:
    """The error that stands in the bound is at least the true one, of every network."""
    for seed in range(8):
        torch.manual_seed(seed)
        model = mlp().float()
        narrow = objective(InFloat32(model), data=(X.float(), Y))
        names, block = list(narrow.parameters), make_block("all", narrow.parameters)
        v = random_unit(block.numel, 0, "v", seed)
        with (
            narrow.session(),
            RoundingMeter(narrow, Sample([(X.float(), Y)]), torch.float32, Counters(), HessianGraph, ROOM) as measuring,
        ):
            coarse = HessianGraph(narrow, (X.float(), Y), names, Counters()).product(names, block.split(v.float()))
            norm = float(joined(coarse).norm()) / 9
            found = measuring.measure({"all": Candidate(block, v[None], norm)})["all"]
            again = measuring.measure({"all": Candidate(block, v[None], norm)})["all"]
            rows = measuring.measure_rows(block, norm)
        assert measuring.failure == "ValueError: float32 only" and not measuring.assumes
        assert found == again and found.source == "perturbed"
        wide = objective(copy.deepcopy(model).double(), data=(X.float().double(), Y))
        inner = [name.removeprefix("inner.") for name in names]
        with wide.session():
            own = make_block("all", wide.parameters)
            fine = HessianGraph(wide, (X.float().double(), Y), inner, Counters()).product(inner, own.split(v))
        true = float((joined(coarse) - joined(fine)).norm()) / 9
        assert true <= found.norm <= 3e-3 * norm and found.norm >= 1e-5 * norm
        assert rows.relative >= 1e-5 and rows.of(names) > 0.0


def joined(products: Any) -> Tensor:
    return torch.cat([one.double().reshape(-1) for one in products])


def test_without_any_copy_rounding_is_assumed() -> None:
    model = objective(InFloat32(mlp().float(), stuck=True), data=(X.float(), Y))
    block = make_block("all", model.parameters)
    v = random_unit(block.numel, 0, "v", 0)
    with (
        model.session(),
        RoundingMeter(model, Sample([(X.float(), Y)]), torch.float32, Counters(), HessianGraph, ROOM) as measuring,
    ):
        assert measuring.measure({"all": Candidate(block, v[None], 2.0)})["all"] == Rounding(
            pytest.approx(2e-5), "assumed"
        )
        assert measuring.assumes and "cannot pickle" in measuring.failure
        assert measuring.measure({}) == {}


class Cast(nn.Module):
    """What its weights are in, it computes in float32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        own = {name: p.float() for name, p in self.inner.named_parameters()}
        return torch.func.functional_call(self.inner, own, (x.float(),)).to(x.dtype)


def shifted(classes: int, by: float, seed: int) -> nn.Module:
    """A large bias, the same for all classes: logits have few digits left, and a softmax does not see it."""
    torch.manual_seed(seed)
    inner = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, classes))
    with torch.no_grad():
        inner[2].bias += by
    return inner


def trunk(seed: int) -> nn.Module:
    """Frozen layers whose output cancels in what comes next."""
    torch.manual_seed(seed)
    inner = nn.Sequential(nn.Linear(5, 16), Centred(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        inner[0].bias += 1e3
    inner[0].requires_grad_(False)
    return inner


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


class Fourier(nn.Module):
    """Features of high frequency, as of a NeRF: their digits are lost before the first weight."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([(x * (math.pi * 2**k)).sin() for k in range(12)], 1)


def fourier(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(Fourier(), nn.Linear(60, 8), nn.Tanh(), nn.Linear(8, 3))


MADE = {
    "scores of 300": lambda seed: shifted(3, 300.0, seed),
    "two classes at 3e4": lambda seed: shifted(2, 3e4, seed),
    "three classes at 3e4": lambda seed: shifted(3, 3e4, seed),
    "frozen trunk": trunk,
    "fourier": fourier,
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("kind", "wrapped"),
    # Of logits of 3e4 that are cast the differences in the float64 copy show too little: refused, which is no number.
    [(kind, InFloat32) for kind in MADE] + [(kind, Cast) for kind in MADE if "3e4" not in kind],
)
def test_bounds_hold_of_what_runs_in_float32_only(kind: str, wrapped: Any, seed: int) -> None:
    inner = MADE[kind](seed)
    x = torch.randn(40, 5)
    y = torch.arange(40) % inner[-1].out_features  # type: ignore[index]
    narrow = lh.Objective(wrapped(inner), [(x, y)], nn.CrossEntropyLoss())
    wide = lh.Objective(copy.deepcopy(inner).double(), [(x.double(), y)], nn.CrossEntropyLoss())
    found, true = (lh.analyze(one, tol=1e-5) for one in (narrow, wide))
    assert any("weights moved by their last digit" in note for note in found.notes)
    for name, other in {**true.blocks, "full": true.full}.items():
        own = found.full if name == "full" else found.blocks[f"inner.{name}"]
        assert own is not None and other is not None and own.rounding_source == "perturbed"
        assert np.all(np.abs(own.eigenvalues - other.eigenvalues) <= own.error_bounds + other.error_bounds)


def test_a_float64_model_that_casts_inside_is_no_better() -> None:
    inner = shifted(3, 300.0, 0)
    x, y = torch.randn(40, 5), torch.arange(40) % 3
    found = lh.analyze(lh.Objective(Cast(inner).double(), [(x.double(), y)], nn.CrossEntropyLoss()))
    true = lh.analyze(lh.Objective(inner.double(), [(x.double(), y)], nn.CrossEntropyLoss())).full
    assert found.full is not None and true is not None and found.full.rounding_source == "perturbed"
    assert abs(found.full.eigenvalues[0] - true.eigenvalues[0]) <= found.full.error_bounds[0] + true.error_bounds[0]
    assert any("it computes in float32 inside" in note for note in found.notes)


class TwoDtypes(nn.Module):
    """float32 and float64 side by side, and a cast between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x.float())).double())


def test_weights_of_two_dtypes_are_moved_each_in_its_own() -> None:
    torch.manual_seed(0)
    model = TwoDtypes()
    before = copy.deepcopy(model.state_dict())
    found = lh.analyze(lh.Objective(model, [(torch.randn(8, 5), torch.arange(8) % 3)], nn.CrossEntropyLoss()))
    assert {one.rounding_source for one in found.blocks.values()} == {"perturbed"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_half_of_every_tensor_goes_up_and_zeros_and_whole_numbers_of_the_data_stay() -> None:
    model = nn.BatchNorm1d(4)
    model.running_mean += torch.tensor([0.5, -0.25, 2.0, 0.0])  # type: ignore[operator]
    model.weight.requires_grad_(False)
    made = lh.Objective(
        model, [(torch.tensor([[0.3, 1.0, -2.0, 0.7]] * 2), torch.tensor([[1, 2, 3, 4]] * 2))], DIFFERENCE
    )
    with made.session():
        data = list(made.batches())
        moved = perturbed_copy(made, data, torch.float32, 3)
        assert all(
            not torch.equal(a, b) and torch.allclose(a, b, rtol=2.5e-7, atol=0.0)
            for a, b in ((model.weight, moved.model.weight), (model.running_mean, moved.model.running_mean))
        )
        assert (moved.model.weight > model.weight).sum() == 2 and torch.equal(moved.model.bias, model.bias)
        assert torch.equal(moved.model.running_mean[2:], model.running_mean[2:])  # type: ignore[index]
        (x, y), (was_x, was_y) = moved.data[0], data[0]
        assert torch.equal(y, was_y) and torch.equal(x[:, 1:3], was_x[:, 1:3]) and (x != was_x)[:, [0, 3]].all()
    with torch.device("meta"), perturbed(model.parameters(), torch.float32):
        assert (model.weight != 1.0).all()
    assert torch.equal(model.weight, torch.ones(4))
