"""What is called a mean is one at other outputs and weights too, not only where all examples have the same loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from layerhess.checks.loss import check_additivity
from layerhess.checks.survey import survey
from layerhess.curvature.counters import Counters
from layerhess.errors import InputError
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import moved
from witness import untouched

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) // 8
BATCHES = [(X[:10], Y[:10]), (X[10:], Y[10:])]
ONE_FIRST = [(X[:1], Y[:1]), *((X[i : i + 6], Y[i : i + 6]) for i in (1, 7, 13))]
SINGLE = [(X[i : i + 1], Y[i : i + 1]) for i in range(0, 24, 4)]
W = torch.tensor([1.0, 5.0, 0.2])


def zero_head(*after: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    head = nn.Linear(5, 3)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), head, *after)


def looked_at(model: nn.Module, data: Any, loss: Any = None, **options: Any) -> None:
    made = Objective(model, data, loss, **options)
    with untouched(model), made.session():
        survey(made, Counters())


def weighted(o: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(o, t, weight=W.to(o.dtype))


NO_MEANS = {
    "class weights": weighted,
    "class weights, float32 only": lambda o, t: F.cross_entropy(o.float(), t, weight=W),
    "a masked mean": lambda o, t: (F.cross_entropy(o, t, reduction="none") * (t != 1)).sum() / (t != 1).sum(),
    "a variance": lambda o, t: F.cross_entropy(o, t) + 1e-2 * o.var(0, unbiased=False).sum(),
    "pairs": lambda o, t: F.cross_entropy(o, t) + 0.1 * (o[:, None] - o[None]).square().mean(),
    "the largest": lambda o, t: F.cross_entropy(o, t) + o.abs().max(),
}


@pytest.mark.parametrize("kind", NO_MEANS)
@pytest.mark.parametrize("data", [BATCHES, ONE_FIRST], ids=["two batches", "one example first"])
def test_no_mean_hides_behind_a_head_of_zeros(kind: str, data: Any) -> None:
    with pytest.raises(InputError, match=r"not the mean .* with the outputs moved a little|give nan") as caught:
        looked_at(zero_head(), data, NO_MEANS[kind])
    assert caught.value.where.startswith("batch ")


@pytest.mark.parametrize("kind", ["class weights", "a variance", "pairs"])
def test_batches_of_one_example_are_joined(kind: str) -> None:
    for model in (zero_head(), nn.Linear(6, 3)):
        with pytest.raises(InputError, match="not the mean"):
            looked_at(model, SINGLE, NO_MEANS[kind])
    looked_at(zero_head(), SINGLE, lambda o, t: F.cross_entropy(o, t))
    looked_at(zero_head(), (X, Y), lambda o, t: F.cross_entropy(o, t), batch_size=1)
    with pytest.raises(InputError, match="not the mean"):
        looked_at(zero_head(), (X, Y), NO_MEANS[kind], batch_size=1)


@pytest.mark.parametrize("model", [zero_head(), nn.Linear(6, 3)], ids=["zero head", "random"])
def test_batches_of_one_class_are_held_against_each_other(model: nn.Module) -> None:
    """Within each of them, class weights cancel."""
    sorted_by_class = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]
    with pytest.raises(InputError, match="not the mean"):
        looked_at(model, sorted_by_class, weighted)
    looked_at(model, sorted_by_class, lambda o, t: F.cross_entropy(o, t))
    with pytest.raises(InputError, match="not the mean"):
        looked_at(Own(weighted), [{"x": x, "labels": y} for x, y in sorted_by_class])


def test_a_claim_that_nothing_shows_is_refused_for_more_than_one_batch() -> None:
    def loss(o: Tensor, t: Any) -> Tensor:
        return F.cross_entropy(o, t["of"][0])

    data = [(X[:4], {"of": [Y[:4]], "name": "a"}), (X[4:6], {"of": [Y[4:6]], "name": "b"})]
    looked_at(zero_head(), data[:1], loss)
    with pytest.raises(InputError, match="no batch can be cut in two") as caught:
        looked_at(zero_head(), data, loss)
    assert "batch_loss" in caught.value.what_to_do
    uneven = [(X[:1], Y[:1, None].expand(1, 2)), (X[1:2], Y[1:2, None].expand(1, 3))]
    with pytest.raises(InputError, match="no batch can be cut in two"):
        looked_at(zero_head(), uneven, lambda o, t: F.cross_entropy(o, t[:, 0]))


P = torch.rand(24, 3, generator=torch.Generator().manual_seed(1))
MEANS: dict[str, tuple[nn.Module | None, Any, Any]] = {
    "cross entropy": (None, Y, lambda o, t: F.cross_entropy(o, t)),
    "squares": (None, P, lambda o, t: (o - t).square().mean()),
    "probabilities": (nn.Sigmoid(), P, lambda o, t: F.binary_cross_entropy(o, t)),
    "log probabilities": (nn.LogSoftmax(1), Y, lambda o, t: F.nll_loss(o, t)),
    "log of probabilities": (nn.Softmax(1), Y, lambda o, t: -o[torch.arange(len(t)), t].log().mean()),
    "a logarithm of 1 - z^2": (nn.Tanh(), P, lambda o, t: -((1 - o.square()).log() + o * t).mean()),
    "rates": (nn.Softplus(), P, lambda o, t: (o - t * o.log()).mean()),
    "a critic": (None, P, lambda o, t: o.mean()),
    "signed terms": (None, P, lambda o, t: ((o - t) * (t > 0.5).float().mul(2).sub(1)).mean()),
    "float32 inside": (None, Y, lambda o, t: F.cross_entropy(o.float(), t).to(o.dtype)),
    "squeezed": (None, Y, lambda o, t: F.cross_entropy(o.squeeze(), t.squeeze())),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", MEANS)
def test_means_are_taken_for_means(kind: str, dtype: torch.dtype) -> None:
    after, target, loss = MEANS[kind]
    for model in (zero_head(*([after] if after else [])), nn.Sequential(nn.Linear(6, 3), *([after] if after else []))):
        given = target.to(dtype) if target.is_floating_point() else target
        x = X.to(dtype)
        for cuts in ((10, 24), (5, 24), (1, 7, 24)):
            data = [(x[a:b], given[a:b]) for a, b in zip((0, *cuts), cuts, strict=False)]
            looked_at(model.to(dtype), data, loss)


def test_a_loss_that_differentiates_the_network_is_held_as_a_whole() -> None:
    """Parts of an output have no graph; parts of the batch have one."""
    model, seen = nn.Sequential(nn.Linear(6, 3), nn.Tanh()), []

    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> Tensor:
            seen[:] = [x.detach().requires_grad_()]
            return self.net(seen[0])

    def slopes(o: Tensor) -> Tensor:
        return torch.autograd.grad(o.sum(), seen[0], create_graph=True)[0]

    looked_at(Remembers(), BATCHES, lambda o, t: F.cross_entropy(o, t) + slopes(o).square().sum(1).mean())
    with pytest.raises(InputError, match="not the mean"):
        looked_at(Remembers(), BATCHES, lambda o, t: F.cross_entropy(o, t) + slopes(o).square().sum())


class Own(nn.Module):
    """Returns its own loss, as Hugging Face's models do."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.net, self.loss = zero_head(), loss

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": self.loss(logits, labels), "logits": logits}


@pytest.mark.parametrize("kind", NO_MEANS)
def test_a_models_own_loss_is_held_at_moved_weights(kind: str) -> None:
    data = [{"x": x, "labels": y} for x, y in ONE_FIRST]
    looked_at(Own(lambda o, t: F.cross_entropy(o, t)), data)
    looked_at(Own(lambda o, t: F.cross_entropy(o, t)), [{"x": x, "labels": y} for x, y in SINGLE])
    with pytest.raises(InputError, match=r"not the mean .* with the weights moved a little|give nan"):
        looked_at(Own(NO_MEANS[kind]), data)


def test_weights_that_were_moved_come_back_with_the_same_bits() -> None:
    values = (torch.tensor([[-0.0, 0.0], [float("nan"), 1e-40]]), torch.zeros(3), torch.tensor(2.0), torch.ones(2, 2))
    before = [value.clone() for value in values]
    with pytest.raises(KeyboardInterrupt), moved(values):
        assert all(not torch.equal(value, old) for value, old in zip(values, before, strict=True))
        assert all(float(value.abs().sum()) > 0 for value in values[1:])
        raise KeyboardInterrupt
    assert all(
        torch.equal(value.view(torch.int32), old.view(torch.int32)) for value, old in zip(values, before, strict=True)
    )


def spread_out(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    o = model(batch[0])
    return F.cross_entropy(o, batch[1], reduction="sum") + 0.1 * len(o) * o.var(0, unbiased=False).sum(), len(o)


def test_a_penalty_that_is_zero_here_keeps_batches_whole() -> None:
    for samples in ([(X, Y)], [(X[:1], Y[:1]), (X, Y)]):
        made = Objective(zero_head(), [(X, Y)], lh.batch_loss(spread_out))
        with untouched(made.model), made.session():
            found = check_additivity(made, samples)
        assert not found.check.passed and "not the sum over its examples" in found.uncut
    for size in (1, 2):
        with pytest.raises(InputError, match="of a batch is not the sum over its parts"):
            lh.analyze(Objective(zero_head(), (X, Y), lh.batch_loss(spread_out), batch_size=size))
