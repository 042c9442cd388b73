"""Bad data and bad losses: a sentence with what, where and what to do, and the model untouched."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

import layerhess as lh
from refusals import PAIRS, Table, X, Y, analysis, mlp

TABLE = Table()
case = TABLE.case

# -- data --------------------------------------------------------------------------------------------------------------

for _name, _data in {
    "an empty list": [],
    "an empty tuple": (),
    "an empty mapping": {},
    "an empty loader": DataLoader(TensorDataset(X[:0], Y[:0]), batch_size=4),
    "batches without examples": (X[:0], Y[:0]),
}.items():
    case(f"empty data: {_name}", "data")(analysis(_data))
case("empty data: a mean over no examples", "no examples", "data")(
    analysis((X[:0], torch.zeros(0, 3)), lambda o, t: (o - t).square().mean())
)

for _name, _iterator in {
    "a generator": lambda: (pair for pair in PAIRS),
    "an iterator of a list": lambda: iter(PAIRS),
    "a map": lambda: map(tuple, PAIRS),
    "a zip": lambda: zip([X], [Y], strict=True),
}.items():
    case(f"one-shot: {_name}", "one-shot", "second pass", "DataLoader")(analysis(_iterator))


class Changing:
    """Other batches at every pass."""

    def __init__(self, *passes: Any) -> None:
        self.passes, self.number = passes, -1

    def __iter__(self) -> Iterator[Any]:
        self.number += 1
        return iter(self.passes[min(self.number, len(self.passes) - 1)])


class OneIterator:
    """Looks re-iterable, and hands out the same iterator each time."""

    def __init__(self) -> None:
        self.iterator = iter(PAIRS)

    def __iter__(self) -> Iterator[Any]:
        return self.iterator


case("second pass: empty", "changed between two passes", "empty")(analysis(lambda: Changing(PAIRS, [])))
case("second pass: the same iterator, used up", "changed between two passes", "empty")(analysis(OneIterator))
case("second pass: fewer batches", "changed between two passes", "7 where it was 12")(
    analysis(lambda: Changing(PAIRS, PAIRS[:1]))
)
case("second pass: more batches", "changed between two passes")(analysis(lambda: Changing(PAIRS[:1], PAIRS)))
case("second pass: other values", "changes from pass to pass")(analysis(lambda: Changing(PAIRS, [(X + 1.0, Y)])))


class Augmented(Dataset[Any]):
    """Every look at an example shows it differently."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        return X[i] + 0.1 * torch.randn(4), Y[i]


case("second pass: random augmentation", "changes from pass to pass", "without randomness")(
    analysis(DataLoader(Augmented(), batch_size=4))
)
case("second pass: another draw of examples", "changes from pass to pass")(
    analysis(DataLoader(TensorDataset(X, Y), batch_size=4, sampler=WeightedRandomSampler([1.0] * 12, 12)))
)
case("second pass: another batch dropped", "drop_last=False")(
    analysis(DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True, drop_last=True))
)

BOTH = ("(x, y)", "[(x1, y1), (x2, y2), ...]")
case("two bare tensors in a list", "ambiguous", *BOTH)(analysis([X, Y]))
case("a bare tensor", "without targets", *BOTH)(analysis(X))
case("three tensors in a tuple", "tuple of 3", "(inputs, target)")(analysis((X, Y, Y)))
case("data: None", "NoneType", *BOTH)(analysis(None))
case("data: a text", "str", *BOTH)(analysis("mnist"))
case("data: a number", "cannot be iterated", *BOTH)(analysis(5))
case("data: a dataset", "single examples", "DataLoader(dataset")(analysis(TensorDataset(X, Y)))
case("shuffled batches under BatchNorm in train mode", "BatchNorm", "shuffle=False")(
    analysis(DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True), model=lambda: mlp(nn.BatchNorm1d(5)))
)
case("batch_size under BatchNorm in train mode", "BatchNorm", "mode='eval'")(
    analysis(model=lambda: mlp(nn.BatchNorm1d(5)), options={"batch_size": 3})
)
case("batch_size without a common first dimension", "no common first dimension", "batch_size")(
    analysis([(X, Y[:5])], options={"batch_size": 3})
)

# -- the loss ----------------------------------------------------------------------------------------------------------

case("no scalar: one loss an example", "shape (7,), not a scalar", "batch 0", "batch_loss")(
    analysis(loss=lambda o, t: F.cross_entropy(o, t, reduction="none"))
)
case("no scalar: a number", "float, not a scalar")(analysis(loss=lambda o, t: F.cross_entropy(o, t).item()))
case("no scalar: nothing returned", "NoneType, not a scalar")(analysis(loss=lambda o, t: None))
case("no scalar: reduction='none'", "reduction='none'")(analysis(loss=nn.CrossEntropyLoss(reduction="none")))
case("no scalar: a partial function with reduction='none'", "reduction='none'")(
    analysis(loss=functools.partial(F.cross_entropy, reduction="none"))
)
case("a class instead of a criterion", "CrossEntropyLoss()", "parentheses")(analysis(loss=nn.CrossEntropyLoss))
case("a loss that cannot be called", "cannot be called")(analysis(loss="cross entropy"))
case("a criterion of three arguments", "input_lengths", "batch_loss")(analysis(loss=nn.CTCLoss()))
case("no loss for tuples", "no loss was given", "third argument")(analysis(loss=None))
case("no loss in the model's output", "returned no .loss")(analysis([{"input": X}], None))
case("a mapping without labels", "no 'labels'", "keys ['input']")(analysis([{"input": X}]))
case("an output that is no tensor", "returned tuple", "batch_loss")(analysis(model=lambda: nn.LSTM(4, 3)))
case("batch_loss: no pair", "not a pair", "(loss_sum, count)")(
    analysis(loss=lh.batch_loss(lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])))
)
for _count in (-1.0, float("nan"), float("inf")):
    case(f"batch_loss: a count of {_count}", f"count {_count}")(
        analysis(loss=lh.batch_loss(lambda model, batch, n=_count: (model(batch[0]).sum(), n)))
    )

case("no dependence: detached", "does not depend on any trainable parameter", "detach()")(
    analysis(loss=lambda o, t: F.cross_entropy(o.detach(), t))
)
case("no dependence: a constant", "does not depend on any trainable parameter")(
    analysis([(X, Y)], lambda o, t: torch.tensor(1.0))
)


class UnderNoGrad(nn.Module):
    """Trainable layers behind no_grad, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.features(x).relu()
        return self.head(x)


case("no dependence: trainable layers under no_grad", "features", "requires_grad_(False)")(analysis(model=UnderNoGrad))

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


class NormOfZero(nn.Module):
    """A finite loss and gradient whose second derivative is not: the root of a squared zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x - x.detach()).square().sum(1, keepdim=True).sqrt()


case("NaN: the second derivative only", "NaN or infinite", "sqrt")(analysis(model=lambda: mlp(NormOfZero())))

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

ROWS = torch.arange(12.0)
LARGER = ("(12, 1)", "(12,)", "(12, 12)", "unsqueeze")
for _name, _loss in {
    "MSELoss": nn.MSELoss(),
    "mse_loss": F.mse_loss,
    "a partial function": functools.partial(F.smooth_l1_loss, beta=0.5),
    "a function of one's own": lambda o, t: (o - t).square().mean(),
    "an absolute error of one's own": lambda o, t: (o - t).abs().mean(),
}.items():
    case(f"enlarging broadcast: {_name}", *LARGER)(analysis((X, ROWS), _loss, lambda: mlp(outputs=1)))
case("enlarging broadcast: integer targets", *LARGER)(
    analysis((X, torch.arange(12)), lambda o, t: (o - t).square().mean(), lambda: mlp(outputs=1))
)
case("enlarging broadcast: the other way round", "(12,)", "(12, 1)", "(12, 12)")(
    analysis((X, ROWS[:, None]), nn.MSELoss(), lambda: nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)))
)

OUT = ("class index", "out of range", "batch 1")
FOUR = [(X, Y), (X, Y + 1)]
case("class index: too large", *OUT, "index 3", "3 classes", "0 to 2")(analysis(FOUR))
case("class index: negative", *OUT, "index -1", "ignore_index")(analysis([(X, Y), (X, Y - 1)]))
case("class index: for a partial function", *OUT)(
    analysis(FOUR, functools.partial(F.cross_entropy, label_smoothing=0.1))
)
case("class index: for a function of one's own", *OUT)(analysis(FOUR, lambda o, t: F.cross_entropy(o, t)))
case("class index: inside batch_loss", *OUT)(
    analysis(FOUR, lh.batch_loss(lambda m, b: (F.cross_entropy(m(b[0]), b[1], reduction="sum"), len(b[1]))))
)
case("class index: numbers with a fraction", "float32", "long()")(analysis((X, Y.float())))
case("targets of another length", "does not take", "(12, 3)", "(5,)", "batch 0")(analysis([(X, Y[:5])]))
case("every target ignored", "every target is ignored", "ignore_index")(analysis((X, torch.full((12,), -100))))
case("every target ignored: by class weights of zero", "every target is ignored", "class weights")(
    analysis(loss=nn.CrossEntropyLoss(weight=torch.zeros(3)))
)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", TABLE)
def test_bad_data_and_losses_are_refused_in_words(name: str) -> None:
    TABLE.check(name)
