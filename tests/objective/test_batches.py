"""What counts as data, and what is done to a batch; the rest is refused in words."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from layerhess.objective import batches
from refusals import PAIRS, Table, X, Y, analysis, mlp

TABLE = Table()
case = TABLE.case

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


@pytest.mark.parametrize("name", TABLE)
def test_bad_data_and_losses_are_refused_in_words(name: str) -> None:
    TABLE.check(name)


def test_pieces_of_batches_are_joined_only_if_alike() -> None:
    x, y = torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 2])
    whole = batches.joined([(x[:1], y[:1]), (x[1:], y[1:])])
    assert torch.equal(whole[0], x) and torch.equal(whole[1], y)
    named = batches.joined([{"a": x, "k": 2}, {"a": x, "k": 2}])
    assert named["a"].shape == (6, 2) and named["k"] == 2
    assert batches.joined([{"a": x, "k": 2}, {"a": x, "k": 3}]) is None
    assert batches.joined([(x, y), (x[:, :1], y)]) is None
    assert batches.joined([(x, y), (x.double(), y)]) is None
    assert batches.joined([(x, y[:2]), (x, y[:2])]) is None
