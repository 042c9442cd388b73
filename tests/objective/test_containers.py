"""Batches are the user's own objects: they keep type, attributes and what is no tensor, whatever is done to them."""

from __future__ import annotations

import copy
import types
from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import layerhess as lh
from layerhess.objective import batches
from layerhess.objective.containers import all_finite, obstacle, tensors, tree_map

X, Y = torch.arange(20.0).view(10, 2), torch.arange(10)
Pair = namedtuple("Pair", ["x", "y"])


class Doubled(namedtuple("Doubled", ["x", "y"])):
    """A named tuple with a constructor of its own."""

    def __new__(cls, x: Tensor) -> Doubled:
        return super().__new__(cls, x, x)


class ByName(dict):  # type: ignore[type-arg]
    """A dict whose items are its attributes."""

    __getattr__ = dict.__getitem__


class OwnAttributes(dict):  # type: ignore[type-arg]
    """The same by another trick."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.__dict__ = self


class Moded(list):  # type: ignore[type-arg]
    """A list with a mode, which its constructor needs."""

    def __init__(self, items: Any, mode: str) -> None:
        super().__init__(items)
        self.mode = mode


class Encoding(UserDict):  # type: ignore[type-arg]
    """As Hugging Face's BatchEncoding: its own ``to`` changes it."""

    _encodings = None

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: Any) -> Encoding:
        self.data = {key: value.to(device) for key, value in self.data.items()}
        return self


@dataclass(frozen=True)
class Record:
    """A dataclass that cannot be changed, and whose constructor looks at it."""

    x: Tensor
    y: Tensor
    name: str = "r"

    def __post_init__(self) -> None:
        assert isinstance(self.x, Tensor)


class Plain:
    """What a collate function makes by hand."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.names = x, y, ["a"]


class Slotted:
    """One without a dict of attributes."""

    __slots__ = ("x", "y")

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y


class Movable(Plain):
    """The same with its own ``to``, which changes it."""

    def to(self, device: Any) -> Movable:
        self.x, self.y = self.x.to(device), self.y.to(device)
        return self


def by_key(batch: Any) -> tuple[Tensor, Tensor]:
    return batch["x"], batch["y"]


def by_name(batch: Any) -> tuple[Tensor, Tensor]:
    return batch.x, batch.y


def by_place(batch: Any) -> tuple[Tensor, Tensor]:
    return batch[0], batch[1]


KINDS: dict[str, tuple[Any, Callable[[Any], tuple[Tensor, Tensor]], bool]] = {
    "a tuple": ((X, Y), by_place, True),
    "a list": ([X, Y], by_place, True),
    "a dict": ({"x": X, "y": Y}, by_key, True),
    "a named tuple": (Pair(X, Y), by_name, True),
    "an ordered dict": (OrderedDict(x=X, y=Y), by_key, True),
    "a default dict": (defaultdict(list, x=X, y=Y), by_key, True),
    "a deque": (deque([X, Y]), by_place, True),
    "a dict by name": (ByName(x=X, y=Y), by_name, True),
    "a dict with own attributes": (OwnAttributes(x=X, y=Y), by_name, True),
    "an encoding": (Encoding(x=X, y=Y), by_name, True),
    "a list with a mode": (Moded([X, Y], "train"), by_place, False),
    "a dataclass": (Record(X, Y), by_name, False),
    "a plain object": (Plain(X, Y), by_name, False),
    "an object with slots": (Slotted(X, Y), by_name, True),
    "a movable object": (Movable(X, Y), by_name, False),
    "a view of a dict": (types.MappingProxyType({"x": X, "y": Y}), by_key, True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_container_keeps_its_type_and_its_attributes(kind: str) -> None:
    batch, read, cut = KINDS[kind]
    before = copy.copy(getattr(batch, "__dict__", {}))
    for made in (batches.prepare(batch, torch.device("cpu")), batches.prepare(batch, torch.device("cpu"), True)):
        assert type(made) is type(batch) and all(new.equal(old) for new, old in zip(read(made), (X, Y), strict=True))
    assert made is not batch and read(made)[0].data_ptr() != X.data_ptr()
    double = batches.cast(batch, torch.float64)
    assert type(double) is type(batch) and read(double)[0].dtype == torch.float64 and read(double)[1] is Y
    assert not isinstance(batch, Moded) or double.mode == "train"
    assert not isinstance(batch, Record) or double.name == "r"
    assert read(batch)[0] is X and getattr(batch, "__dict__", {}) == before  # the user's own is as it was
    assert [t is u for t, u in zip(tensors(batch), (X, Y), strict=True)] == [True, True]
    assert (not obstacle(batch)) is cut and batches.leading_size(batch) == (10 if cut else None)
    if cut:
        part = batches.take(batch, slice(2, 5))
        assert type(part) is type(batch) and read(part)[1].tolist() == [2, 3, 4]
        whole = batches.joined([part, batches.take(batch, slice(0, 1))])
        assert type(whole) is type(batch) and read(whole)[1].tolist() == [2, 3, 4, 0]


def test_a_mapping_can_be_emptied_by_a_forward_pass() -> None:
    for kind in ("a dict", "an ordered dict", "a dict by name", "an encoding"):
        batch = KINDS[kind][0]
        batches.prepare(batch, torch.device("cpu")).pop("y")
        assert "y" in batch


def test_a_named_tuple_needs_no_constructor() -> None:
    batch = Doubled(X)
    assert batches.prepare(batch, torch.device("cpu")) is batch
    double = batches.cast(batch, torch.float64)
    assert type(double) is Doubled and double.y.dtype == torch.float64
    largest = torch.max(X, dim=1)
    assert type(batches.cast(largest, torch.float64)) is type(largest)


def test_what_has_no_examples_along_dimension_0_is_not_cut() -> None:
    packed = pack_sequence([X, X[:3]], enforce_sorted=False)
    nested = torch.nested.nested_tensor([X, X[:3]], layout=torch.jagged)
    for batch in (
        packed, nested, (nested, Y[:2]), (X.to_sparse(), Y), (X.to_sparse_csr(), Y), ({X, X + 1}, Y), (X, X.shape),
        (X, {"name": "a"}), Plain(X, Y), (Pair(X, packed), Y),
    ):  # fmt: skip
        assert batches.leading_size(batch) is None and batches.halves(batch) is None
        assert batches.spread_slice(batch, 1) is batch and batches.joined([batch, batch]) is None
        made = batches.cast(batches.prepare(batch, torch.device("cpu")), torch.float64)
        assert type(made) is type(batch) and all(t.dtype in (torch.float64, torch.int64) for t in tensors(made))
    moved = batches.cast(packed, torch.float64)
    assert moved.batch_sizes is packed.batch_sizes and len(tensors(packed)) == 3
    assert {t.dtype for t in batches.cast({X, Y}, torch.float64)} == {torch.float64, torch.int64}


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_rows_of_sparse_inputs_are_cut_where_that_is_asked_for(layout: torch.layout) -> None:
    x = X.to_sparse(layout=layout)
    parts = list(batches.pieces((x, Y), 4))
    assert [part[0].layout for part in parts] == [layout] * 3
    assert all(torch.equal(got[0].to_dense(), X[i : i + 4]) for got, i in zip(parts, (0, 4, 8), strict=True))
    chosen = batches.take((x, Y), torch.tensor([1, 7]))
    assert chosen[0].layout == layout and torch.equal(chosen[0].to_dense(), X[[1, 7]])

    class Sparse(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sparse.mm(x, self.weight.T) + self.bias

    torch.manual_seed(0)
    model = Sparse(X.shape[1], 10)
    whole, cut = (
        lh.analyze(lh.Objective(model, (0.1 * x, Y), nn.CrossEntropyLoss(), batch_size=size)).full for size in (None, 4)
    )
    assert whole is not None and cut is not None and whole.solved and cut.solved
    assert abs(whole.eigenvalues[0] - cut.eigenvalues[0]) <= whole.error_bounds[0] + cut.error_bounds[0]


def test_what_keeps_a_batch_whole_is_told() -> None:
    packed = pack_sequence([X, X[:3]], enforce_sorted=False)
    nested = torch.nested.nested_tensor([X, X[:3]], layout=torch.jagged)
    for batch, words in (
        ((packed, Y), "it holds a PackedSequence"), ((nested, Y), "it holds a nested tensor"),
        (Record(X, Y, "r"), "it holds a str"), ((X, {Y}), "it holds a set"), ((X, Y[0]), "a tensor without dimensions"),
        ((X.to_sparse_csc(), Y), "it holds a sparse_csc tensor"), ("words", "it holds a str"),
        (Moded([X, Y], "a"), "Moded with more than its items (mode)"), ((X, Y[:5]), "no common first dimension ((10, "),
        ((1.0, True), "it holds no tensors"),
    ):  # fmt: skip
        with pytest.raises(lh.InputError) as caught:
            list(batches.pieces(batch, 4))
        assert words in str(caught.value) and "batch_size=4" in str(caught.value) and len(str(caught.value)) <= 400


class Stubborn(list):  # type: ignore[type-arg]
    """It forbids copies."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("no")


class Elsewhere:
    """Its ``to`` is no move to a device."""

    def to(self, unit: str) -> str:
        return unit.upper()


def test_what_cannot_be_copied_or_moved_goes_as_it_came() -> None:
    stubborn, elsewhere, layer = Stubborn([X]), Elsewhere(), nn.Linear(2, 2)
    assert batches.cast(stubborn, torch.float64) is stubborn
    assert batches.prepare(elsewhere, torch.device("cpu")) is elsewhere
    assert tree_map(lambda t: t, (layer, Plain, torch.Size([3])))[0] is layer and tensors((layer, Plain)) == []
    movable = KINDS["a movable object"][0]
    assert batches.prepare(movable, torch.device("meta")).x.device.type == "meta" and movable.x is X


def test_finite_numbers_are_looked_for_in_sparse_and_nested_tensors() -> None:
    bad = X.clone()
    bad[3, 1] = float("nan")
    for make in (
        lambda t: t, lambda t: t.to_sparse(), lambda t: t.to_sparse_csr(),
        lambda t: torch.nested.nested_tensor([t, t[:2]], layout=torch.jagged),
        lambda t: torch.nested.nested_tensor([t, t[:2]]),
    ):  # fmt: skip
        assert all_finite(make(X)) and not all_finite(make(bad))
    assert all_finite(Y)


def test_hugging_faces_own_containers() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_outputs import BaseModelOutput

    encoding = transformers.BatchEncoding({"x": X, "y": Y})
    output = BaseModelOutput(last_hidden_state=X)
    for batch in (encoding, output):
        double = batches.cast(batches.prepare(batch, torch.device("cpu")), torch.float64)
        assert type(double) is type(batch) and batches.leading_size(batch) == 10
        assert batches.take(batch, slice(0, 2))[next(iter(batch))].shape == (2, 2)
    assert batches.cast(output, torch.float64).last_hidden_state.dtype == torch.float64
    assert batches.cast(encoding, torch.float64).x.dtype == torch.float64 and encoding.x is X


class Graph:
    """As those of torch_geometric: its tensors lie deeper, ``to`` and ``apply`` change it, copies have their own."""

    def __init__(self, **parts: Tensor) -> None:
        self.parts = parts

    def __copy__(self) -> Graph:
        return Graph(**self.parts)

    def apply(self, function: Callable[[Tensor], Tensor]) -> Graph:
        self.parts = {name: function(part) for name, part in self.parts.items()}
        return self

    def to(self, device: Any) -> Graph:
        return self.apply(lambda part: part.to(device))


def test_objects_that_apply_a_function_to_their_tensors_are_cast() -> None:
    graph = Graph(x=X, edges=Y)
    made, _ = batches.cast(batches.prepare((graph, Y), torch.device("cpu")), torch.float64)
    assert {name: part.dtype for name, part in made.parts.items()} == {"x": torch.float64, "edges": torch.int64}
    assert graph.parts["x"] is X and batches.leading_size((graph, Y)) is None


def test_complex_tensors_are_cast_with_the_others() -> None:
    made = batches.cast((X.to(torch.complex64), X), torch.float64)
    assert [part.dtype for part in made] == [torch.complex128, torch.float64]
