"""Two batches together are held against the two apart: whatever depends on what is in a batch is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from layerhess.checks.joined import why_apart

X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2, 2, 1])
PAIR = [(X[:3], Y[:3]), (X[3:], Y[3:])]


class Around(nn.Module):
    """A small network, and what becomes of its outputs."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor], head: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.change = change
        with torch.no_grad():
            self.head.weight.mul_(head)
            self.head.bias.mul_(head)

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.head(self.body(x).tanh()), x)


def asked(model: nn.Module, loss: Any = None, pair: Any = PAIR) -> str:
    objective = lh.Objective(model, pair, nn.CrossEntropyLoss() if loss is None else loss)
    with objective.session():
        return why_apart(objective, pair)


def unchanged(output: Tensor, x: Tensor) -> Tensor:
    return output


LOSSES = {
    "cross entropy": nn.CrossEntropyLoss(),
    "with weights": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5])),
    "what is ignored": nn.CrossEntropyLoss(ignore_index=2),
    "a sum": nn.CrossEntropyLoss(reduction="sum"),
    "sums of its own": lh.batch_loss(lambda m, b: (F.cross_entropy(m(b[0]), b[1], reduction="sum"), len(b[1]))),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("head", [1.0, 0.0])
def test_a_sum_over_examples_may_be_joined(loss: Any, head: float) -> None:
    assert asked(Around(unchanged, head), loss) == ""


def test_the_model_comes_back_and_no_random_number_is_drawn() -> None:
    model = Around(unchanged)
    before = [p.clone() for p in model.parameters()], torch.get_rng_state()
    asked(model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before[0], strict=True))
    assert torch.equal(torch.get_rng_state(), before[1]) and all(p.grad is None for p in model.parameters())


COUPLED = {
    "centred over the batch": lambda out, x: out - out.mean(0, keepdim=True),
    "scaled by the batch's largest": lambda out, x: out / out.detach().abs().max(),
    "the first example's flag": lambda out, x: out * (2.0 if float(x[0, 0]) > 0 else 1.0),
    "only the number of examples": lambda out, x: out * len(x),
}


@pytest.mark.parametrize("change", COUPLED.values(), ids=COUPLED)
def test_outputs_that_depend_on_the_rest_of_the_batch_are_seen(change: Any) -> None:
    pair = [(X[:3].abs(), Y[:3]), (-X[3:].abs(), Y[3:])]
    assert "not the sum over the two" in asked(Around(change), pair=pair)


def test_what_a_head_of_zeros_hides_is_seen_at_moved_weights() -> None:
    def penalty(model: Any, batch: Any) -> tuple[Tensor, int]:
        out = model(batch[0])
        return F.cross_entropy(out, batch[1], reduction="sum") + 10 * out.mean(0).square().sum() ** 2, len(batch[1])

    assert asked(Around(unchanged, 0.0), lh.batch_loss(penalty)) == "their loss is not the sum over the two"


def test_a_gradient_that_is_not_the_sum_is_seen_where_the_loss_is() -> None:
    def change(out: Tensor, x: Tensor) -> Tensor:  # the same values, whose slope is scaled by the batch's size
        return out.detach() + (out - out.detach()) * len(x)

    assert asked(Around(change)) == "their gradient is not the sum over the two"


def test_a_count_that_is_not_the_sum_is_seen() -> None:
    loss = lh.batch_loss(lambda m, b: (F.cross_entropy(m(b[0]), b[1], reduction="sum"), 1))
    assert asked(Around(unchanged), loss) == "their count is not the sum over the two"


def test_what_fails_together_is_said() -> None:
    def change(out: Tensor, x: Tensor) -> Tensor:
        if len(x) > 5:
            raise ValueError("five at most\nand more lines")
        return out

    assert asked(Around(change)) == "together they fail: five at most"


def test_random_numbers_keep_batches_apart() -> None:
    assert asked(Around(lambda out, x: out + 0.0 * torch.randn(()))) == "the model draws random numbers"


def test_what_is_not_finite_keeps_batches_apart() -> None:
    assert "not finite" in asked(Around(lambda out, x: out / (len(x) - 8.0)))
