"""The rounding of products, of outputs, and what a licence says: numbers put in, figures worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from checked_network import X, Y, mlp, objective
from layerhess.checks.candidate import Candidate, outermost
from layerhess.checks.factors import Licence, _off
from layerhess.checks.matrix_rounding import Rounding
from layerhess.checks.output_rounding import OutputError, output_error
from layerhess.checks.rounding import RoundingMeter
from layerhess.checks.sample import Sample
from layerhess.curvature.counters import Counters
from layerhess.curvature.device import Budget
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.blocks import make_block
from layerhess.objective.group import ALONE
from layerhess.results.record import Check

ROOM = Budget(1 << 30)


class TwoPasses:
    """Products of two precisions, as they were put in."""

    def __init__(self, ours: Tensor, other: Tensor) -> None:
        self.passes = tuple(
            SimpleNamespace(run=lambda requests, rows=rows: {"b": rows.clone()}, release=lambda: None)
            for rows in (ours, other)
        )

    def put_into(self, meter: RoundingMeter, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(meter, "_passes", self.passes)
        monkeypatch.setattr(meter, "_open", lambda: True)
        monkeypatch.setattr(meter, "_look_at_sizes", lambda: None)


def meter(dtype: torch.dtype, sample: Sample, output: OutputError | None = None, coarsest: Any = None) -> RoundingMeter:
    made = RoundingMeter(
        SimpleNamespace(dtype=dtype, group=ALONE, numel=9), sample, coarsest or dtype, Counters(), HessianGraph, ROOM
    )  # type: ignore[arg-type]
    made._of_output = output or OutputError()
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("excess", [1.0, 8.0])
@pytest.mark.parametrize("norm", [0.5, 4.0, 1000.0])
def test_a_measured_rounding_is_three_times_the_worst_difference_scaled_to_the_data(
    norm: float, excess: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = make_block("b", {"w": torch.zeros(2)})
    ours = torch.tensor([[3.0, 4.0], [0.0, 1.0]]).double()
    other = ours + torch.tensor([[0.0, 3e-3], [4e-3, 3e-3]]).double()
    made = meter(dtype, Sample([], excess))
    TwoPasses(ours, other).put_into(made, monkeypatch)
    found = made.measure({"b": Candidate(block, torch.eye(2).double(), norm)})["b"]
    size = max(float(other.norm(dim=1).max()), 0.01 * norm)
    error = 5e-3 * max(1.0 / excess, norm / size)
    wanted = 25.0 * 2.0**-29 * error if dtype == torch.float64 else 3.0 * error
    assert found.source == "measured" and found.norm == pytest.approx(wanted, rel=1e-6, abs=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_all_the_data_an_error_is_what_it_is(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    block = make_block("b", {"w": torch.zeros(2)})
    ours = torch.tensor([[3.0, 4.0], [0.0, 1.0]]).double()
    other = ours + torch.tensor([[0.0, 3e-3], [4e-3, 3e-3]]).double()
    safety = 25.0 * 2.0**-29 if dtype == torch.float64 else 3.0
    for norm in (0.5, 1000.0):
        for output, least in (
            (OutputError(evaluated=1.0), 0.0), (OutputError(lost=2e-3), 2e-3 * norm),
            (OutputError(moved=4e-3, carrying=4.0), 2e-3 * norm),
        ):  # fmt: skip
            made = meter(dtype, Sample([], whole=True), output)
            TwoPasses(ours, other).put_into(made, monkeypatch)
            found = made.measure({"b": Candidate(block, torch.eye(2).double(), norm)})["b"]
            wanted = max(safety * 5e-3, 3.0 * least)
            assert found.source == "measured" and found.norm == pytest.approx(wanted, rel=1e-5, abs=0)


def test_what_the_output_says_is_the_least_and_what_it_lost_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    block = make_block("b", {"w": torch.zeros(2)})
    rows = torch.ones(1, 2).double()
    for given, expected in (
        (OutputError(moved=1e-3), 3e-3), (OutputError(evaluated=2e-3), 6e-3),
        (OutputError(moved=5e-3, evaluated=2e-3), 15e-3),
        (OutputError(lost=7e-3), 21e-3), (OutputError(), 0.0),
    ):  # fmt: skip
        made = meter(torch.float32, Sample([]), given)
        TwoPasses(rows, rows).put_into(made, monkeypatch)
        assert made.measure({"b": Candidate(block, rows, 2.0)})["b"] == Rounding(
            pytest.approx(2.0 * expected), "measured"
        )


@pytest.mark.parametrize(
    ("coarsest", "factor"), [(torch.float32, 1.0), (torch.bfloat16, 2.0**16), (torch.float64, 2.0**-29)]
)
def test_without_a_copy_a_rounding_is_assumed(
    coarsest: torch.dtype, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = meter(torch.float32, Sample([]), coarsest=coarsest)
    monkeypatch.setattr(made, "_open", lambda: False)
    block = make_block("b", {"w": torch.zeros(2)})
    assert made.measure({"b": Candidate(block, torch.eye(2).double(), 3.0)})["b"] == Rounding(
        pytest.approx(3e-5 * factor, rel=1e-9, abs=0), "assumed"
    )


def test_a_copy_that_is_large_for_the_budget_is_made_again_and_blocks_are_compared_in_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("layerhess.objective.blocks.AT_ONCE", 0)
    made = objective(mlp().float(), data=(X.float(), Y))
    blocks = {name: make_block(name, {name: p}) for name, p in made.parameters.items()}
    asked = {n: Candidate(b, random_unit(b.numel, 0, n, 0)[None], 1.0) for n, b in blocks.items()}
    found = []
    for room in (ROOM, Budget(100)):
        meter = RoundingMeter(made, Sample([(X.float(), Y)]), torch.float32, Counters(), HessianGraph, room)
        with made.session(), meter:
            found.append([meter.measure(asked), meter.measure({"2.bias": asked["2.bias"]})])
            assert (meter._passes is None) is (room is not ROOM)
    assert found[0] == found[1] and {one.source for one in found[0][0].values()} == {"measured"}
    assert found[0][0]["2.bias"] == found[0][1]["2.bias"]


def test_a_network_is_measured_against_its_copy_and_failures_are_told() -> None:
    model = mlp().float()
    made = objective(model, data=(X.float(), Y))
    names = list(made.parameters)
    block = make_block("all", made.parameters)
    v = random_unit(block.numel, 0, "v", 0)
    with (
        made.session(),
        RoundingMeter(made, Sample([(X.float(), Y)]), torch.float32, Counters(), HessianGraph, ROOM) as measuring,
    ):
        found = measuring.measure({"all": Candidate(block, v[None], 1.0)})["all"]
        assert measuring.failure == "" and found.source == "measured"
        double = made.cast(torch.float64, [(X.float(), Y)])
        with double.session():
            coarse = HessianGraph(made, (X.float(), Y), names, Counters()).product(
                names, {n: p.float() for n, p in block.split(v).items()}
            )
            fine = HessianGraph(double, (X.float().double(), Y), names, Counters()).product(names, block.split(v))
        pairs = [(a, b) for a, b in zip(coarse, fine, strict=True) if a is not None and b is not None]
        off = torch.cat([(a.double() - b).reshape(-1) for a, b in pairs]).norm() / 9
        size = torch.cat([b.reshape(-1) for _, b in pairs]).norm() / 9
        assert found.norm == pytest.approx(3.0 * float(off) * max(1.0, 1.0 / float(size)), rel=1e-3)


@pytest.mark.parametrize("seed", [0, 2])
def test_float64_is_measured_where_float32_overflows(seed: int) -> None:
    """exp(w'x) with w'x = 100 the sum of six terms of 1e8: its curvature is exp(w'x) |x|^2, good to nine digits."""
    torch.manual_seed(seed)
    model = nn.Linear(6, 1, bias=False, dtype=torch.float64)
    w, u = model.weight[0].detach(), torch.randn(6, dtype=torch.float64)
    x = 1e8 * (u - (u @ w) / (w @ w) * w) + 100.0 / (w @ w) * w
    found = lh.analyze(lh.Objective(model, [(x[None], x[None])], lambda z, y: z.exp().mean()), top=1)["weight"]
    z = sum(Fraction(a) * Fraction(b) for a, b in zip(w.tolist(), x.tolist(), strict=True))
    true = math.exp(z) * float(x @ x)
    assert found.rounding_source == "measured"
    assert 1e-10 * true < abs(float(found.eigenvalues[0]) - true) <= found.error_bounds[0] < 1e-6 * true


def test_at_most_five_candidates_from_the_first_to_the_last_are_measured() -> None:
    for count in (1, 5):
        rows = torch.arange(float(count))[:, None]
        assert outermost(rows) is rows
    assert outermost(torch.arange(9.0)[:, None])[:, 0].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]


def seen(z: Tensor, again: Any) -> Any:
    return SimpleNamespace(output=z, again=again)


def test_the_outputs_own_error_is_its_movement_its_clutter_and_what_float64_lost() -> None:
    """S is z^2 on the diagonal for the loss sum z^4 / 12: everything follows in closed form."""

    def quartic(z: Tensor) -> Tensor:
        return (z**4).sum() / 12.0

    fine = torch.tensor([[1.0, 2.0], [3.0, 0.5], [0.0, 0.0]]).double()
    coarse = (fine * (1.0 + torch.tensor([[1e-3], [2e-3], [0.0]]).double())).float()
    evaluation = SimpleNamespace(surveyed=lambda model, batch, where: seen(fine, quartic))
    copied = SimpleNamespace(data=[0], evaluation=evaluation, model=None, dtype=torch.float64)
    sample = Sample([0], curvature=2.0, seen=[seen(coarse, quartic)])
    found = output_error(sample, copied)  # type: ignore[arg-type]
    r = 2.0 * ((torch.arange(2).double() * 0.6180339887498949) % 1.0) - 1.0
    exact, moved = fine**2 * r, coarse.double() ** 2 * r
    relative = ((moved - exact).norm(dim=1) / exact.norm(dim=1))[:2]
    assert found.moved == pytest.approx(float(relative.square().mean().sqrt()), rel=1e-6)
    here = (coarse**2 * r.float()).double()
    clutter = here - moved
    expected = math.hypot(float(clutter.sum(0).norm()), float(clutter.norm())) / 3 / 2.0
    assert found.evaluated == pytest.approx(expected, rel=0.5) and found.evaluated < 1e-6
    assert found.lost < 1e-14  # next to nothing
    cross = lambda z: F.cross_entropy(z, torch.tensor([0, 0, 0]), reduction="sum")  # noqa: E731
    sure = torch.tensor([[30.0, 0.0], [31.0, 0.0], [32.0, 0.0]]).double()
    copied.evaluation = SimpleNamespace(surveyed=lambda model, batch, where: seen(sure, cross))
    lost = output_error(Sample([0], curvature=1.0, seen=[seen(sure.float(), cross)]), copied).lost  # type: ignore[arg-type]
    p = 1.0 / (1.0 + math.exp(-30.0))
    least = 2.0**-52 * 0.25 / (p * (1 - p))  # one rounding of the terms that cancel
    assert least <= lost <= 16.0 * least
    unknown = Sample([0], curvature=1.0, seen=[seen(sure.float(), None)])
    assert output_error(unknown, copied) == OutputError()  # type: ignore[arg-type]


def test_a_loss_is_evaluated_between_its_outputs_and_zero_only() -> None:
    fine = torch.tensor([[0.2, 30.0], [1.0 - 1e-9, 1e-7]]).double()
    coarse = (fine * (1.0 - 1e-7)).float()
    asked = []

    def logarithm(z: Tensor) -> Tensor:
        asked.append(z.detach())
        return -z.log().sum()

    evaluation = SimpleNamespace(surveyed=lambda model, batch, where: seen(fine, logarithm))
    for dtype, own, scale in ((torch.float64, coarse, 1.0), (torch.float32, fine, 2.0**-29)):
        given = evaluation if dtype == torch.float64 else SimpleNamespace(surveyed=lambda *_: seen(coarse, logarithm))
        copied = SimpleNamespace(data=[0], evaluation=given, model=None, dtype=dtype)
        found = output_error(Sample([0], curvature=1.0, seen=[seen(own, logarithm)]), copied, scale)  # type: ignore[arg-type]
        assert 1e-8 * scale < found.moved < 1e-6 * max(scale, 1e-7) and found.lost < 1e-14
    assert asked and all(bool(((z > 0.0) & (z <= fine)).all()) for z in asked)


# -- licences ----------------------------------------------------------------------------------------------------------


def test_a_licence_says_what_it_is_made_of() -> None:
    assert Licence().checks("x") == [] and Licence(reasons={"a": "why"}).sentence("a") == "why"
    found = Licence(blocks={"a": ("a",), "b": ("b",)}, agreement=2e-7, examples=12)
    assert found.checks("9 examples") == [
        Check("factors", True, "products by factors agree with exact ones to 2.0e-07 in 2 blocks, on 9 examples")
    ]
    assert found.sentence("a") == "checked on 12 examples" and found.sentence("c") == ""
    assert dataclasses.replace(found, examples=0).sentence("a") == "checked on a sample"
    one, zero = torch.tensor([3.0, 4.0]), torch.zeros(2)
    assert _off(one, 2 * one) == 0.5 and _off(zero, zero) == 0.0 and _off(one, zero) == math.inf
