"""What is no criterion, and outputs and targets that a criterion does not take; what is known of those that are."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerhess.errors import InputError
from layerhess.objective.criteria import Criterion, check_scalar, refuse_enlarging_broadcast
from layerhess.objective.losses import CriterionLoss

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
CE = nn.CrossEntropyLoss()

CRITERIA: dict[str, tuple[Any, str]] = {
    "no callable": (3, "int, which cannot be called"),
    "a class": (nn.MSELoss, "class MSELoss, not an instance"),
    "reduction none": (nn.MSELoss(reduction="none"), "reduction='none'"),
    "a function of one argument": (lambda output: output.sum(), "cannot be called with an output and a target"),
    "a module of three arguments": (nn.TripletMarginLoss(), "TripletMarginLoss cannot be called"),
}


@pytest.mark.parametrize("kind", CRITERIA)
def test_what_is_no_criterion(kind: str) -> None:
    loss, words = CRITERIA[kind]
    with pytest.raises(InputError, match=words) as caught:
        Criterion(loss)
    assert caught.value.where == "loss" and caught.value.what_to_do


LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
WRONG: dict[str, tuple[Any, Any, Any, str]] = {
    "no tensor": (CE, [1.0], Y, "the model returned list"),
    "no target tensor": (CE, LOGITS, [1], "the target is list, and CrossEntropyLoss needs a tensor"),
    "float classes": (CE, LOGITS, Y.float(), "float32 numbers of shape"),
    "too large": (CE, LOGITS, Y + 1, "class index 3 is out of range for an output of 3"),
    "negative": (CE, LOGITS, Y - 1, "class index -1 is out of range"),
    "one example": (CE, LOGITS[0], torch.tensor(3), "class index 3 is out of range for an output of 3"),
    "ignored elsewhere": (nn.NLLLoss(ignore_index=-1), LOGITS, Y - 2, "class index -2"),
}
RIGHT: dict[str, tuple[Any, Any, Any]] = {
    "classes": (CE, LOGITS, Y),
    "ignored": (CE, LOGITS, torch.where(Y == 0, -100, Y)),
    "all ignored": (CE, LOGITS, torch.full((6,), -100)),
    "ignored by another number": (nn.NLLLoss(ignore_index=-1), LOGITS, Y - 1),
    "probabilities": (CE, LOGITS, LOGITS.softmax(1)),
    "one example": (CE, LOGITS[0], torch.tensor(2)),
    "numbers": (nn.MSELoss(), LOGITS, LOGITS),
    "a callable": (lambda o, t: ((o - t) ** 2).mean(), LOGITS, LOGITS),
    "a callable with a list": (lambda o, t: o.sum(), LOGITS, [1]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_shapes_and_classes_are_looked_at_first(kind: str) -> None:
    loss, output, target, words = WRONG[kind]
    with pytest.raises(InputError, match=words) as caught:
        Criterion(loss).validate(output, target, "batch 7")
    assert caught.value.where == "batch 7"


@pytest.mark.parametrize("kind", RIGHT)
def test_what_is_fine_passes(kind: str) -> None:
    loss, output, target = RIGHT[kind]
    Criterion(loss).validate(output, target, "batch 7")
    total, count = Criterion(loss)(output, target)
    value = float(loss(output, target))
    assert count == 0.0 if math.isnan(value) else float(total) / count == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("output", "target", "enlarges"),
    [((6, 1), (6,), True), ((6,), (6, 1), True), ((6, 3), (3,), False), ((6,), (6,), False), ((6, 3), (4,), False),
     ((6, 3), (6, 1), False), ((1, 3), (6, 1), True), ((), (6,), False)],
)  # fmt: skip
def test_a_broadcast_larger_than_both_is_refused(
    output: tuple[int, ...], target: tuple[int, ...], enlarges: bool
) -> None:
    if enlarges:
        with pytest.raises(InputError, match="broadcasts the output"):
            refuse_enlarging_broadcast(torch.zeros(output), torch.zeros(target), "MSELoss")
        with pytest.raises(InputError, match="MSELoss broadcasts"):
            Criterion(nn.MSELoss())(torch.zeros(output), torch.zeros(target))
    else:
        refuse_enlarging_broadcast(torch.zeros(output), torch.zeros(target), "MSELoss")


def test_a_broadcast_inside_an_unknown_callable_is_noticed() -> None:
    hidden: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "mse": lambda o, t: ((o - t) ** 2).mean(), "l1": lambda o, t: (o - t).abs().mean(),
    }  # fmt: skip
    column, row = torch.randn(6, 1), torch.randn(6)
    for loss in hidden.values():
        for output, target in ((column, row), (row, column)):
            with pytest.raises(InputError, match=r"to \(6, 6\), larger than both") as caught:
                Criterion(loss).validate(output, target, "batch 2")
            assert caught.value.where == "batch 2"
        Criterion(loss).validate(column, row[:, None], "")
    fine: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda o, t: ((o.squeeze() - t.squeeze()) ** 2).mean(),  # lays them out itself
        lambda o, t: (o**2).mean(),  # does not look at the target
        lambda o, t: o.squeeze() @ t.squeeze(),
        lambda o, t: (o.sum() - t.sum()) ** 2,
    ]
    for loss in fine:
        Criterion(loss).validate(column, row, "")


def test_two_targets_that_change_places_are_another_order() -> None:
    """A callable that pairs by order and minds the shape, on the fewest items there can be."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output.flatten() * target.flatten()).sum() * target.ndim

    Criterion(loss).validate(torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 5.0]), "")
    with pytest.raises(InputError, match=r"to \(2, 2\)"):
        Criterion(lambda o, t: (o * t).sum()).validate(torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 5.0]), "")


def test_shapes_that_cannot_hide_a_broadcast_cost_no_evaluation() -> None:
    called = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        called.append(1)
        return (output.sum() - target.sum()) ** 2

    for output, target in ((6, 3), (6, 3)), ((6, 1), (3,)), ((6,), (1, 6)):
        Criterion(loss).validate(torch.randn(output), torch.randn(target), "")
    assert not called
    Criterion(loss).validate(torch.randn(6, 1), torch.randn(6), "")
    assert called


def test_a_loss_is_one_number() -> None:
    check_scalar(torch.tensor(1.0))
    check_scalar(torch.tensor([[1.0]]))
    for wrong, words in ((torch.zeros(2), r"tensor of shape \(2,\), not a scalar"), (1.0, "float, not a scalar")):
        with pytest.raises(InputError, match=words):
            check_scalar(wrong)


@pytest.mark.parametrize("made", [F.mse_loss, functools.partial(F.mse_loss, reduction="sum"), nn.MSELoss()])
def test_known_criteria_are_known_by_all_their_names(made: Any) -> None:
    found = Criterion(made)
    assert found.known and isinstance(found.loss, nn.MSELoss) and not found.has_classes and found.name == "MSELoss"
    assert found.is_sum is isinstance(made, functools.partial)
    each = found.losses(LOGITS, LOGITS + 2.0)
    assert each is not None and each.shape == LOGITS.shape and each.allclose(torch.full((6, 3), 4.0), atol=1e-5)


def scaled(factor: float, output: Tensor, target: Tensor) -> Tensor:
    return factor * F.mse_loss(output, target)


def test_what_is_not_known_is_an_unknown_callable_and_a_mean() -> None:
    for loss in (functools.partial(scaled, 3.0), functools.partial(F.mse_loss, weird=1), lambda o, t: o.mean()):
        assert not Criterion(loss).known and Criterion(loss).losses(LOGITS, Y) is None
    total, count = Criterion(functools.partial(scaled, 3.0))(LOGITS, LOGITS + 1.0)
    assert count == 6.0 and float(total) == pytest.approx(18.0)


CONVEX: dict[str, tuple[Any, Tensor, bool]] = {
    "cross entropy": (CE, Y, True),
    "positive weights": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.0, 2.0])), Y, True),
    "a negative weight": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, -1.0, 2.0])), Y, False),
    "probabilities": (CE, torch.ones(6, 3) / 3, False),
    "NLL": (nn.NLLLoss(), Y, False),
    "MSE": (nn.MSELoss(), Y, False),
}


@pytest.mark.parametrize("kind", CONVEX)
def test_which_losses_are_known_to_be_convex(kind: str) -> None:
    loss, target, convex = CONVEX[kind]
    assert Criterion(loss).is_convex(target) is convex
    assert not Criterion(CE).is_convex([0, 1])


def test_a_criterions_own_tensors_follow_dtype_and_inference_mode() -> None:
    with torch.inference_mode():
        weight = torch.tensor([1.0, 2.0, 3.0])
    weighted = Criterion(nn.CrossEntropyLoss(weight=weight))
    usable = weighted.usable(torch.device("cpu"))
    assert usable is not weighted and not usable.loss.weight.is_inference() and usable.loss.weight.tolist() == [1, 2, 3]
    assert usable.usable(torch.device("cpu")) is usable
    assert weighted.to(torch.float64, torch.device("cpu")).loss.weight.dtype == torch.float64
    plain = Criterion(lambda o, t: o.sum())
    assert plain.to(torch.float64, torch.device("cpu")) is plain and plain.usable(torch.device("cpu")) is plain
    whole = CriterionLoss(weighted)
    assert whole.usable(torch.device("cpu")).criterion.loss.weight.is_inference() is False
    assert CriterionLoss(usable).usable(torch.device("cpu")).criterion is usable
