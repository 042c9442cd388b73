"""Budgets of every kind: units, tables, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import layerhess as lh
from layerhess.planning.budget import Budget, budget_of
from layerhess.planning.layers import Layers, layers_of
from witness import refused


def planned(options: Any = (2, 4), dtype: torch.dtype = torch.float32, **more: Any) -> Layers:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)
    data = (torch.randn(3, 8, dtype=dtype), torch.arange(3))
    return layers_of(lh.Objective(model, data, nn.CrossEntropyLoss()), options, "weight", **more)


def limits(asked: Any, **more: Any) -> dict[str, float]:
    found: Budget = budget_of(asked, planned(**more))
    return dict(zip(found.names, found.limits, strict=True))


N = 32 + 12  # weights


@pytest.mark.parametrize(
    ("asked", "name", "limit"),
    [
        ("4bit", "bits", 4.0 * N), ("3.5 bits", "bits", 3.5 * N), (".5bit", "bits", 0.5 * N), (3, "bits", 3.0 * N),
        ("3.5MB", "bytes", 3.5e6), ("2 kB", "bytes", 2e3), ("1MiB", "bytes", 2.0**20), ("0.5GB", "bytes", 5e8),
        ("100 bytes", "bytes", 100.0), ("17B", "bytes", 17.0), ({"bytes": 12}, "bytes", 12.0),
        ({"bits": 2.5}, "bits", 2.5 * N),
    ],
)  # fmt: skip
def test_units(asked: Any, name: str, limit: float) -> None:
    assert limits(asked) == {name: pytest.approx(limit)}


def test_bits_leave_scales_out_and_bytes_count_them_at_16_bits() -> None:
    options = (4, lh.Quantize(4, "tensor"), lh.Quantize(2, "group:4", symmetric=False), lh.Prune(0.75), lh.Prune("2:4"))
    budget = budget_of("4bit", planned(options))
    np.testing.assert_array_equal(budget.bits[0], [4 * 32, 4 * 32, 2 * 32, 0.25 * 32 * 32, 16 * 34])
    # Four rows of eight: a scale each; one; eight groups with a scale and a zero point each; none.
    np.testing.assert_array_equal(
        budget.sizes[0] * 8, [4 * 32 + 4 * 16, 4 * 32 + 16, 2 * 32 + 8 * 2 * 16, 0.25 * 32 * 32, 16 * 34]
    )
    assert budget.mean_bits((0, 0)) == 4.0 and budget.mean_bits((0, 2)) == pytest.approx((4 * 32 + 2 * 12) / N)
    assert budget.size_bytes((0, 1)) == (4 * 32 + 64 + 4 * 12 + 16) / 8


@pytest.mark.parametrize(("dtype", "own"), [(torch.float64, 64), (torch.bfloat16, 16)])
def test_what_is_kept_is_stored_in_the_models_dtype(dtype: torch.dtype, own: int) -> None:
    def plain(weight: Any) -> Any:
        return weight

    def saving(weight: Any) -> Any:
        return weight

    saving.bits = 1.5  # type: ignore[attr-defined]
    budget = budget_of("4bit", planned((lh.Prune(0.5), plain, saving), dtype))
    np.testing.assert_array_equal(budget.bits[0], [0.5 * own * 32, own * 32, 1.5 * 32])


LATENCIES = {"0.weight": [1.0, 3.0], "2.weight": [0.5, 0.75]}


@pytest.mark.parametrize(
    "table",
    [
        LATENCIES,
        {name: {"w2": row[0], "w4": row[1]} for name, row in LATENCIES.items()},
        {name: {lh.Quantize(4): row[1], lh.Quantize(2): row[0]} for name, row in LATENCIES.items()},
        {name: {2: row[0], 4: row[1]} for name, row in LATENCIES.items()},
        {name: np.array(row) for name, row in LATENCIES.items()},
    ],
    ids=["list", "names", "options", "bits", "array"],
)
def test_latencies_by_option(table: Any) -> None:
    budget = budget_of({"latency": (table, 3.5)}, planned())
    np.testing.assert_array_equal(budget.uses[0], [[1.0, 3.0], [0.5, 0.75]])
    assert budget.limits == (3.5,) and budget.names == ("latency",) and "latency of at most 3.5" in budget.text


def test_bit_operations_are_operations_times_bits() -> None:
    budget = budget_of({"bops": ({"0.weight": 320, "2.weight": 12}, 1e3), "bits": 3}, planned())
    np.testing.assert_allclose(budget.uses[0], [[640.0, 1280.0], [24.0, 48.0]])
    assert budget.limits == (1e3, 3.0 * N) and budget.names == ("bops", "bits")
    assert budget.text == "a number of bit operations of at most 1000 and 3 bits a weight"


def test_a_cap_on_the_increase() -> None:
    budget = budget_of({"increase": 0.0, "bits": 4}, planned())
    assert budget.increase == 0.0 and budget.names == ("bits",)
    assert budget_of("4bit", planned()).increase is None


CASES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no unit": ("4", ("unknown budget '4'", "'3.5MB'")),
    "unknown unit": ("4 apples", ("unknown budget",)),
    "nothing": (None, ("unknown budget None",)),
    "a flag": (True, ("unknown budget True",)),
    "an unknown key": ({"byte": 3}, ("the budget has 'byte'", "bytes=")),
    "an empty dict": ({}, ("the budget is empty",)),
    "zero bits": ("0bit", ("the limit of bits is 0",)),
    "negative": ({"bytes": -1}, ("the limit of bytes is -1",)),
    "NaN": ({"bits": math.nan}, ("the limit of bits is nan",)),
    "NaN cap": ({"increase": math.nan}, ("the limit of increase is nan",)),
    "negative cap": ({"increase": -0.1}, ("the limit of increase is -0.1",)),
    "a word": ({"bits": "four"}, ("the limit of bits is 'four'",)),
    "no table": ({"latency": 3.0}, ("latency=(table, limit)",)),
    "negative latency": ({"latency": ({**LATENCIES, "2.weight": [1.0, -2.0]}, 3)}, ("latency of '2.weight' is -2",)),
    "infinite latency": ({"latency": ({**LATENCIES, "2.weight": [1.0, math.inf]}, 3)}, ("'2.weight' is inf",)),
    "too few latencies": ({"latency": ({**LATENCIES, "0.weight": [1.0]}, 3)}, ("one number for each of w2, w4",)),
    "a latency is missing": (
        {"latency": ({**LATENCIES, "0.weight": {"w2": 1.0}}, 3)}, ("one number for each of w2, w4", "0.weight"),
    ),
    "a layer is missing": ({"latency": ({"0.weight": [1, 2]}, 3)}, ("nothing for '2.weight'",)),
    "a layer too many": ({"latency": ({**LATENCIES, "0.wait": [1, 2]}, 3)}, ("'0.wait', which is no planned weight",)),
    "negative operations": ({"bops": ({"0.weight": -1, "2.weight": 1}, 3)}, ("the bops of '0.weight' is -1",)),
    "operations that are none": ({"bops": ({"0.weight": "many", "2.weight": 1}, 3)}, ("number of MACs",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_budgets_are_refused_in_words(name: str) -> None:
    asked, said = CASES[name]
    layers = planned()
    with refused(None, *said):
        budget_of(asked, layers)
