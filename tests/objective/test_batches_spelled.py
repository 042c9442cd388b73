"""What counts as data and what is done to batches: every spelling, and every refusal in words."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from layerhess.errors import InputError
from layerhess.objective import batches

X, Y = torch.arange(20.0).view(10, 2), torch.arange(10)
SET = TensorDataset(X, Y)
Pair = namedtuple("Pair", ["x", "y"])


class Spread:
    """Mapping-like without being one, as BatchEncoding is."""

    def __init__(self, **parts: Any) -> None:
        self.parts = parts

    def keys(self) -> Any:
        return self.parts.keys()

    def __getitem__(self, key: str) -> Any:
        return self.parts[key]

    def __len__(self) -> int:
        return len(self.parts)


class Indexed:
    """Iterable by its indices alone."""

    def __getitem__(self, index: int) -> Any:
        return [(X, Y)][index]


class Own:
    """A sampler of whole batches that has no sampler inside."""

    def __iter__(self) -> Iterator[list[int]]:
        yield [0, 1]

    def __len__(self) -> int:
        return 1


def shuffled(seed: int = 0) -> RandomSampler:
    return RandomSampler(SET, generator=torch.Generator().manual_seed(seed))


# -- what is data ------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "a tuple": (X, Y), "a mapping": {"x": X}, "like a mapping": Spread(x=X), "a list of batches": [(X, Y)],
    "a loader": DataLoader(SET, 4), "by index": Indexed(), "a list with one tensor of several": [X, (X, Y)],
}  # fmt: skip
BAD: dict[str, tuple[Any, str]] = {
    "a tensor": (X, "bare tensor"),
    "nothing": (None, "NoneType, not batches"),
    "a string": ("data.pt", "str, not batch"),
    "bytes": (b"x", "bytes, not batch"),
    "an empty mapping": ({}, "empty mapping"),
    "an empty tuple": ((), "empty tuple"),
    "a data set": (SET, "TensorDataset, which yields single examples"),
    "a number": (3, "int, which cannot be iterated"),
    "a generator": (iter([(X, Y)]), "one-shot iterator"),
    "an empty list": ([], "empty list"),
    "a list of tensors": ([X, Y], "list of 2 bare tensors is ambiguous"),
    "like an empty mapping": (Spread(), "empty map"),
}


@pytest.mark.parametrize("any_batch", [False, True])
@pytest.mark.parametrize("kind", GOOD)
def test_what_can_be_read_twice_is_data(kind: str, any_batch: bool) -> None:
    batches.check_data(GOOD[kind], any_batch=any_batch)


@pytest.mark.parametrize("any_batch", [False, True])
@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_is_refused_in_words(kind: str, any_batch: bool) -> None:
    data, words = BAD[kind]
    if kind in ("a tensor", "a list of tensors") and any_batch:
        batches.check_data(data, any_batch=True)  # a batch_loss knows what it is, and a list is a sequence of batches
        return
    with pytest.raises(InputError, match=words) as caught:
        batches.check_data(data, any_batch=any_batch)
    assert caught.value.where == "data" and caught.value.what_to_do


def test_one_batch_or_several() -> None:
    assert all(batches.is_single(one) for one in ((X, Y), X, {"x": X}, Spread(x=X)))
    assert not any(batches.is_single(many) for many in ([(X, Y)], DataLoader(SET), Indexed()))
    assert batches.is_mapping({}) and batches.is_mapping(Spread()) and not batches.is_mapping([X])
    assert [batch is data for data in [(X, Y)] for batch in batches.iterate(data)] == [True]
    assert [len(batch[1]) for batch in batches.iterate(DataLoader(SET, 4))] == [4, 4, 2]


LOADERS: dict[str, tuple[Any, bool]] = {
    "in order": (DataLoader(SET, 4), False),
    "shuffled": (DataLoader(SET, 4, shuffle=True), True),
    "a random sampler": (DataLoader(SET, 4, sampler=shuffled()), True),
    "a sampler in order": (DataLoader(SET, 4, sampler=SequentialSampler(SET)), False),
    "random, behind a batch sampler": (DataLoader(SET, batch_sampler=BatchSampler(shuffled(), 4, False)), True),
    "in order, behind a batch sampler": (
        DataLoader(SET, batch_sampler=BatchSampler(SequentialSampler(SET), 4, False)), False
    ),
    "a batch sampler of one's own": (DataLoader(SET, batch_sampler=Own()), False),
    "without batches, random": (DataLoader(SET, batch_size=None, sampler=shuffled()), True),
    "without batches": (DataLoader(SET, batch_size=None), False),
    "a list": ([(X, Y)], False),
    "one batch": ((X, Y), False),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOADERS)
def test_a_loader_shuffles_if_two_passes_differ(kind: str) -> None:
    """As its passes say: a random order of ten examples is not the same twice."""
    data, shuffles = LOADERS[kind]
    assert batches.is_shuffling(data) is shuffles
    if isinstance(data, DataLoader):
        passes = [[tuple(batch[1].reshape(-1).tolist()) for batch in data] for _ in range(2)]
        assert (passes[0] != passes[1]) is shuffles


def test_which_data_give_the_same_batch_at_every_pass() -> None:
    assert batches.is_stable(DataLoader(SET, 4)) and not batches.is_stable(DataLoader(SET, 4, shuffle=True))
    assert not batches.is_stable(DataLoader(list(SET), 4))  # another data set may augment
    assert batches.is_stable([(X, Y)]) and batches.is_stable((X, Y)) and not batches.is_stable(Indexed())
    assert batches.may_refill(DataLoader(SET)) and batches.may_refill(Indexed())
    assert not (batches.may_refill([X]) or batches.may_refill((X, Y)) or batches.may_refill({"x": X}))


# -- what is done to a batch -------------------------------------------------------------------------------------------


def nested() -> Any:
    return {"p": Pair(X, (Y, [X, 3])), "flag": True, "none": None}


def test_nested_batches_keep_their_form() -> None:
    doubled = batches.tree_map(lambda t: 2 * t, nested(), lambda leaf: "other")
    assert doubled["flag"] == doubled["none"] == "other" and isinstance(doubled["p"], Pair)
    assert isinstance(doubled["p"].y, tuple) and isinstance(doubled["p"].y[1], list) and doubled["p"].y[1][1] == "other"
    assert doubled["p"].x.equal(2 * X) and doubled["p"].y[0].equal(2 * Y) and doubled["p"].y[1][0].equal(2 * X)
    assert batches.tree_map(lambda t: t, nested())["flag"] is True
    assert [t is u for t, u in zip(batches.tensors(nested()), (X, Y, X), strict=True)] == [True] * 3


def test_floating_point_is_cast_and_nothing_else() -> None:
    made = batches.cast(nested(), torch.float64)
    assert made["p"].x.dtype == torch.float64 and made["p"].y[0].dtype == torch.int64 and made["p"].y[1][1] == 3


class Moved:
    """Some batch object that can be moved, as graphs can."""

    device: Any = None

    def to(self, device: torch.device) -> Moved:
        made = Moved()
        made.device = device
        return made


def test_batches_are_moved_and_cloned_where_their_memory_may_change() -> None:
    cpu = torch.device("cpu")
    assert batches.prepare((X, Y), cpu)[0] is X
    cloned = batches.prepare((X, Y), cpu, refilled=True)
    assert cloned[0] is not X and cloned[0].equal(X) and cloned[0].data_ptr() != X.data_ptr()
    assert batches.prepare(Moved(), cpu).device == cpu
    with torch.inference_mode():
        made = torch.ones(2)
    assert made.is_inference() and not batches.prepare(made, cpu).is_inference()


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        ((X, Y), 10),
        ((X, Y[:3]), None),
        ((X, torch.tensor(1.0)), None),
        ((X, {"a": Y, "n": 3, "f": True, "x": None}), 10),
        ((X, "name"), None),
        ((3, 4), None),
        (X[:0], 0),
        (torch.tensor(1.0), None),
        ((), None),
    ],
)
def test_the_number_of_examples_is_what_all_tensors_agree_on(batch: Any, size: int | None) -> None:
    assert batches.leading_size(batch) == size


def sizes(parts: Any) -> list[int]:
    return [len(part[1]) for part in parts]


@pytest.mark.parametrize(("n", "expected"), [(2, [1, 1]), (3, [1, 2]), (5, [1, 4]), (6, [2, 4]), (10, [3, 7])])
def test_halves_are_unequal_parts_of_everything(n: int, expected: list[int]) -> None:
    parts = batches.halves((X[:n], Y[:n]))
    assert parts is not None and sizes(parts) == expected
    assert torch.cat([part[0] for part in parts]).equal(X[:n]) and torch.cat([part[1] for part in parts]).equal(Y[:n])


def test_what_cannot_be_halved() -> None:
    assert batches.halves((X[:1], Y[:1])) is None and batches.halves((X, Y[:3])) is None


@pytest.mark.parametrize(("size", "expected"), [(1, [1] * 10), (3, [3, 3, 3, 1]), (5, [5, 5]), (10, [10]), (99, [10])])
def test_pieces_have_at_most_the_size_asked_for(size: int, expected: list[int]) -> None:
    parts = list(batches.pieces((X, Y), size))
    assert sizes(parts) == expected and torch.cat([part[0] for part in parts]).equal(X)


def test_pieces_of_nothing_and_of_what_has_no_examples() -> None:
    whole = (X, Y)
    assert [piece is whole for piece in batches.pieces(whole, None)] == [True]
    assert sizes(batches.pieces((X[:0], Y[:0]), 3)) == [0]
    with pytest.raises(InputError, match=r"batch_size=3 .*\(10, 2\), \(3,\)"):
        list(batches.pieces((X, Y[:3]), 3))


def test_examples_are_taken_by_slice_or_index() -> None:
    assert batches.take((X, Y), slice(2, 4))[1].tolist() == [2, 3]
    assert batches.take({"y": Y}, torch.tensor([7, 0]))["y"].tolist() == [7, 0]


@pytest.mark.parametrize(
    ("size", "kept"), [(1, [0]), (2, [0, 5]), (3, [0, 3, 6]), (4, [0, 2, 5, 7]), (10, list(range(10)))]
)
def test_a_spread_is_even_over_the_batch(size: int, kept: list[int]) -> None:
    assert batches.spread_slice((X, Y), size)[1].tolist() == kept


def test_a_spread_of_what_is_small_or_cannot_be_cut_is_the_batch_itself() -> None:
    for batch, size in (((X, Y), 10), ((X, Y), 11), ((X, Y[:3]), 2)):
        assert batches.spread_slice(batch, size) is batch


def test_pieces_are_joined_where_nothing_but_their_length_differs() -> None:
    joined = batches.joined([(X[:3], {"y": Y[:3], "n": 1}), (X[3:], {"y": Y[3:], "n": 1})])
    assert joined is not None and joined[0].equal(X) and joined[1]["y"].equal(Y) and joined[1]["n"] == 1
    one = batches.joined([(X, Y)])
    assert one is not None and one[0].equal(X)
    others: list[tuple[Tensor, Any]] = [(X.double(), Y), (X[:, :1], Y), (X, {"y": Y}), (X, Y[:4])]
    assert all(batches.joined([(X, Y), other]) is None for other in others)
    assert batches.joined([(X, {"n": 1}), (X, {"n": 2})]) is None
