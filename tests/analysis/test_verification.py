"""Operators by hand refuse what an analysis refuses, check once for each set of weights, and say where they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import layerhess as lh
from layerhess.analysis import verification
from layerhess.objective.snapshot import preserved_random_state
from witness import refused

X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
CE = nn.CrossEntropyLoss()


class Net(nn.Module):
    def __init__(self, hidden: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        with preserved_random_state():
            torch.manual_seed(0)
            self.a, self.o = nn.Linear(5, 6), nn.Linear(6, 3)
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.hidden(self.a, x))  # type: ignore[no-any-return]


def tanh(a: nn.Module, x: Tensor) -> Tensor:
    return torch.tanh(a(x))


def detached(a: nn.Module, x: Tensor) -> Tensor:
    h = torch.relu(a(x))
    return h - h.mean(1, keepdim=True).detach()


def holed() -> Tensor:
    x = X.clone()
    x[3, 2] = float("nan")
    return x


# kind -> (model, data, loss)
KINDS: dict[str, Callable[[], tuple[nn.Module, Any, Any]]] = {
    "detached": lambda: (Net(detached), (X, Y), CE),
    "dropout": lambda: (Net(lambda a, x: F.dropout(tanh(a, x), 0.5)), (X, Y), CE),
    "NaN": lambda: (Net(tanh), (holed(), Y), CE),
    "reentrant": lambda: (
        Net(lambda a, x: checkpoint(lambda q: tanh(a, q), x, use_reentrant=True)), (X, Y), CE
    ),
    "once": lambda: (Net(lambda a, x: torch.cdist(tanh(a, x), torch.ones(6, 6))), (X, Y), CE),
    "not a mean": lambda: (
        Net(tanh), [(X[:7], Y[:7]), (X[7:], Y[7:])], lambda out, y: F.cross_entropy(out, y, reduction="sum")
    ),
}  # fmt: skip
DOORS: dict[str, Callable[[Any], Any]] = {
    "matvec": lambda op: op.matvec(torch.ones(op.shape[0])),
    "block_matvec": lambda op: op.block_matvec({"o.bias": torch.ones(3)}),
    "to_dense": lambda op: op.to_dense(),
    "to_scipy": lambda op: op.to_scipy().matvec(np.ones(op.shape[0])),
    "block": lambda op: op.block("o.bias").matvec(torch.ones(3)),
    "session": lambda op: op.session().__enter__(),
    "eigsh": lambda op: lh.eigsh(op.block("o.bias")),
}
OPERATORS = {"hessian": lh.Hessian, "gauss_newton": lh.GaussNewton, "empirical_fisher": lh.EmpiricalFisher}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_an_analysis_refuses_every_door_refuses(kind: str, operator: str) -> None:
    model, data, loss = KINDS[kind]()
    with refused(model) as first:
        lh.analyze(lh.Objective(model, data, loss), operator=operator)
    for door, used in DOORS.items():
        with refused(model) as caught:
            used(OPERATORS[operator](lh.Objective(model, data, loss)))
        assert type(caught.value) is type(first.value), door


def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    calls = {"survey": 0, "self_check": 0}
    for name in calls:
        original = getattr(verification, name)

        def wrapped(*args: Any, name: str = name, original: Any = original) -> Any:
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(verification, name, wrapped)
    return calls


def test_the_survey_is_shared_by_an_objective_and_a_check_by_its_matrix_and_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = counted(monkeypatch)
    objective = lh.Objective(Net(tanh), (X, Y), CE)
    for _ in range(2):
        hessian = lh.Hessian(objective)
        hessian.matvec(torch.ones(hessian.shape[0]))
        hessian.block("o.bias").to_dense()
        lh.eigsh(hessian.block("o.weight"))
    assert calls == {"survey": 1, "self_check": 1}
    lh.GaussNewton(objective).block("o.bias").to_dense()
    lh.Hessian(objective, "module").block("o").to_dense()
    assert calls == {"survey": 1, "self_check": 3}
    lh.Hessian(lh.Objective(objective.model, (X, Y), CE)).to_dense()
    assert calls == {"survey": 2, "self_check": 4}


CHANGES: dict[str, Callable[[Net], Any]] = {
    "a value behind autograd's back": lambda model: model.a.weight.data.add_(1.0),
    "an element": lambda model: model.a.weight.data[0].mul_(1.5),
    "a buffer": lambda model: model.calls.add_(1),
    "a mode": lambda model: model.train(not model.training),
    "a module": lambda model: model.add_module("act", nn.Identity()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_of_the_model_it_is_checked_again(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    model = Net(tanh)
    model.register_buffer("calls", torch.zeros(2, dtype=torch.long))
    model.add_module("act", nn.Tanh())
    hessian = lh.Hessian(lh.Objective(model, (X, Y), CE))
    hessian.block("o.bias").to_dense()
    CHANGES[change](model)
    hessian.block("o.bias").to_dense()
    hessian.block("o.bias").to_dense()
    assert calls == {"survey": 2, "self_check": 2}


def test_weights_that_were_put_back_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of an unusable state does not outlive it either."""
    model = Net(tanh)
    hessian = lh.Hessian(lh.Objective(model, (X, Y), CE))
    before = hessian.to_dense()
    kept = model.a.weight.detach().clone()
    model.a.weight.data[0, 0] = float("nan")
    with refused(model, "'a.weight' holds a NaN"):
        hessian.to_dense()
    model.a.weight.data.copy_(kept)
    assert torch.equal(hessian.to_dense(), before)


def test_a_failure_refuses_every_product_without_being_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    model = Net(detached)
    hessian = lh.Hessian(lh.Objective(model, (X, Y), CE))
    for name in ("a.weight", "o.bias", "o.bias"):
        with refused(model, "not the gradient of the loss"):
            hessian.block(name).to_dense()
    with refused(model, "not the gradient of the loss"):
        lh.GaussNewton(hessian.objective).to_dense()
    assert calls == {"survey": 1, "self_check": 1}


def test_without_checks_the_products_are_there_and_everything_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    objective = lh.Objective(Net(detached), (X, Y), CE)
    hessian = lh.Hessian(objective, check=False)
    assert repr(hessian) == "Hessian of Net, 57 x 57, 4 blocks, unchecked"
    assert repr(lh.Hessian(objective)) == "Hessian of Net, 57 x 57, 4 blocks"
    assert hessian.to_dense().shape == (57, 57)
    for found in (
        lh.eigsh(hessian.block("o.weight")), lh.trace(hessian), lh.diagonal(hessian),
        lh.density(hessian, probes=2, steps=3), lh.coupling(hessian, probes=2),
    ):  # fmt: skip
        assert "unchecked" in found.status
    assert "unchecked" not in lh.eigsh(np.eye(3)).status
    assert calls == {"survey": 0, "self_check": 0}


def test_an_operation_without_a_second_derivative_in_a_later_batch_is_named() -> None:
    class Late(Net):
        def forward(self, x: Tensor) -> Tensor:
            z = tanh(self.a, x)
            return self.o(torch.cdist(z, torch.ones(6, 6)) if len(x) == 2 else z)  # type: ignore[no-any-return]

    data = [(X[i : i + 5], Y[i : i + 5]) for i in (0, 0, 0, 5, 5)] + [(X[:2], Y[:2])]
    model = Late(tanh)
    for call in (lambda o: lh.analyze(o), lambda o: lh.Hessian(o).to_dense()):
        with refused(model, "cdist", "batch 5"):
            call(lh.Objective(model, data, CE))


def test_vectors_and_products_that_are_not_finite_are_refused() -> None:
    hessian = lh.Hessian(lh.Objective(Net(tanh), (X, Y), CE))
    with refused(hessian.objective.model, "vector", "o.bias"):
        hessian.block_matvec({"o.bias": torch.tensor([0.0, float("nan"), 0.0])})

    def rooted(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return (model(batch[0]) * batch[1]).square().sum(1).sqrt().sum(), len(batch[0])

    # Of the later batch one example's norm is at 0, where it has no second derivative.
    data = [(X[:10], torch.ones(10, 1)), (X[10:], torch.tensor([[1.0], [0.0]]))]
    model = Net(tanh)
    for call in (
        lambda: lh.analyze(lh.Objective(model, data, lh.batch_loss(rooted))),
        lambda: lh.Hessian(lh.Objective(model, data, lh.batch_loss(rooted))).to_dense(),
    ):
        with refused(model, "batch 1"):
            call()


def test_blocks_that_vanish_are_looked_at_in_the_models_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks exchange sums for each of them, and strings in a set come in another order in every process."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": nn.Linear(4, 3), "added": nn.ParameterList(torch.randn(2) for _ in range(8))})
    x = torch.randn(6, 4)

    def loss(network: Any, rows: Tensor) -> tuple[Tensor, int]:
        added = sum(part.sum() for part in network["added"])
        return torch.tanh(network["layer"](rows)).sum() + len(rows) * added, len(rows)

    looked: list[str] = []
    measured = verification.size_of_product

    def recorded(data_pass: Any, block: Any, seed: int) -> float:
        looked.append(block.name)
        return measured(data_pass, block, seed)

    monkeypatch.setattr(verification, "size_of_product", recorded)
    lh.Hessian(lh.Objective(model, [x], lh.batch_loss(loss))).matvec(torch.ones(31))
    assert looked == ["(full)", *(f"added.{i}" for i in range(8))]
