"""A user's metric of the model with changed weights; whatever it does, the plan is kept."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from layerhess.planning.metric import measured_metric, metric_of
from layerhess.planning.weights.applied import changed
from layerhess.results.options import Quantize
from witness import refused, untouched

X = torch.randn(23, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (23,), generator=torch.Generator().manual_seed(1))
DATA = [(X[:9], Y[:9]), (X[9:], Y[9:])]
CHOICES: list[dict[str, Any]] = [{}, {"0.weight": Quantize(1)}, {"2.weight": Quantize(2), "0.weight": Quantize(2)}]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def right(output: Tensor, target: Tensor) -> Tensor:
    return output.argmax(1) == target


def of_all(choice: dict[str, Any]) -> np.ndarray[Any, Any]:
    model = network()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in choice:
                weight.copy_(changed(choice[name], weight))
        return right(model(X), Y).double().numpy()


def scores(metric: Any, loss: Any = None, data: Any = DATA) -> Any:
    model = network()
    objective = lh.Objective(model, data, loss or nn.CrossEntropyLoss())
    known = metric_of(metric)
    assert known is not None
    with untouched(model), objective.session():
        return measured_metric(objective, known, CHOICES)


@pytest.mark.parametrize("form", ["each", "mean", "number", "model"])
def test_the_accuracy_of_every_choice(form: str) -> None:
    metric = {
        "each": right,
        "mean": lambda output, target: right(output, target).double().mean(),
        "number": lambda output, target: float(right(output, target).double().mean()),
        "model": lambda model: float(right(model(X), Y).double().mean()),
    }[form]
    found, said = scores(metric)
    assert said == ""
    for score, choice in zip(found, CHOICES, strict=True):
        wanted = of_all(choice)
        assert score.value == pytest.approx(wanted.mean())
        if form == "each":
            assert score.error == pytest.approx(wanted.std(ddof=1) / math.sqrt(23))
    assert len({score.value for score in found}) > 1
    if form == "model":
        assert all(math.isnan(score.error) for score in found)


def test_of_a_batch_loss_it_gets_the_output_or_the_model_and_the_batch() -> None:
    def squared(z: Tensor, batch: Any) -> tuple[Tensor, float]:
        return z.square().sum(), len(z)

    with_output = lh.batch_loss(squared, output=lambda model, batch: model(batch[0]))
    found, _ = scores(lambda output, batch: right(output, batch[1]), with_output)
    plain = lh.batch_loss(lambda model, batch: squared(model(batch[0]), batch))
    other, _ = scores(lambda model, batch: right(model(batch[0]), batch[1]), plain)
    for score, again, choice in zip(found, other, CHOICES, strict=True):
        assert score == again and score.value == pytest.approx(of_all(choice).mean())


def raises(output: Tensor, target: Tensor) -> Tensor:
    raise ValueError("no such class")


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (raises, "the metric raises raised ValueError: no such class; the plan is kept"),
        (lambda output, target: math.nan, "is NaN or infinite for some plans; the plan is kept"),
        (lambda output, target: output.new_zeros(0), "raised ValueError: it returned nothing"),
        (lambda output, target: "good", "raised"),
        (lambda output, target: None, "raised"),
        (lambda model: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_a_metric_that_fails_is_said_and_is_no_number(metric: Any, said: str) -> None:
    found, why = scores(metric)
    assert said in why and all(math.isnan(score.value) for score in found)


def test_a_metric_that_fails_for_one_plan_only_leaves_the_others() -> None:
    calls = []

    def once(output: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        return right(output, target) if len(calls) != 2 else torch.full((len(output),), math.nan)

    found, why = scores(once)
    assert why and [math.isnan(score.value) for score in found] == [False, True, False]


def test_ctrl_c_in_a_metric_is_no_failure_of_it() -> None:
    def interrupted(output: Tensor, target: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scores(interrupted)


def test_a_metric_that_changes_the_models_mode_leaves_it_as_it_was() -> None:
    def careless(model: nn.Module) -> float:
        model.eval()
        model[0].weight.data.zero_()  # type: ignore[operator,union-attr]
        return 0.5

    found, why = scores(careless)
    assert [score.value for score in found] == [0.5] * 3 and not why


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("accuracy", "the metric is 'accuracy'"),
        (0.5, "the metric is 0.5"),
        (nn.Softmax, "the class Softmax"),
        (lambda a, b, c: 0, "cannot be called with an output and a target"),
    ],
)
def test_what_is_no_metric_is_refused(value: Any, said: str) -> None:
    with refused(None, said, "metric(output, target)"):
        metric_of(value)


def test_forms_of_metrics_are_told_apart() -> None:
    assert metric_of(None) is None
    two, one = metric_of(right), metric_of(lambda model: 0.0)
    assert two is not None and not two.whole and two.name == "right"
    assert one is not None and one.whole
    builtin = metric_of(max)
    assert builtin is not None and not builtin.whole
