"""What one watched pass tells, which modules are suspected, and what cannot be differentiated twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from checked_network import CE, Bent, Moving, X, Y, full_of, mlp, objective
from layerhess.checks.forward_trace import Trace, non_finite_weight, state_versions, trace
from layerhess.checks.second_derivative import ExaminedGraphs, check_second_derivative
from layerhess.checks.suspects import (
    FIRST_DERIVATIVE,
    NOT_FINITE,
    SKIP,
    STOPPED,
    UNKNOWN,
    WEIGHT_NORM,
    advice,
    failure,
    refuse_failed,
    suspects_of,
)
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass
from layerhess.curvature.matrices import HESSIAN
from layerhess.errors import InputError
from layerhess.objective.objective import Objective
from layerhess.results.record import Check


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
    asymmetric = Check("symmetry", False, "is asymmetric", module="a")
    assert advice(replace(asymmetric, module="b, weight_norm"), True) == WEIGHT_NORM
    assert advice(asymmetric, False) == UNKNOWN and advice(asymmetric, True) == UNKNOWN + SKIP
    assert advice(replace(asymmetric, detail="is NaN"), True) == NOT_FINITE + SKIP
    assert advice(replace(asymmetric, name=FIRST_DERIVATIVE), True) == STOPPED


def test_a_failed_check_and_the_refusal_made_of_several() -> None:
    made = objective()
    seen = Trace(custom=["f (X)"], without_grad=["g"])
    one = failure("symmetry", made, "0.weight", ["0.weight"], seen, "off by 1")
    assert not one.passed and one.block == "0.weight" and one.name == "symmetry"
    assert one.detail == f"the product of block '0.weight' is off by 1; suspect module {one.module}"
    assert one.module == (
        "0 (Linear), or the custom autograd function in f (X), or the call without gradients of g"
    )  # fmt: skip
    whole = failure("symmetry", made, FULL, ["2.weight"], Trace(), "quite off")
    error = refuse_failed({FULL: whole, "0.weight": one}, skippable=True)
    assert (
        "block 0.weight; suspect module 0 (Linear)" in error.where
        and "quite off" not in str(error)
        and error.what_to_do.endswith(SKIP)
    )
    assert error.details == (one.detail,)
    assert f"block {FULL}" in refuse_failed({FULL: whole}).where


def test_a_refusal_of_many_blocks_is_short_and_has_the_rest_in_its_details() -> None:
    made = objective()
    failed = {
        f"layer.{i}.weight": failure("symmetry", made, f"layer.{i}.weight", ["0.weight"], Trace(), "asymmetric by 0.5")
        for i in range(30)
    }
    error = refuse_failed(failed, skippable=True)
    assert len(str(error)) <= 400 and "layer.2.weight and 27 more" in error.where and "layer.3" not in str(error)
    assert len(error.details) == 30 and "layer.29.weight" in error.details[-1]


# -- the second derivative ---------------------------------------------------------------------------------------------


def second(made: Objective, batches: Sequence[Any] = ((X, Y),)) -> tuple[Tensor, DataPass]:
    """The product with ones, and the pass that made it."""
    with made.session():
        seen = trace(made, batches[0])
        graphs = ExaminedGraphs(HESSIAN.make_graph, seen)
        data_pass = DataPass(
            made.narrowed(list(batches)), list(made.parameters), Counters(), keep=1e9, make_graph=graphs
        )
        ones = torch.ones(made.numel, dtype=torch.float64)
        product = check_second_derivative(data_pass, full_of(made), ones, batches[0], seen, HESSIAN.make_graph)
        assert 0.0 < graphs.seconds < data_pass.seconds
    return product, data_pass


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


def test_the_product_that_shows_the_second_derivative_is_one_of_the_matrix_and_its_graphs_are_kept() -> None:
    made = objective(Cut(""))
    product, data_pass = second(made, [(X[:2], Y[:2]), (X[2:], Y[2:])])
    expected = lh.Hessian(made).matvec(torch.ones(made.numel, dtype=torch.float64))
    torch.testing.assert_close(product, expected)
    assert data_pass.kept == 2


def test_an_error_of_another_batch_than_the_first_is_left_to_who_names_the_batch() -> None:
    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(self.a(x), torch.zeros(3, 3).double()) if len(x) == 2 else self.a(x)

    with pytest.raises(RuntimeError, match="derivative for"):
        second(objective(Later()), [(X[2:], Y[2:]), (X[:2], Y[:2])])
    with pytest.raises(InputError, match="no second derivative"):
        second(objective(Later()), [(X[:2], Y[:2]), (X[2:], Y[2:])])
