"""The first pass: losses that are not finite, no mean over their examples, or count nothing are refused by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from delicate import BATCHES, delicate
from layerhess.checks.survey import survey
from layerhess.curvature.counters import Counters
from refusals import Table, X, Y, analysis, mlp
from witness import untouched

TABLE = Table()
case = TABLE.case

NAN = float("nan")


def with_weight(value: float) -> nn.Module:
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = value
    return model


def with_buffer(value: float) -> nn.Module:
    model = mlp(nn.BatchNorm1d(5)).eval()
    model[2].running_var[0] = value
    return model


class LogOfNegative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x - 5.0)


case("NaN: in the second batch", "the loss is nan", "batch 1", "batch itself holds")(analysis([(X, Y), (X * NAN, Y)]))
case("NaN: a weight", "the loss is nan", "batch 0", "the weight '2.weight'")(analysis(model=lambda: with_weight(NAN)))
case("NaN: a buffer", "the loss is nan", "'2.running_var'")(analysis(model=lambda: with_buffer(NAN)))
case("NaN: a module", "the loss is nan", "batch 0", "output of module '2'")(
    analysis(model=lambda: mlp(LogOfNegative()))
)
case("infinite: a weight", "batch 0", "the weight '2.weight'")(analysis(model=lambda: with_weight(float("inf"))))
case("infinite: the loss", "the loss is inf", "first seen in the loss")(
    analysis(loss=lambda o, t: F.cross_entropy(o, t) / torch.zeros(()))
)

SUMMED = "is not the mean over its first dimension"
case("no mean: a sum", SUMMED, "batch 0", "batch_loss")(
    analysis(loss=lambda o, t: F.cross_entropy(o, t, reduction="sum"))
)
case("no mean: weights of its own", SUMMED)(analysis(loss=lambda o, t: (o * (t == 0)[:, None]).sum() / (t == 0).sum()))
case("no mean: under BatchNorm in train mode", SUMMED)(
    analysis(loss=lambda o, t: F.cross_entropy(o, t, reduction="sum"), model=lambda: mlp(nn.BatchNorm1d(5)))
)
case("no mean: outputs and targets of other lengths", SUMMED)(
    analysis(loss=lambda o, t: o.square().sum(), model=lambda: nn.Sequential(nn.Linear(4, 3), nn.Flatten(0)))
)
case("no mean: split by batch_size", SUMMED)(
    analysis((X, Y), lambda o, t: F.cross_entropy(o, t, reduction="sum"), options={"batch_size": 5})
)


class OwnLoss(nn.Module):
    """Returns its loss, like a Hugging Face model, but summed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.layer(x), labels, reduction="sum")}


case("no mean: a model's own loss", SUMMED, "batch_loss")(
    analysis([{"x": X, "labels": Y}, {"x": X[:5], "labels": Y[:5]}], None, OwnLoss)
)
case("every target ignored", "every target is ignored", "ignore_index")(analysis((X, torch.full((12,), -100))))
case("every target ignored: by class weights of zero", "every target is ignored", "class weights")(
    analysis(loss=nn.CrossEntropyLoss(weight=torch.zeros(3)))
)


@pytest.mark.parametrize("name", TABLE)
def test_bad_data_and_losses_are_refused_in_words(name: str) -> None:
    TABLE.check(name)


def test_ctrl_c_is_looked_for_between_the_batches_of_the_first_pass() -> None:
    model = delicate()
    objective = lh.Objective(model, BATCHES, nn.CrossEntropyLoss())
    looks = []

    def checkpoint() -> None:
        looks.append(1)
        if len(looks) == 2:
            raise KeyboardInterrupt

    with untouched(model), pytest.raises(KeyboardInterrupt), objective.session():
        survey(objective, Counters(), checkpoint)
    assert len(looks) == 2
