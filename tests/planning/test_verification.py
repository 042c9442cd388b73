"""What a plan is held against, and the sentence that says how it did."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from layerhess.planning.verification import SURE, Verified, _verdict, reference
from layerhess.results.options import Quantize
from layerhess.results.plan import MeasuredPlan, Score


def uniform(bits: int, *, fits: bool = True, apart: Score | None = None, failed: str = "") -> MeasuredPlan:
    name = f"uniform w{bits}"
    return MeasuredPlan(
        name, {"a": Quantize(bits)}, 0.1 / bits, 0.01, mean_bits=bits, size_bytes=100.0 * bits, fits=fits,
        against_plan=apart, failed=failed,
    )  # fmt: skip


PLAN = replace(uniform(5), name="plan", mean_bits=3.4, size_bytes=340.0)


def test_the_reference_is_the_largest_uniform_plan_that_fits_or_the_nearest() -> None:
    baselines = {one.name: one for one in (uniform(2), uniform(3), uniform(4, fits=False))}
    assert reference({**baselines, "hawq_v2": uniform(8)}, PLAN) is baselines["uniform w3"]
    assert reference(baselines, PLAN, smallest=True) is baselines["uniform w2"]
    failed = {"uniform w3": uniform(3, failed="NaN"), "uniform w2": uniform(2)}
    assert reference(failed, PLAN) is failed["uniform w2"]
    none = {one.name: one for one in (uniform(2, fits=False), uniform(4, fits=False))}
    assert reference(none, PLAN) is none["uniform w4"]
    assert reference({"hawq_v2": uniform(3)}, PLAN) is None


def verdict(
    other: MeasuredPlan, *, held_out: bool = False, cap: float | None = None, criterion: str = "measured", **plan: Any
) -> str:
    planner: Any = SimpleNamespace(budget=SimpleNamespace(increase=cap), question=SimpleNamespace(criterion=criterion))
    return _verdict(planner, Verified(replace(PLAN, **plan), {other.name: other}, {}), held_out)


@pytest.mark.parametrize(
    ("value", "said"),
    [(2.1, "the plan is better than uniform w3 by"), (1.9, "not distinguishable"), (-1.9, "not distinguishable"),
     (-2.1, "the plan is WORSE than uniform w3 by")],
)  # fmt: skip
def test_plans_are_told_apart_by_two_standard_errors(value: float, said: str) -> None:
    assert SURE == 2.0
    found = verdict(uniform(3, apart=Score(value * 0.01, 0.01)))
    assert said in found and "uniform w3" in found and "on the data it was chosen on" in found and "± 0.01" in found
    held = verdict(uniform(3, apart=Score(value * 0.01, 0.01)), held_out=True)
    assert "on held-out data" in held and "chosen on" not in held


def test_a_comparison_with_another_size_says_so() -> None:
    assert "which has 4 bits a weight instead of 3.4" in verdict(uniform(4, fits=False, apart=Score(0.1, 0.01)))


def test_under_a_cap_sizes_are_compared() -> None:
    found = verdict(uniform(4, apart=Score(0.0, 0.1)), cap=0.1)
    assert found == "the plan is 15.0% smaller than uniform w4, the smallest uniform plan within the cap"


def test_a_plan_that_is_uniform_says_so() -> None:
    same = uniform(3, apart=Score(0.0, 0.0))
    assert verdict(same, choice=same.choice).startswith("the plan is uniform w3: nothing better was found")
    assert verdict(same, choice=same.choice, criterion="hawq_v2") == "the plan is uniform w3"


def test_without_an_error_or_a_loss_nothing_more_is_claimed() -> None:
    assert "no error known" in verdict(uniform(3, apart=Score(0.1)))
    assert "the loss of uniform w3 is not finite" in verdict(uniform(3, apart=Score(math.inf)))
    assert verdict(uniform(3)) == ""
