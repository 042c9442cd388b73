"""What passes add up, against dense matrices made by torch.func alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass, Request
from layerhess.curvature.factors import factor_graph
from layerhess.curvature.factors.mixed_graph import MixedGraphs
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.not_finite import first_not_finite, refuse_not_finite
from layerhess.curvature.same_data import loss_tolerance, refuse_changed
from layerhess.curvature.totals import Totals, add_up
from layerhess.errors import CheckError, InputError
from layerhess.objective.blocks import make_block
from unused_parameter import CE, SIZES, block_of, data, dense, objective, places
from witness import untouched

# -- totals ------------------------------------------------------------------------------------------------------------


def test_sums_lists_and_opened_parts() -> None:
    totals = Totals()
    totals.add("n", 2.0)
    totals.add("n", 3.0)
    totals.add(("kind", "a"), torch.ones(2))
    totals.add(("kind", "a"), torch.ones(2))
    totals.add(("other", "a"), 7)
    totals.append("l", 1, 2)
    totals.append("l", 3)
    totals.open("m", 2, 3)
    totals.add("m", 5.0, slice(0, 1), slice(1, 3))
    totals.add("m", torch.ones(2, 1), columns=slice(0, 1))
    totals.open("m", 2, 3)  # is there already
    assert totals.total("n") == 5.0 and totals.total("nothing") == 0.0 and totals.listed("l") == [1, 2, 3]
    assert totals.listed("nothing") == [] and totals.total("m").tolist() == [[1.0, 5.0, 5.0], [1.0, 0.0, 0.0]]
    assert totals.total("m").dtype == torch.float64
    kinds = totals.totals("kind")
    assert list(kinds) == ["a"] and kinds["a"].tolist() == [2.0, 2.0]


def test_what_is_dropped_takes_nothing_more() -> None:
    totals = Totals()
    totals.add("a", 1.0)
    totals.append("a", 1)
    totals.add_rows("a", 2, [(torch.ones(1, 2), torch.ones(1))], 1 << 20)
    totals.drop("a", "why")
    totals.add("a", 1.0)
    totals.append("a", 2)
    assert (
        totals.total("a") == 0.0 and totals.listed("a") == [] and totals.rows() == {} and totals.dropped == {"a": "why"}
    )
    totals.drop("b", "never there")


def test_rows_are_added_while_there_is_room() -> None:
    totals = Totals()
    piece = (torch.ones(3, 8).double(), torch.ones(3))
    assert totals.row_bytes == 0
    assert totals.add_rows("r", 8, [piece], 3 * 64) and totals.row_bytes == 3 * 64
    assert not totals.add_rows("r", 8, [piece, piece], 5 * 64)
    assert totals.rows()["r"].count == 6


def test_parts_are_added_in_order_with_a_look_before_each() -> None:
    seen: list[Any] = []
    totals = add_up([1, 2, 3], lambda part, sums: sums.add("s", part), checkpoint=lambda: seen.append(None))
    assert totals.total("s") == 6 and len(seen) == 3

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_up([1], lambda part, sums: seen.append(part), checkpoint=stop)
    assert len(seen) == 3


# -- a pass ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 16, 17, 40])
def test_products_are_those_of_the_dense_matrix_however_many_vectors(count: int) -> None:
    made = objective()
    matrix, at = dense(made, data()) / sum(SIZES), places(made)
    some = block_of(made, "b.weight", "a.bias", "unused")
    rows = np.concatenate([at[n] for n in some.parameters])
    full = make_block(FULL, made.parameters)
    rng = np.random.default_rng(0)
    v, w = rng.standard_normal((count, some.numel)), rng.standard_normal((2, full.numel))
    with made.session():
        counters = Counters()
        data_pass = DataPass(made, list(made.parameters), counters)
        found = data_pass.run({"v": Request(some, torch.from_numpy(v)), "w": Request(full, torch.from_numpy(w))})
    np.testing.assert_allclose(found["v"], v @ matrix[np.ix_(rows, rows)], atol=1e-14)
    np.testing.assert_allclose(found["w"], w @ matrix, atol=1e-14)
    assert data_pass.counts == [5.0, 3.0, 4.0] and data_pass.count == 12.0 and data_pass.denominator == 12.0
    assert data_pass.touched == {some.name, FULL}
    assert (counters.passes, counters.full_products) == (1, 2) and counters.total("products") == 3 * (count + 2)


def test_components_of_other_parameters_and_forms_of_every_batch() -> None:
    made = objective()
    at = places(made)
    own = [dense(made, [b]) for b in data()]
    block, image = block_of(made, "b.weight", "b.bias"), block_of(made, "a.weight", "unused")
    parts = (block_of(made, "b.bias"), block, image)
    rows, columns = (np.concatenate([at[n] for n in b.parameters]) for b in (image, block))
    v = np.random.default_rng(0).standard_normal((2, block.numel))
    with made.session():
        data_pass = DataPass(made, list(made.parameters), Counters())
        asked = {"other": Request(block, torch.from_numpy(v), rows=image),
                 "forms": Request(block, torch.from_numpy(v), quadratic=parts)}  # fmt: skip
        found = data_pass.run(asked)
        assert asked["other"].image is image and asked["forms"].image is block
        alone = DataPass(made, list(made.parameters), Counters())
        alone.run({"other": asked["other"]})
    np.testing.assert_allclose(found["other"], v @ sum(own)[np.ix_(columns, rows)] / 12, atol=1e-14)
    forms = data_pass.quadratics["forms"]
    assert list(data_pass.quadratics) == ["forms"] and forms.shape == (3, 2, 3) and not alone.touched
    bias = np.isin(columns, at["b.bias"])
    for matrix, form in zip(own, forms.numpy(), strict=True):
        products = v * (v @ matrix[np.ix_(columns, columns)])
        np.testing.assert_allclose(form[:, 0], products[:, bias].sum(axis=1), atol=1e-13)
        np.testing.assert_allclose(form[:, 1], products.sum(axis=1), atol=1e-13)
        np.testing.assert_allclose(form[:, 2], 0.0)  # the vectors have no part there


def test_totals_of_the_loss_its_gradient_and_the_denominator_of_a_sum() -> None:
    for loss, by in ((CE, 12.0), (nn.CrossEntropyLoss(reduction="sum"), 1.0)):
        made = objective(loss)
        full = make_block(FULL, made.parameters)
        with made.session():
            data_pass = DataPass(made, list(made.parameters), Counters())
            ones = torch.ones(1, full.numel).double()
            found = data_pass.run({FULL: Request(full, ones)})[FULL]
            value = sum(F.cross_entropy(made.model(x), y, reduction="sum") for x, y in data())
            gradient = torch.autograd.grad(value, list(made.parameters.values()), allow_unused=True)
        np.testing.assert_allclose(found[0], dense(made, data()).sum(axis=0) / by, atol=1e-13)
        assert data_pass.loss_sum == pytest.approx(float(value.detach())) and data_pass.denominator == by
        size = math.sqrt(sum(float(g.square().sum()) for g in gradient if g is not None))
        assert data_pass.gradient_norm == pytest.approx(size / by)


def test_diagonals_are_those_of_factored_blocks_and_the_others_are_absent() -> None:
    """Behind a tanh nothing but the last layer is piecewise linear."""
    made = objective()
    at, matrix = places(made), dense(made, data()) / sum(SIZES)
    blocks = {name: block_of(made, name) for name in ("a.weight", "b.weight", "b.bias")}
    plan = MixedGraphs({name: block.parameters for name, block in blocks.items()}, HessianGraph, linear=True)
    with made.session():
        data_pass = DataPass(made, list(made.parameters), Counters(), make_graph=plan)
        found = data_pass.diagonals(blocks)
        assert DataPass(made, list(made.parameters), Counters()).diagonals(blocks) == {}
    assert list(found) == ["b.weight", "b.bias"]
    for name, diagonal in found.items():
        np.testing.assert_allclose(diagonal, np.diag(matrix)[at[name]], atol=1e-14)


@pytest.mark.parametrize(("room", "calls"), [(1 << 24, 1), (2 * 5 * 3, 3), (1, 5)])
def test_vectors_go_through_factors_as_many_at_once_as_there_is_room(
    room: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = objective()
    monkeypatch.setattr(factor_graph, "MOST_AT_ONCE", room)
    at, matrix = places(made)["b.weight"], dense(made, data()[:1])
    v = torch.randn(5, 3, 4, dtype=torch.float64)
    with made.session():
        counters = Counters()
        graph = factor_graph.FactorGraph(made, data()[0], {"b": ["b.weight"]}, counters)
        asked: list[int] = []
        honest = graph._some_products
        monkeypatch.setattr(
            graph, "_some_products", lambda n, part: asked.append(len(part["b.weight"])) or honest(n, part)
        )
        (found,) = graph.products(["b.weight"], {"b.weight": v})
    assert found is not None and len(asked) == calls and sum(asked) == 5
    # Two probes of the items, two directions of three classes, and the slope.
    assert (counters.total("forwards"), counters.total("backwards"), counters.total("products")) == (1, 5, 5)
    np.testing.assert_allclose(found.reshape(5, -1), v.reshape(5, -1).numpy() @ matrix[np.ix_(at, at)], atol=1e-13)


def changing(*passes: Any) -> Any:
    """Data that are others at every pass."""
    turns = iter(passes)
    return type("Changing", (), {"__iter__": lambda self: iter(next(turns))})()


@pytest.mark.parametrize(
    ("second", "error", "words"),
    [(lambda: data()[:2], InputError, "its count is 8 where it was 12"), (list, InputError, "it is empty"),
     (lambda: [(x + 1.0, y) for x, y in data()], CheckError, "changes from pass to pass"),
     (lambda: [(x * (1 + 1e-9), y) for x, y in data()], None, "")],
)  # fmt: skip
def test_another_pass_must_have_the_same_data(second: Any, error: Any, words: str) -> None:
    made = objective(batches=changing(data(), second()))
    asked = {"b": Request(block_of(made, "b.bias"), torch.ones(1, 3).double())}
    with made.session():
        data_pass = DataPass(made, ["b.bias"], Counters())
        data_pass.run(asked)
        if error is None:
            data_pass.run(asked)
        else:
            with pytest.raises(error, match=words):
                data_pass.run(asked)
    empty = objective(batches=[(torch.zeros(0, 3).double(), torch.zeros(0).long())])
    with empty.session(), pytest.raises(InputError, match="the data is empty"):
        DataPass(empty, ["b.bias"], Counters()).run(asked)


class Cancels(nn.Module):
    """A small difference of large sums, as a force is: its last digits are of no worth."""

    def __init__(self, size: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.large, self.size = nn.Linear(4, 3), nn.Parameter(torch.full((3,), size)), size

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(x) + self.large) - self.size


def told_off_by(made: lh.Objective, change: float) -> None:
    """As if a pass had found another loss, by this fraction."""
    with made.session(), untouched(made.model):
        loss = sum(float(made.terms(batch)[0].detach()) for batch in made.batches())
        refuse_changed(made, (loss * (1.0 + change), 8.0), (loss, 8.0))


EIGHT = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


@pytest.mark.parametrize(
    ("size", "change", "explained"),
    [
        (1e3, 2e-5, True),
        (1e3, 1e-4, True),
        (1e3, 7e-4, False),
        (1e4, 2e-3, False),
        (1e2, 5e-5, False),
        (0.0, 2e-5, False),
    ],
)
def test_a_change_that_last_digits_explain_is_none(size: float, change: float, explained: bool) -> None:
    made = lh.Objective(Cancels(size), [EIGHT], nn.CrossEntropyLoss())
    if explained:
        told_off_by(made, change)
    else:
        with pytest.raises(CheckError, match="changes from pass to pass"):
            told_off_by(made, change)


def test_a_batch_whose_loss_is_near_zero_excuses_no_other() -> None:
    model = Cancels(0.0)
    with torch.no_grad():
        fitted = model(EIGHT[0]) + 1e-6
    made = lh.Objective(model, [(EIGHT[0], fitted), (EIGHT[0], fitted + 1.0)], nn.MSELoss())
    with pytest.raises(CheckError, match="changes from pass to pass"):
        told_off_by(made, 3e-5)


class BesideAnEdge(Cancels):
    """Some of its weights have no room above them: a root of less than nothing."""

    def __init__(self, size: float) -> None:
        super().__init__(size)
        self.edge = nn.Parameter(torch.ones(64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (1.0 - self.edge).sqrt().sum()


def test_what_is_not_told_explains_nothing() -> None:
    generator = np.random.default_rng(0)

    def noisy(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) * (1.0 + 1e-5 * generator.standard_normal())

    told_off_by(lh.Objective(Cancels(1e3), [EIGHT], F.cross_entropy), 5e-5)
    for model, loss in ((BesideAnEdge(1e3), F.cross_entropy), (Cancels(1e3), noisy)):
        with pytest.raises(CheckError, match="changes from pass to pass"):
            told_off_by(lh.Objective(model, [EIGHT], loss), 5e-5)


def test_how_much_a_loss_may_change() -> None:
    assert loss_tolerance(torch.float64) == 1e-6 and loss_tolerance(torch.float32) == pytest.approx(100 * 2.0**-23)
    assert loss_tolerance(torch.bfloat16) == pytest.approx(100 * 2.0**-7)


class Sharp(nn.Module):
    """|z|^(3/2): a second derivative that is infinite at 0, where only batch 1 is."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.ones(2).double()), nn.Parameter(torch.ones(2).double())

    def forward(self, x: Tensor) -> Tensor:
        return (self.w * x).abs() ** 1.5 + self.v * self.v


def test_products_that_are_not_finite_name_the_batch_and_the_parameters() -> None:
    batches = [(torch.ones(1, 2).double(), torch.zeros(1, 2).double()) for _ in range(3)]
    batches[1] = (torch.tensor([[0.0, 1.0]]).double(), batches[1][1])
    made = objective(nn.L1Loss(), batches, Sharp())
    full = make_block(FULL, made.parameters)
    asked = {FULL: Request(full, torch.ones(1, 4).double())}
    with made.session():
        data_pass = DataPass(made, list(made.parameters), Counters())
        products = data_pass.run(asked)
        assert not bool(torch.isfinite(products[FULL]).all())
        assert first_not_finite(data_pass, asked[FULL]) == "1"
        assert first_not_finite(data_pass, Request(block_of(made, "v"), torch.ones(1, 2).double())) == ""
        with pytest.raises(InputError, match=r"block '\(full\)' is NaN or infinite") as caught:
            refuse_not_finite(data_pass, asked, products)
        refuse_not_finite(data_pass, asked, {FULL: torch.ones(1, 4)})
        with pytest.raises(InputError, match=r"so large that its square is infinite.*1\.0e\+200"):
            refuse_not_finite(data_pass, asked, {FULL: torch.full((1, 4), 1e200, dtype=torch.float64)})
        elsewhere = {FULL: torch.full((1, 4), math.inf)}
        with pytest.raises(InputError) as by_sum:
            refuse_not_finite(
                data_pass,
                {FULL: Request(block_of(made, "v"), torch.ones(1, 2).double())},
                {FULL: elsewhere[FULL][:, :2]},
            )
    assert caught.value.where == "batch 1, w" and by_sum.value.where == "v"


def test_a_pass_is_timed_and_a_gradient_scaled_to_all_the_data() -> None:
    ticks = iter(float(i) for i in range(1000))
    counters = Counters(clock=lambda: next(ticks))
    made = objective()
    asked = {"b": Request(block_of(made, "b.bias"), torch.ones(1, 3).double())}
    with made.session():
        data_pass = DataPass(made, ["b.bias"], counters, time_unit=True)
        data_pass.run(asked)
        once = counters.gradient_seconds
        assert data_pass.seconds > 0.0 and once % 1.0 == pytest.approx((once * 1.0) % 1.0)
        assert once * 5.0 / 12.0 == pytest.approx(round(once * 5.0 / 12.0)) and once > 0.0  # whole ticks for 5 of 12
        data_pass.run(asked)
    assert counters.gradient_seconds == once and counters.passes == 2
