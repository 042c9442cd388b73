"""Which blocks may use factors: by structure, by precision, and by one product each, on small networks."""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checked_network import CE, X, Y, full_of, mlp, objective
from layerhess.checks.factors import Licence, licence
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass
from layerhess.curvature.matrices import GAUSS_NEWTON, HESSIAN, ITEM_FISHER
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.blocks import make_block
from layerhess.objective.objective import Objective

factors: Any = importlib.import_module("layerhess.checks.factors")
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def licensed(
    made: Objective, curvature: Any = HESSIAN, coarsest: Any = None, copy: Any = lambda: None, samples: Any = None
) -> Licence:
    """Of every parameter and of the whole model, on two samples of it unless told otherwise."""
    given = samples or [(X[:5].to(made.dtype), Y[:5]), (X[5:].to(made.dtype), Y[5:])]
    blocks = {n: make_block(n, {n: p}) for n, p in made.parameters.items()} | {FULL: full_of(made)}
    surveyed: Any = SimpleNamespace(samples=given, sample_size=9)
    with made.session():
        narrow = made.narrowed(given)
        data_pass = DataPass(narrow, list(made.parameters), Counters(), make_graph=curvature.make_graph)
        return licence(
            made, surveyed, blocks, curvature, coarsest or made.dtype, data_pass, 3, Counters(), copy
        )  # fmt: skip


def dense_product(made: Objective, name: str, gauss_newton: bool = False) -> Tensor:
    """H v of one parameter by autograd's own double backward, v as the licence draws it."""
    p = made.parameters[name]
    v = random_unit(p.numel(), 3, f"licence {name}", 0).view(p.shape)
    (g,) = torch.autograd.grad(CE(made.model(X), Y), p, create_graph=True)
    return torch.autograd.grad((g * v).sum(), p)[0].reshape(-1)


def test_piecewise_linear_blocks_have_a_licence_and_the_exact_product() -> None:
    made = objective(mlp(nn.ReLU()))
    found = licensed(made)
    assert list(found.blocks) == NAMES and found.blocks["0.weight"] == ("0.weight",) and not found.reasons
    assert 0.0 < found.agreement < 1e-12 and found.examples == 9 and found.seconds > 0.0
    for name in NAMES:
        assert found.norms[name] == pytest.approx(float(dense_product(made, name).norm()), rel=1e-9)
    work = found.works["0.weight"]
    assert (work.items, work.directions, work.entries, work.outputs) == (9, 2, 1, 9 * 5)
    assert work.multiplications == 9 * 5 * 4 and work.network == 9 * (5 * 4 + 5 + 3 * 5 + 3) and work.has_rows


def test_only_what_is_linear_behind_a_tanh_has_one() -> None:
    found = licensed(objective(mlp(nn.Tanh())))
    assert list(found.blocks) == ["2.weight", "2.bias"]
    assert found.reasons == dict.fromkeys(NAMES[:2], "the network is not piecewise linear in it")
    gauss = licensed(objective(mlp(nn.Tanh())), GAUSS_NEWTON)
    assert list(gauss.blocks) == [*NAMES, FULL] and not gauss.reasons


def test_a_layer_nobody_knows_has_no_factors() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.head = nn.Parameter(torch.ones(4, 5).double()), nn.Linear(5, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x @ self.w)

    found = licensed(objective(Own()))
    assert list(found.blocks) == ["head.weight", "head.bias"] and "layer is of another kind" in found.reasons["w"]


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: mlp(), {"curvature": ITEM_FISHER}, "no factors for the empirical Fisher"),
        (lambda: mlp(), {"coarsest": torch.bfloat16}, "bfloat16 is too coarse"),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double(), {}, "BatchNorm runs in train mode, which"),
        (lambda: mlp(Fails()), {}, "no factors can be made: cannot be watched"),
    ],
)
def test_whole_models_without_a_licence_have_one_reason(make: Any, options: dict[str, Any], words: str) -> None:
    found = licensed(objective(make()), **options)
    assert not found.blocks and not found.norms and found.reasons
    assert all(words in reason for reason in found.reasons.values()) and len(set(found.reasons.values())) == 1


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if type(torch.overrides._get_current_function_mode()).__name__ == "Recorder":
            raise RuntimeError("cannot be watched\nat all")
        return x.relu()


def test_a_device_without_float64_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "solver_device", lambda device: torch.device("meta"))
    found = licensed(objective(mlp(nn.ReLU())))
    assert not found.blocks and "cpu has no float64" in found.reasons[FULL]


@pytest.mark.parametrize(
    ("dtype", "off", "copy", "fails"),
    [
        (torch.float64, 0.9e-10, None, False),
        (torch.float64, 1.1e-10, 0.0, True),
        (torch.float32, 4.9e-5, None, False),
        (torch.float32, 5.1e-5, None, True),
        (torch.float32, 5.1e-5, 0.9e-10, False),
        (torch.float32, 5.1e-5, 1.1e-10, True),
        (torch.float32, 0.9e-2, 0.0, False),
        (torch.float32, 1.1e-2, 0.0, True),
        (torch.float32, math.nan, 0.0, True),
    ],
)
def test_a_product_that_is_off_is_looked_at_in_float64_where_it_may_be_rounding(
    dtype: torch.dtype, off: float, copy: float | None, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = objective(mlp(nn.ReLU()).to(dtype))
    honest = factors._by_factors

    def bent(which: Objective, graphs: Any, blocks: Any, vectors: Any, denominator: float) -> Any:
        products = honest(which, graphs, blocks, vectors, denominator)
        share = off if which is made else copy
        if "0.bias" in products and share:
            products["0.bias"] = products["0.bias"] * (1.0 + share)
        return products

    monkeypatch.setattr(factors, "_by_factors", bent)
    monkeypatch.setattr(factors, "_off", lambda ours, exact: _rounded(ours, exact))
    double = made.cast(torch.float64, [(X.to(dtype), Y)])
    with double.session():
        found = licensed(made, copy=(lambda: None) if copy is None else (lambda: double))
    assert ("0.bias" in found.reasons) is fails and ("0.bias" in found.blocks) is not fails
    assert set(NAMES) - {"0.bias"} <= set(found.blocks)
    if fails:
        assert f"off by {off:.1e} from the exact one" in found.reasons["0.bias"]


def _rounded(ours: Tensor, exact: Tensor) -> float:
    """The relative difference, to two digits: float32 itself adds 1e-7."""
    figure = float((ours - exact).norm() / exact.norm())
    return figure if math.isnan(figure) else float(f"{figure:.1e}") if figure > 2e-6 or figure < 1e-8 else 0.0


def test_a_sample_that_spoils_what_another_kept_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(*given: Any) -> Any:
        raise RuntimeError("has been modified by an inplace operation\nsomewhere")

    monkeypatch.setattr(factors, "_by_factors", spoilt)
    found = licensed(objective(mlp(nn.ReLU())))
    assert not found.blocks and found.reasons["0.bias"].endswith("made: has been modified by an inplace operation")

    def full(*given: Any) -> Any:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(factors, "_by_factors", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        licensed(objective(mlp(nn.ReLU())))


def test_every_sample_must_have_the_structure() -> None:
    """The second sample goes another way: through a tanh."""

    class Turns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            z = self.a(x)
            return self.b(z.tanh() if len(x) == 4 else z.relu())

    found = licensed(objective(Turns()))
    assert set(found.blocks) == {"b.weight", "b.bias"} and set(found.reasons) == {"a.weight", "a.bias"}
    assert licensed(objective(Turns()), samples=[(X, Y)]).blocks.keys() == {"a.weight", "a.bias", "b.weight", "b.bias"}
