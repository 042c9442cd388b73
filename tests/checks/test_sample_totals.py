"""Which examples stand for the data, and what the first pass adds up, on batches whose numbers are known."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from layerhess.checks.mean import adds_up
from layerhess.checks.sample import Sampler, by_example
from layerhess.checks.survey import survey
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import DataPass, Request
from layerhess.errors import InputError
from layerhess.objective.blocks import make_block
from layerhess.objective.objective import Objective


class Weighed(nn.Module):
    """z = w x, so that every example's loss is what its input says."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


def batch(start: int, size: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Examples that carry their own numbers, times a factor."""
    x = torch.arange(start, start + size).double()
    return scale * x, torch.zeros(size).double()


def objective(data: Any, loss: Any = None) -> Objective:
    return Objective(Weighed(), data, loss or nn.MSELoss())


def sampler(batches: list[Any], counts: list[float] | None = None, curvatures: list[Any] | None = None) -> Sampler:
    """Offered everything, with the mean of |x| as its loss."""
    made = Sampler(objective(batches))
    for index, (x, y) in enumerate(batches):
        count = float(len(x)) if counts is None else counts[index]
        made.offer(
            index, (x, y), float(x.abs().mean()) * count, count, None if curvatures is None else curvatures[index]
        )
    return made


def kept(chosen: list[tuple[int, Any]]) -> list[tuple[int, list[float]]]:
    return [(index, piece[0].tolist()) for index, piece in chosen]


def spread(start: int, size: int, examples: int) -> list[float]:
    """``examples`` of ``size`` numbers from ``start``, evenly."""
    return [float(start + i * size // examples) for i in range(examples)]


@pytest.mark.parametrize(
    ("examples", "wanted"), [(8, 8), (100, 8), (16 * 8, 8), (16 * 10, 10), (16 * 32, 32), (10_000, 32)]
)
def test_a_sixteenth_of_one_batchs_examples_is_eight_to_thirty_two(examples: int, wanted: int) -> None:
    first = spread(0, 64, 32)  # what is held of every batch
    assert kept(sampler([batch(0, 64)]).chosen(examples)) == [(0, [first[i * 32 // wanted] for i in range(wanted)])]


def test_the_first_the_largest_and_the_middle_batch_are_kept() -> None:
    data = [batch(100 * i, 12, scale=50.0 if i == 3 else 1.0) for i in range(8)]
    found = kept(sampler(data).chosen(24 * 16))
    assert [index for index, _ in found] == [0, 3, 5]  # the middle of the others: 1, 2, 4, 5, 6, 7
    assert [len(piece) for _, piece in found] == [8, 8, 8]
    assert found[0][1] == spread(0, 12, 8)
    two = kept(sampler(data).chosen(23 * 16))  # too few examples for a third piece
    assert [index for index, _ in two] == [0, 3] and [len(piece) for _, piece in two] == [11, 11]
    assert [len(piece) for _, piece in kept(sampler(data).chosen(8 * 16))] == [4, 4]


def test_the_largest_loss_is_that_of_an_example_and_its_sign_does_not_matter() -> None:
    made = Sampler(objective([batch(0, 4)]))
    for index, (value, count) in enumerate([(900.0, 1.0), (8.0, 4.0), (-30.0, 10.0), (5.0, 2.0)]):
        made.offer(index, batch(10 * index, 4), value, count)
    assert [index for index, _ in made.chosen(8)] == [0, 2]  # the first one is in anyway


def test_a_batch_that_counts_nothing_is_passed_over() -> None:
    data = [batch(10 * i, 4) for i in range(3)]
    assert [index for index, _ in sampler(data, counts=[0.0, 4.0, 4.0]).chosen(8)] == [1, 2]
    assert sampler(data, counts=[0.0, 0.0, 0.0]).chosen(8) == [(0, data[0])]


def test_examples_of_many_terms_are_half_as_many() -> None:
    data = [batch(0, 40), batch(100, 40)]
    for terms, sizes in ((31.9, [16, 16]), (32.0, [8, 8])):
        found = kept(sampler(data, counts=[40.0, 40.0 * terms]).chosen(10_000))
        assert [len(piece) for _, piece in found] == sizes
    few = kept(sampler(data, counts=[40.0, 40.0 * 50]).chosen(16))
    assert [len(piece) for _, piece in few] == [2, 2]


@pytest.mark.parametrize("number", [9, 10, 30, 100])
def test_of_many_batches_a_few_are_held_and_the_middle_one_is_near_the_middle(number: int) -> None:
    made = sampler([batch(10 * (number - i), 4) for i in range(number)])  # the loss falls, so batch 1 is the largest
    assert len(made._others) <= 8
    found = [index for index, _ in made.chosen(10_000)]
    assert found[:2] == [0, 1] and abs(found[2] - number / 2) <= number / 4


def test_a_batch_that_cannot_be_cut_is_kept_whole() -> None:
    class Whole(Weighed):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) != 40:
                raise ValueError("40 examples, please")
            return super().forward(x)

    made = Sampler(Objective(Whole(), [batch(0, 40)], nn.MSELoss()))
    made.offer(0, batch(0, 40), 1.0, 40.0)
    assert len(made.chosen(40)[0][1][0]) == 40
    for bad in (float("nan"), float("inf")):
        x, y = batch(0, 40)
        x[0] = bad  # the first one is in every spread
        assert len(sampler([(x, y)]).chosen(40)[0][1][0]) == 40


# -- the most curved examples ------------------------------------------------------------------------------------------


def test_curvature_of_items_is_summed_in_each_example() -> None:
    six = torch.arange(6.0)
    assert by_example(batch(0, 3), six).tolist() == [1.0, 5.0, 9.0]  # type: ignore[union-attr]
    assert by_example(batch(0, 6), six).tolist() == six.tolist()  # type: ignore[union-attr]
    assert by_example(batch(0, 4), six) is None and by_example(batch(0, 3), None) is None
    assert by_example(batch(0, 0), six) is None and by_example(torch.tensor(1.0), six) is None


def test_the_most_curved_examples_of_all_are_measured_beside_a_spread() -> None:
    """Three batches of 20: example 7 of each is far more curved than all others, with known excess."""
    data = [batch(100 * i, 20) for i in range(3)]
    curvatures = [torch.ones(20).double() for _ in range(3)]
    for i, own in enumerate(curvatures):
        own[7] = 100.0 + i
    made = sampler(data, curvatures=curvatures)
    pieces = [piece for _, piece in made.chosen(60)]
    mean = float(torch.cat(curvatures).mean())
    found = made.measured(pieces, 60, mean, 0.75)
    whole = [float(x) for piece in found.pieces for x in piece[0]]
    assert {7.0, 107.0, 207.0} <= set(whole) and len(found.pieces) == 1
    every = torch.cat(curvatures)
    top = float(every.sort(descending=True).values[:8].sum())
    assert found.excess == pytest.approx(max(1.0, top / len(whole) / mean))
    assert found.curvature == 0.75 and len(found.seen) == 1
    assert sum(x in (7.0, 107.0, 207.0) for x in whole) >= 3


def test_examples_that_are_alike_are_measured_as_chosen() -> None:
    data = [batch(0, 20), batch(100, 20)]
    for most, even in ((2.0, True), (2.3, False)):
        curvatures = [torch.ones(20).double(), torch.ones(20).double()]
        curvatures[1][3] = most
        made = sampler(data, curvatures=curvatures)
        pieces = [piece for _, piece in made.chosen(40)]
        found = made.measured(pieces, 40, float(torch.cat(curvatures).mean()), 1.0)
        assert (found.pieces is pieces) is even and (found.curvature == 0.0) is even
        assert found.excess >= 1.0
    unknown = sampler(data)
    pieces = [piece for _, piece in unknown.chosen(40)]
    assert unknown.measured(pieces, 40, 0.0, 0.0).pieces is pieces


def test_only_three_batches_of_curved_examples_are_held_the_most_curved_ones() -> None:
    data = [batch(100 * i, 6) for i in range(6)]
    peaks = [50.0, 10.0, 70.0, 5.0, 60.0, 20.0]
    curvatures = [torch.full((6,), 0.1).double() for _ in peaks]
    for own, peak in zip(curvatures, peaks, strict=True):
        own[2] = peak
    made = sampler(data, curvatures=curvatures)
    assert [float(own[0]) for own, _ in made._curved] == [70.0, 60.0, 50.0]
    assert [float(piece[0][0]) for _, piece in made._curved] == [202.0, 402.0, 2.0]


# -- the survey --------------------------------------------------------------------------------------------------------


def surveyed(data: Any, loss: Any = None, model: nn.Module | None = None, **options: Any) -> Any:
    made = Objective(model or Weighed(), data, loss or nn.MSELoss(), **options)
    counters = Counters()
    with made.session():
        found = survey(made, counters)
    assert counters.total("forwards") == found.batches
    return found


def test_totals_of_the_data_are_those_of_its_batches() -> None:
    data = [batch(1, 3), batch(10, 5), batch(20, 2)]
    found = surveyed(data)
    everything = torch.cat([x for x, _ in data])
    assert found.loss_sum == pytest.approx(float((everything**2).sum())) and found.count == 10.0
    assert (found.examples, found.batches, found.largest, found.longest) == (10, 3, 5, 5.0)
    assert found.places == ["0", "2"] and found.sample_size == 5 and found.sample[0].tolist() == [1.0, 2.0, 3.0]
    wide = surveyed([(torch.ones(3, 4).double(), torch.zeros(3, 4).double())])
    assert wide.longest == 12.0 and wide.count == 12.0 and wide.largest == 3


def test_a_survey_can_be_stopped_between_batches() -> None:
    made, seen = objective([batch(1, 3), batch(5, 3)]), []

    def checkpoint() -> None:
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), made.session():
        survey(made, Counters(), checkpoint)
    assert len(seen) == 2


def test_data_without_examples_or_targets_is_refused() -> None:
    for data, loss, words in (
        ([batch(0, 0)], None, "hold no examples"),
        ([(torch.randn(2, 3).double(), torch.full((2,), -100))], nn.CrossEntropyLoss(), "every target is ignored"),
        (Nothing(), None, "the data is empty"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            surveyed(data, loss)
        assert caught.value.where == "data"
    assert surveyed([batch(0, 0), batch(1, 2)]).count == 2.0


class Nothing:
    def __iter__(self) -> Any:
        return iter(())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [("batch", "batch 1, the batch itself holds"), ("weight", "batch 0, the weight 'w' holds"),
     ("loss", "first seen in the loss"), ("module", "first seen in the output of module 'inner'")],
)  # fmt: skip
def test_a_loss_that_is_not_finite_is_traced_back(spoil: str, words: str) -> None:
    model: Any = Weighed()
    data, loss = [batch(0, 3), batch(5, 3)], nn.MSELoss()
    if spoil == "batch":
        data[1][0][2] = math.nan
    elif spoil == "weight":
        model.w.data.fill_(math.inf)
    elif spoil == "loss":
        loss = lambda o, t: (o.sum() * math.inf).sum()  # noqa: E731
    else:

        class Outer(Weighed):
            def __init__(self) -> None:
                super().__init__()
                self.inner = Root()

            def forward(self, x: Tensor) -> Tensor:
                return self.inner(super().forward(x))

        class Root(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x / (x - 6.0).clamp_min(0.0)

        model = Outer()
    with pytest.raises(InputError, match="the loss is (nan|inf|-inf)") as caught:
        surveyed(data, loss, model)
    assert words in caught.value.where


def test_a_class_out_of_range_in_a_callable_names_the_batch() -> None:
    x = torch.randn(2, 3).double()
    with pytest.raises(InputError, match="class index 7 is out of range") as caught:
        surveyed([(x, torch.tensor([0, 1])), (x, torch.tensor([0, 7]))], lambda o, t: F.cross_entropy(o, t))
    assert caught.value.where == "batch 1"


def test_a_callable_that_is_no_mean_is_noticed_with_its_batch_from_the_second_on() -> None:
    """One batch may be summed up in any way; of several each must be the mean of its parts."""

    def summed(o: Tensor, t: Tensor) -> Tensor:
        return (o - t).square().sum()

    def late(o: Tensor, t: Tensor) -> Tensor:
        return summed(o, t) if o.max() > 50 else (o - t).square().mean()

    assert surveyed([batch(1, 6)], summed).count == 6.0
    for loss, data, place in (
        (summed, [batch(1, 6), batch(2, 6)], "batch 0"), (late, [batch(1, 6), batch(60, 6)], "batch 1"),
        (late, [batch(1, 6), batch(2, 6), batch(60, 6)], "batch 2"),
    ):  # fmt: skip
        with pytest.raises(InputError, match="is not the mean over its first dimension") as caught:
            surveyed(data, loss)
        assert caught.value.where == place
    assert surveyed([batch(1, 6), batch(2, 6)], lambda o, t: (o - t).square().mean()).count == 12.0


def test_a_callable_that_is_random_is_called_that() -> None:
    with pytest.raises(InputError, match="the loss is random"):
        surveyed([batch(1, 6), batch(2, 6)], lambda o, t: (o * torch.rand(1).double()).mean())


@pytest.mark.parametrize("fits", [True, False])
def test_single_examples_out_of_memory_are_answered_with_what_fits(fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The products' own refusal says what fits; where they fit by now, the reader is told so."""

    class Pass:
        def __init__(self, *given: Any, **options: Any) -> None: ...

        def run(self, requests: Any) -> None:
            assert [len(r.vectors) for r in requests.values()] == [1]
            if not fits:
                raise InputError("out of memory", what_to_do="use batch_size=3, which fits")

    class Heavy(Weighed):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(importlib.import_module("layerhess.checks.survey"), "DataPass", Pass)
    with pytest.raises(InputError, match="second attempt had enough" if fits else "batch_size=3, which fits"):
        surveyed([batch(1, 3)], model=Heavy())

    class Broken(Weighed):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        surveyed([batch(1, 3)], model=Broken())


@pytest.mark.parametrize("size", [1, 3])
def test_a_sample_in_pieces_has_the_same_sums(size: int) -> None:
    """Parts in which all targets are ignored count nothing, and are left out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(22, 4).double(), torch.arange(22) % 3
    y[:6] = -100
    made = lh.Objective(model, [(x[:13], y[:13]), (x[13:], y[13:])], nn.CrossEntropyLoss())
    block = make_block("all", made.parameters)
    vector = torch.randn(1, block.numel, dtype=torch.float64)

    def product(samples: list[Any]) -> Tensor:
        data_pass = DataPass(made.narrowed(samples), list(block.parameters), Counters())
        return data_pass.run({"": Request(block, vector)})[""]

    with made.session():
        whole = survey(made, Counters())
        cut = whole.cut(made, size)
        assert max(len(piece[0]) for piece in (*cut.samples, *cut.measured.pieces)) == size == cut.measured.most
        assert cut.largest == whole.largest == 13
        assert len(cut.places) == len(cut.samples) and set(cut.places) == set(whole.places)
        assert len(cut.several[0]) == 2 and len(cut.measured.seen) == len(cut.measured.pieces)
        for one, other in ((whole.samples, cut.samples), (whole.measured.pieces, cut.measured.pieces)):
            torch.testing.assert_close(product(one), product(other), rtol=1e-12, atol=1e-14)
        assert whole.cut(made, 40) is whole and whole.cut(made, None) is whole


@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_sums_add_up_to_what_their_order_may_change(scale: float) -> None:
    for off, fine in ((0.9e-4, True), (1.1e-4, False), (-1.1e-4, False)):
        assert adds_up(scale * (1.0 + off), [0.25 * scale, 0.75 * scale], 4, [1, 3], torch.float64) is fine
    assert adds_up(1e-5, [1.0, -1.0], 2, [1, 1], torch.float64)  # relative to the parts, which may cancel
    assert not adds_up(1.0, [0.5, 0.5], 4, [1, 2], torch.float64)
    assert adds_up(1.0, [0.5, 0.5], 4.0, [1.0, 3.0 + 1e-6], torch.float64)
    assert adds_up(1.1, [0.5, 0.5], 2, [1, 1], torch.bfloat16) and not adds_up(
        1.1, [0.5, 0.5], 2, [1, 1], torch.float16
    )
    assert adds_up(0.0, [0.0, 0.0], 0, [0, 0], torch.float64)


def test_a_batch_size_cuts_what_is_surveyed() -> None:
    found = surveyed([batch(1, 7)], batch_size=3)
    assert (found.batches, found.examples, found.largest) == (3, 7, 3)
    assert lh.analyze(objective([batch(1, 7)]), top=1).full is not None
