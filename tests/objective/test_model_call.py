"""Inputs reach the model as its forward takes them: by name, by position, or as the one object that they are."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import layerhess as lh
from layerhess.errors import InputError
from layerhess.objective.losses import evaluation_of
from layerhess.objective.model_call import accepted, call, described, kind, without_unnamed
from refusals import Table, analysis

A, B, T = torch.ones(4, 2), torch.zeros(4, 2), torch.arange(4)
Pair = namedtuple("Pair", ["a", "b"])
Other = namedtuple("Other", ["c", "d"])
Logits = namedtuple("Logits", ["logits"])


def model(forward: Any) -> nn.Module:
    made = nn.Module()
    made.forward = forward  # type: ignore[method-assign]
    return made


def one(x: Any) -> Any:
    return ("one", x)


def two(a: Any, b: Any) -> Any:
    return ("two", a, b)


def optional(x: Any, mask: Any = None) -> Any:
    return ("optional", x, mask)


def open_ended(*args: Any, **named: Any) -> Any:
    return (args, named)


def test_logits_are_taken_from_what_holds_them() -> None:
    net = nn.Linear(2, 4)
    expected = nn.CrossEntropyLoss(reduction="sum")(net(A), T)
    for wrap in (lambda z: z, lambda z: {"logits": z}, lambda z: Logits(z)):
        total, count = evaluation_of(nn.CrossEntropyLoss())(model(lambda x, wrap=wrap: wrap(net(x))), (A, T))
        assert count == 4.0 and total.equal(expected)


def test_positions() -> None:
    assert call(model(one), A) == ("one", A)
    assert call(model(two), (A, B)) == ("two", A, B) and call(model(two), [A, B]) == ("two", A, B)
    assert call(model(two), Pair(A, B)) == ("two", A, B) and call(model(two), Other(A, B)) == ("two", A, B)
    assert call(model(one), (A,)) == ("one", (A,)) or call(model(one), (A,)) == ("one", A)
    assert call(model(optional), (A, B)) == ("optional", A, B) and call(model(optional), [A, B], T) == (
        "optional",
        A,
        B,
    )
    assert call(model(open_ended), (A, B)) == ((A, B), {})


def test_one_object() -> None:
    bags = [A, A[:3]]
    packed = pack_sequence([A, A[:3]])
    for inputs in (bags, tuple(bags), [A, B, A], Pair(A, B)):
        assert call(model(one), inputs)[1] is inputs
    assert call(model(one), packed)[1] is packed and call(model(optional), packed)[1] is packed
    assert call(model(optional), bags, T[:2])[1] is bags  # a bag for each target
    assert call(model(one), (A,), T[:1])[1] == (A,)
    assert call(model(optional), Other(A, B))[1] == Other(A, B)
    assert call(model(optional), torch.Size([2, 3]))[1] == torch.Size([2, 3])


def test_names() -> None:
    assert call(model(two), {"a": A, "b": B, "id": 3}) == ("two", A, B)
    assert call(model(optional), {"x": A, "labels": T}) == ("optional", A, None)
    assert call(model(one), {"features": A}) == ("one", {"features": A})  # the model takes the mapping itself
    assert call(model(open_ended), {"a": A, "id": 3}) == ((), {"a": A, "id": 3})
    assert accepted(model(two), {"a": A, "labels": T}) == {"a": A}
    with pytest.raises(InputError, match=r"forward\(a, b\) .* keys of a batch: 'a', 'c'") as caught:
        call(model(two), {"a": A, "c": B})
    assert "batch_loss" in caught.value.what_to_do


def test_keys_that_are_left_out_are_named() -> None:
    def rest(forward: Any, batch: Any) -> tuple[Any, str]:
        return without_unnamed(model(forward), batch)

    kept, note = rest(one, {"x": A, "id": 1, "text": "a", "labels": T})
    assert kept == {"x": A, "labels": T} and note.endswith("not passed to it: 'id', 'text'")
    kept, note = rest(one, ({"x": A, "id": 1}, T))
    assert kept == ({"x": A}, T) and "'id'" in note
    for batch in ({"x": A, "labels": T}, (A, T), {"features": A, "labels": T}, ({"features": A}, T)):
        assert rest(one, batch) == (batch, "")
    assert rest(open_ended, {"id": 1, "text": "a"})[1] == ""
    some, batch = model(lambda x, **others: (x, others)), {"x": A, "id": T, "text": ["a"] * 4, "name": "b"}
    assert call(some, batch) == (A, {"id": T}) and "'text', 'name'" in without_unnamed(some, batch)[1]


def test_a_batch_in_words() -> None:
    said = kind({"x": A, "of": [T, "name"], "n": None})
    assert said == "dict(x: float32 tensor (4, 2), of: list(int64 tensor (4,), str), n: NoneType)"
    assert kind(A.to_sparse()) == "float32 tensor (4, 2) sparse_coo" and kind(A.numpy()) == "ndarray (4, 2) of float32"
    assert kind([A] * 9).endswith("... 3 more)")
    many = model(lambda a, b=1, c=2, d=3, e=4, f=5, g=6, *args, **named: None)
    assert described(many, A, "batch 3").endswith("Module.forward(a, b=..., c=..., d=..., e=..., f=..., ... 3 more).")
    assert described(model(two), (A, T), "batch 3").startswith("This came from batch 3 = tuple(float32 tensor (4, 2), ")


# -- the whole way, against a float64 Hessian written out --------------------------------------------------------------

SEQUENCES = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (5, 4, 2, 6, 3, 7)]
LABELS = torch.tensor([0, 1, 2, 1, 0, 2])


class Bags(nn.Module):
    """The same function of a list, a packed sequence, a nested tensor, and a sparse matrix that sums rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, bags: Any, mask: Any = None) -> Tensor:
        assert mask is None
        if isinstance(bags, PackedSequence):
            padded, lengths = nn.utils.rnn.pad_packed_sequence(bags, batch_first=True)
            bags = [row[:n] for row, n in zip(padded, lengths, strict=True)]
        if isinstance(bags, Tensor) and bags.is_nested:
            hidden = torch.tanh(self.inner(bags))
            parts = torch.split(hidden.values(), hidden.offsets().diff().tolist())
            return self.outer(torch.stack([part.sum(0) for part in parts]))
        return self.outer(torch.stack([torch.tanh(self.inner(bag)).sum(0) for bag in bags]))


class Summed(Bags):
    def forward(self, rows: Tensor, sums: Tensor) -> Tensor:  # type: ignore[override]
        return self.outer(sums @ torch.tanh(self.inner(rows)))


def true_top() -> float:
    net = Bags().double()
    shapes = {name: p.shape for name, p in net.named_parameters()}

    def loss(flat: Tensor) -> Tensor:
        parts = torch.split(flat, [s.numel() for s in shapes.values()])
        named = {name: part.view(s) for (name, s), part in zip(shapes.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(net, named, ([s.double() for s in SEQUENCES],)), LABELS)

    flat = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    return float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1])


def sums(lengths: list[int]) -> Tensor:
    return torch.block_diag(*[torch.ones(1, n) for n in lengths])


def cut(make: Any) -> list[Any]:
    return [(make(SEQUENCES[:4]), LABELS[:4]), (make(SEQUENCES[4:]), LABELS[4:])]


def one_graph(layout: str) -> Any:
    matrix = sums([len(s) for s in SEQUENCES])
    return (torch.cat(SEQUENCES), matrix.to_sparse() if layout == "coo" else matrix.to_sparse_csr()), LABELS


FORMS: dict[str, Any] = {
    "lists": lambda: cut(list),
    "tuples": lambda: cut(tuple),
    "pairs that might be a mask": lambda: [(SEQUENCES[i : i + 2], LABELS[i : i + 2]) for i in (0, 2, 4)],
    "packed": lambda: cut(lambda part: pack_sequence(part, enforce_sorted=False)),
    "nested": lambda: cut(lambda part: torch.nested.nested_tensor(part, layout=torch.jagged)),
    "named": lambda: [{"bags": SEQUENCES, "labels": LABELS, "id": "a", "weight": None}],
    "COO": lambda: one_graph("coo"),
    "CSR": lambda: one_graph("csr"),
}
LOSSES: dict[str, Any] = {
    "criterion": nn.CrossEntropyLoss(),
    "callable": lambda o, t: F.cross_entropy(o, t),
    "batch_loss": lh.batch_loss(
        lambda o, b: (F.cross_entropy(o, b[1], reduction="sum"), len(b[1])), output=lambda m, b: call(m, b[0], b[1])
    ),
}
TOP = true_top()


def twice_differentiable() -> bool:
    """torch 2.7 has no second derivative of a layer on a jagged tensor."""
    net = Bags()
    ((bags, labels), _) = FORMS["nested"]()
    try:
        slope = torch.autograd.grad(F.cross_entropy(net(bags), labels), net.inner.weight, create_graph=True)[0]
        torch.autograd.grad(slope.sum(), net.inner.weight)
    except RuntimeError as error:
        assert "is not differentiable" in str(error)
        return False
    return True


@pytest.mark.parametrize(
    ("form", "loss"),
    [
        (form, loss) for form in FORMS for loss in LOSSES if (form, loss) != ("named", "batch_loss")
    ],  # reads its own keys
)
def test_batches_of_every_form_give_the_same_number(form: str, loss: str) -> None:
    net = Summed() if form in ("COO", "CSR") else Bags()
    if form == "nested" and not twice_differentiable():
        with pytest.raises(lh.InputError, match="nested tensors of the batches"):
            lh.analyze(lh.Objective(net, FORMS[form](), LOSSES[loss]), blocks="weight")
        return
    found = lh.analyze(lh.Objective(net, FORMS[form](), LOSSES[loss]), blocks="weight")
    assert found.full is not None
    assert abs(float(found.full.eigenvalues[0]) - TOP) <= float(found.full.error_bounds[0]) + 1e-6
    assert not any("no copy of the model" in note for note in found.notes)
    assert any("'id', 'weight'" in note for note in found.notes) is (form == "named")


def test_other_keys_do_not_keep_batches_whole() -> None:
    batch = {"x": torch.ones(6, 2), "labels": torch.arange(6) % 4, "text": ["a"] * 6}
    made = lh.Objective(Scaled(), [batch], nn.CrossEntropyLoss(), batch_size=4)
    assert [len(piece["labels"]) for piece in made.batches()] == [4, 2] and "'text'" in made.notes[0]
    assert len(batch) == 3 and "text" not in next(iter(made.subset(2).batches()))


TABLE = Table()
TABLE.case("no second derivative of nested tensors", "nested tensors", "padded")(
    analysis(
        cut(lambda part: torch.nested.nested_tensor(part, layout=torch.jagged)),
        model=lambda: Nested(),
    )
)
TABLE.case("a mapping without what forward needs", "'features'", "forward(x", "names of forward's")(
    analysis([{"features": A, "labels": T}], model=lambda: Needs())
)
TABLE.case("a mapping for a module that takes a tensor", "forward(input)", "whole dict", "'features'", "key 'input'")(
    analysis([({"features": A}, T)], model=lambda: nn.Sequential(nn.Linear(2, 4)))
)
TABLE.case("two keys for a module that takes a tensor", "'features', 'mask':", "batch 0", "key 'input'")(
    analysis([{"features": A, "mask": A, "labels": T}], model=lambda: nn.Linear(2, 4))
)
TABLE.case("a list for a module that takes a tensor", "list(", "batch 0", "dict by the names of forward's arguments")(
    analysis([([[1.0, 2.0]], T[:1])], model=lambda: nn.Linear(2, 4))
)
TABLE.case("another dtype", "float64 tensors", "weights are float32", "x.to(torch.float32)")(
    analysis((torch.ones(12, 4).double(), torch.arange(12) % 3))
)


class Nested(Bags):
    def forward(self, bags: Tensor) -> Tensor:  # type: ignore[override]
        return self.outer(torch.tanh(self.inner(bags)).sum(1))


class Needs(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 4)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * scale


class Scaled(Needs):
    def forward(self, x: Tensor, scale: Any = 1.0) -> Tensor:  # type: ignore[override]
        return super().forward(x, scale)


@pytest.mark.parametrize("name", TABLE)
def test_what_the_model_cannot_take_is_refused_in_words(name: str) -> None:
    TABLE.check(name)


def test_other_exceptions_of_the_forward_pass_say_which_batch_and_what_forward_takes() -> None:
    data = [(A, T), (torch.ones(4, 3), T)]
    with pytest.raises(RuntimeError, match="cannot be multiplied") as caught:
        lh.analyze(lh.Objective(nn.Sequential(nn.Linear(2, 4)), data, nn.CrossEntropyLoss()))
    (note,) = caught.value.__notes__
    assert note.startswith("This came from batch 1 = tuple(float32 tensor (4, 3), int64 tensor (4,)); ")
    assert "Sequential.forward(input" in note


def test_lists_of_inputs_reach_forward_in_one_way_only() -> None:
    """Two bags of two rows look like two arguments, bags of other sizes like one list."""

    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 1)

        def forward(self, bags: Any, scale: Any = None) -> Tensor:
            means = torch.stack([self.a(bag).mean() for bag in bags])
            return means if scale is None else means * scale.mean()

    bags, target = [torch.randn(n, 3) for n in (2, 2, 3, 5)], torch.randn(4)
    for data in ([(bags[:2], target[:2]), (bags[2:], target[2:])], [(bags[2:], target[2:]), (bags[:2], target[:2])]):
        with pytest.raises(lh.InputError, match="by position, those of others as one list"):
            lh.analyze(lh.Objective(Bags(), data, nn.MSELoss()))


def test_an_error_of_the_loss_is_not_blamed_on_the_model() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)  # type: ignore[no-any-return]

    data = [({"x": torch.randn(5, 3)}, torch.randn(5, 1))]
    with pytest.raises(AttributeError, match="prediction"):
        lh.analyze(lh.Objective(Named(), data, lambda out, y: (out.prediction - y).square().mean()))
