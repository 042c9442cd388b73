"""One loss for every item, against the loss written out for each of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from layerhess.errors import InputError
from layerhess.objective.item_losses import item_losses, refuse_without_tokens
from layerhess.objective.losses import evaluation_of
from layerhess.objective.model_loss import ModelLoss

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6) % 3
TOKENS = torch.arange(18).view(6, 3) % 3


def linear(out: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, out).double()


class Sequences(nn.Module):
    """(N, 4) to logits (N, T, 3) in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear(9)

    def forward(self, x: Tensor) -> Any:
        return {"logits": self.layer(x).view(len(x), 3, 3)}["logits"]


def squares(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).mean()


def totals(model: Any, batch: Any) -> tuple[Tensor, int]:
    return (model(batch[0]) ** 4).sum(), 3 * len(batch[0])


def quartic(output: Tensor, batch: Any) -> tuple[Tensor, int]:
    return (output**4).sum(), 3 * len(output)


WEIGHTS = torch.tensor([1.0, 2.0, 0.5]).double()
OUT = linear()(X).detach()
EACH: dict[str, tuple[Any, Any, Tensor, float]] = {  # loss, target, every item's loss, count
    "classes": (nn.CrossEntropyLoss(), Y, F.cross_entropy(OUT, Y, reduction="none"), 6.0),
    "weighted": (
        nn.CrossEntropyLoss(weight=WEIGHTS), Y, F.cross_entropy(OUT, Y, reduction="none") * WEIGHTS[Y],
        float(WEIGHTS[Y].sum()),
    ),
    "several numbers an item": (nn.MSELoss(), OUT + 1 + Y[:, None], 3.0 * (1.0 + Y) ** 2, 18.0),
    "a callable": (squares, OUT + 1 + Y[:, None], (1.0 + Y) ** 2, 6.0),
    "a sum of totals": (lh.batch_loss(totals), Y, (OUT**4).sum(1), 18.0),
    "a loss of the output": (
        lh.batch_loss(quartic, output=lambda model, batch: model(batch[0])), Y, (OUT**4).sum(1), 18.0
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", EACH)
def test_losses_of_items_are_those_of_each_alone(kind: str) -> None:
    loss, target, expected, count = EACH[kind]
    found, number = item_losses(evaluation_of(loss), linear(), (X, target), "item")
    assert found.requires_grad and number == count
    torch.testing.assert_close(found.detach(), expected.double())


def test_a_sequence_is_one_item_and_each_token_one_of_its_own() -> None:
    evaluation, model = evaluation_of(nn.CrossEntropyLoss()), Sequences()
    logits = model(X).detach()
    each = F.cross_entropy(logits.flatten(0, 1), TOKENS.flatten(), reduction="none")
    for level, expected in (("token", each), ("item", each.view(6, 3).sum(1))):
        found, count = item_losses(evaluation, model, {"x": X, "labels": TOKENS}, level)
        torch.testing.assert_close(found.detach(), expected)
        assert count == 18.0
    pair = item_losses(evaluation, linear(), (X, Y), "token")
    torch.testing.assert_close(pair[0].detach(), EACH["classes"][2])


def test_an_unbatched_example_is_one_item() -> None:
    found, count = item_losses(evaluation_of(nn.CrossEntropyLoss()), linear(), (X[0], Y[0]), "item")
    assert found.shape == (1,) and count == 1.0
    torch.testing.assert_close(found.detach(), EACH["classes"][2][:1])


@pytest.mark.parametrize("loss", [nn.MSELoss(), squares, lh.batch_loss(totals), None])
def test_the_token_level_is_for_classes(loss: Any) -> None:
    for call in (refuse_without_tokens, lambda e: item_losses(e, linear(), (X, Y), "token")):
        with pytest.raises(InputError, match="takes each counted term") as caught:
            call(evaluation_of(loss))
        assert caught.value.where == "empirical_fisher:token"
    refuse_without_tokens(evaluation_of(nn.NLLLoss()))


def test_items_that_cannot_be_told_apart_are_refused_and_none_are_none() -> None:
    with pytest.raises(InputError, match="cannot be told apart"):
        item_losses(evaluation_of(squares), linear(), (X, torch.tensor(1.0).double()), "item")
    found, count = item_losses(evaluation_of(lh.batch_loss(totals)), linear(), (X[:0], Y[:0]), "item")
    assert found.shape == (0,) and count == 0.0
    empty, _ = item_losses(evaluation_of(nn.CrossEntropyLoss()), linear(), (X[:0], Y[:0]), "item")
    assert empty.shape == (0,)


def test_a_models_own_loss_is_asked_for_each_item() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear()

        def forward(self, x: Tensor, labels: Tensor) -> Any:
            return {"loss": F.cross_entropy(self.layer(x), labels)}

    found, count = item_losses(ModelLoss(), Own(), {"x": X, "labels": Y}, "item")
    torch.testing.assert_close(found.detach(), EACH["classes"][2])
    assert count == 6.0
