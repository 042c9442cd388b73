"""The cheapest plan within limits: against all plans of small problems, published optima, and large hard tables."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from layerhess.errors import CheckError, InputError
from layerhess.planning.allocation.allocation import allocate, allocated
from layerhess.planning.allocation.problem import Problem

TRUTHS = Path(__file__).resolve().parents[3] / ".." / "shared" / "truths" / "hawq_v3_ilp.json"


def every_plan(layers: int, options: int) -> np.ndarray[Any, Any]:
    return np.array(list(itertools.product(range(options), repeat=layers)))


def cheapest(cost: Any, uses: Any, limits: Any, tied: Any = (), pinned: Any = None) -> float:
    """The optimum by trying every plan, without any of our code; inf where none fits."""
    layers, options = cost.shape
    plans, at = every_plan(layers, options), np.arange(layers)
    good = np.ones(len(plans), dtype=bool)
    for use, limit in zip(uses, limits, strict=True):
        good &= use[at, plans].sum(axis=1) <= limit * (1 + 1e-9)
    for group in tied:
        good &= (plans[:, list(group)] == plans[:, [group[0]]]).all(axis=1)
    for layer, option in (pinned or {}).items():
        good &= plans[:, layer] == option
    return float(np.min(cost[at, plans[good]].sum(axis=1), initial=np.inf))


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layers, options = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    number = draw(st.integers(0, 3))
    integral = draw(st.booleans())  # many equal sums, limits used exactly
    shape = layers, options
    cost = rng.integers(-3, 4, shape).astype(float) if integral else rng.normal(size=shape) * 4.0 ** rng.normal()
    cost[rng.random(shape) < 0.1] = np.inf
    uses = [rng.integers(0, 5, shape) * 0.1 if integral else rng.random(shape) for _ in range(number)]
    plan = rng.integers(0, options, layers)
    factor = draw(st.sampled_from([0.7, 1.0, 1.0, 1.3]))
    limits = [factor * float(use[np.arange(layers), plan].sum()) for use in uses]
    tied = [[0, layers - 1]] if layers > 1 and draw(st.booleans()) else []
    pinned = {int(rng.integers(layers)): int(rng.integers(options))} if draw(st.booleans()) else {}
    return {"cost": cost, "uses": uses, "limits": limits, "tied": tied, "pinned": pinned}


@settings(max_examples=150)
@given(problems())
def test_no_plan_of_all_is_cheaper(problem: dict[str, Any]) -> None:
    truth = cheapest(**problem)
    if truth == np.inf:
        with pytest.raises(InputError):
            allocate(**problem)
        return
    found = allocate(**problem)
    assert found.optimal and found.gap == 0.0 and found.bound == found.objective
    assert found.objective == pytest.approx(truth, rel=1e-12, abs=1e-12)
    rows = np.arange(len(found.choice))
    assert found.objective == problem["cost"][rows, found.choice].sum()
    for use, limit, told in zip(problem["uses"], problem["limits"], found.uses, strict=True):
        assert told == use[rows, found.choice].sum() <= limit * (1 + 1e-9)


def published() -> dict[str, Any]:
    if not TRUTHS.is_file():
        reason = "the published allocation problems are not beside this checkout: ../shared/truths/hawq_v3_ilp.json"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return dict(json.loads(TRUTHS.read_text()))


@pytest.mark.parametrize("kind", ["modelsize", "bops", "latency"])
@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
def test_published_problems_are_solved_to_their_optimum(network: str, kind: str) -> None:
    known = published()[network]
    trace, size, operations = (np.array(known[key]) for key in ("mean_trace", "params_mebi", "bops"))
    gain = trace * (np.array(known["delta8_sq"]) - np.array(known["delta4_sq"]))
    cost = np.stack([np.zeros_like(gain), gain], axis=1)
    use = {
        "modelsize": np.stack([0.5 * size, size], axis=1),
        "bops": np.stack([operations / 64, operations / 16], axis=1),
        "latency": np.stack([known["latency4"], known["latency8"]], axis=1),
    }[kind]
    for share in ("0.25", "0.5", "0.75"):
        truth = known["optimum"][f"{kind}_{share}"]
        found = allocate(cost, [use], [truth["limit"]], tied=known["ties"])
        assert found.objective == pytest.approx(truth["objective"], abs=1e-9) and found.optimal
        assert np.where(found.choice == 1, 8, 4).tolist() == truth["bits"]
        assert found.uses[0] <= truth["limit"] * (1 + 1e-9)


def table(kind: str, seed: int, layers: int = 200) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    """Costs and two uses for 8 options, 1 to 8 bits."""
    rng, bits = np.random.default_rng(seed), np.arange(1.0, 9.0)
    uneven = np.exp(rng.normal(0, 1, (layers, 1))) * np.exp(rng.normal(0, 0.1, (layers, 8)))
    if kind == "network":  # sizes over three decades, four sizes of images
        n = np.exp(rng.normal(10, 1.2, (layers, 1))).round() * 64
        return n * 4.0**-bits * uneven, [n * bits / 8, n * rng.choice([1, 49, 196, 784], (layers, 1)) * bits]
    if kind == "equal":
        return 4.0**-bits * uneven, [np.ones((layers, 1)) * bits, rng.integers(1, 5, (layers, 1)) * bits]
    if kind == "transformer":  # seven kinds of layers, latencies that bits hardly shorten
        n = np.resize([4096.0 * 4096] * 4 + [4096.0 * 11008] * 3, layers)[:, None]
        slow = np.array([1, 1, 1, 1, 1.5, 1.5, 1.5, 2]) * np.exp(rng.normal(0, 0.02, (layers, 8)))
        return n * 4.0**-bits * uneven, [n * bits / 8, n * slow]
    if kind == "random":
        return rng.random((layers, 8)), [rng.random((layers, 8)), rng.random((layers, 8))]
    if kind == "falling":  # some options lower the loss
        n = np.exp(rng.normal(10, 1, (layers, 1))).round()
        return n * 4.0**-bits * uneven * rng.normal(0.5, 1, (layers, 8)), [
            n * bits,
            n * (bits + rng.random((layers, 8))),
        ]
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["network", "equal", "transformer", "random", "falling"])
def test_two_hundred_layers_under_two_limits_are_proven(kind: str) -> None:
    for seed, tight in ((0, 0.2), (1, 0.45), (2, 0.3)):
        cost, uses = table(kind, seed)
        limits = []
        for use in uses:
            low, high = use.min(axis=1).sum(), use.max(axis=1).sum()
            limits.append(low + tight * (high - low))
        found = allocate(cost, uses, limits)
        assert found.optimal and found.gap == 0.0
        for use, limit in zip(uses, limits, strict=True):
            assert use[np.arange(200), found.choice].sum() <= limit * (1 + 1e-9)


def test_a_large_problem_has_the_optimum_of_dynamic_programming() -> None:
    rng = np.random.default_rng(3)
    cost, use, limit = rng.random((200, 8)), rng.integers(0, 20, (200, 8)), 900
    best = np.full(limit + 1, np.inf)
    best[0] = 0.0
    for layer in range(200):
        after = np.full(limit + 1, np.inf)
        for k in range(8):
            u = use[layer, k]
            after[u:] = np.minimum(after[u:], best[: limit + 1 - u] + cost[layer, k])
        best = after
    found = allocate(cost, [use], [limit])
    assert found.optimal and found.objective == pytest.approx(best.min(), rel=1e-12)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=problems())
def test_dividing_alone_finds_the_optimum_too(monkeypatch: pytest.MonkeyPatch, problem: dict[str, Any]) -> None:
    """Nothing may be counted out: every problem is divided until each layer has one option."""
    monkeypatch.setattr("layerhess.planning.allocation.branching.SMALL", 0.0)
    monkeypatch.setattr("layerhess.planning.allocation.branching.GREAT", 0.0)
    truth = cheapest(**problem)
    if truth == np.inf:
        with pytest.raises(InputError):
            allocate(**problem)
        return
    assert allocate(**problem).objective == pytest.approx(truth, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", ["network", "random", "falling"])
def test_an_integer_program_has_the_same_optimum(kind: str) -> None:
    cost, uses = table(kind, 7, layers=40)
    limits = [0.6 * use[:, 7].sum() for use in uses]
    one = np.kron(np.eye(40), np.ones((1, 8)))
    unit = np.abs(cost).max() / 1e4
    solved = milp(
        cost.ravel() / unit,
        integrality=np.ones(320, dtype=int),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one, 1, 1)]
        + [LinearConstraint(use.reshape(1, -1) / limit, -np.inf, 1) for use, limit in zip(uses, limits, strict=True)],
        options={"mip_rel_gap": 0},
    )
    # Its plans may be above a limit by a millionth, so its optimum may be a little lower than what is possible.
    found = allocate(cost, uses, limits)
    assert found.optimal and found.objective == pytest.approx(solved.fun * unit, rel=1e-4)
    assert found.objective >= (solved.mip_dual_bound - 1e-6) * unit


def test_a_plan_that_uses_exactly_the_limit_fits_and_one_a_millionth_above_does_not() -> None:
    cost, use = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], [[0.0, 0.1]] * 3
    limit = 0.3  # 0.1 + 0.1 + 0.1 > 0.3 in floats
    assert allocate(cost, [use], [limit]).choice.tolist() == [1, 1, 1]
    assert sum(allocate(cost, [use], [limit * (1 - 1e-6)]).choice) == 2


def test_options_that_cost_a_million_times_the_plan_do_not_hide_it() -> None:
    rng = np.random.default_rng(0)
    bits = np.array([2.0, 3.0, 4.0, 8.0])
    cost = 1e-9 * 4.0**-bits * np.exp(rng.normal(size=(8, 4)))
    cost[:, 0] = 1e6
    uses = [np.ones((8, 1)) * bits]
    assert allocate(cost, uses, [34.0]).objective == pytest.approx(cheapest(cost, uses, [34.0]), rel=1e-12)


def test_units_change_nothing() -> None:
    cost, uses = table("network", 5, layers=30)
    limits = [use[:, 3].sum() for use in uses]
    plan = allocate(cost, uses, limits).choice
    for a, b in ((1e-12, 1e9), (1e12, 1e-9)):
        assert (
            allocate(a * cost, [b * use for use in uses], [b * limit for limit in limits]).choice.tolist()
            == plan.tolist()
        )


def test_without_limits_every_layer_takes_its_cheapest_option() -> None:
    assert allocate([[3.0, 1.0], [np.inf, 2.0], [-1.0, 0.0]]).choice.tolist() == [1, 1, 0]
    assert allocate([[1.0, 0.0]], [[[1.0, 9.0]]], [np.inf]).choice.tolist() == [1]


def test_time_ends_the_search_with_a_bound_that_holds() -> None:
    rng = np.random.default_rng(1)  # costs that are the uses but for noise: the hardest kind there is
    n = rng.integers(1, 1000, (200, 1))
    first = n * np.arange(1.0, 9.0)
    second = first * (1 + 0.3 * rng.random((200, 8))).round(2)
    cost = -(first + second) + rng.integers(-50, 50, (200, 8))
    limits = [0.45 * use.max(axis=1).sum() for use in (first, second)]
    found = allocate(cost, [first, second], limits, time_limit=0.3)
    assert found.bound <= found.objective and found.gap < 0.05
    assert found.optimal == (found.gap == 0.0)
    if not found.optimal:
        assert "NOT PROVEN OPTIMAL" in repr(found)
    longer = allocate(cost, [first, second], limits, time_limit=3.0)
    assert found.bound <= longer.objective <= found.objective


def test_no_plan_says_what_is_nearest() -> None:
    cost, use = np.zeros((3, 2)), np.array([[4.0, 8.0]] * 3)
    with pytest.raises(InputError, match="limit 0: the least use is 12, 2 above 10") as one:
        allocate(cost, [use], [10.0])
    assert any("the nearest plan uses 12, 2 too much" in line for line in one.value.details)
    other = np.array([[8.0, 4.0]] * 3)
    with pytest.raises(InputError, match="not all together: the nearest plan misses limit") as two:
        allocate(cost, [use, other], [16.0, 16.0])
    assert any(line.startswith("the nearest plan: [") for line in two.value.details)


def test_tied_and_pinned_layers_do_as_they_are_told() -> None:
    cost = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 5.0], [0.0, 1.0]])
    found = allocate(cost, tied=[[0, 1], [1, 2]], pinned={3: 1})
    assert found.choice.tolist() == [0, 0, 0, 1] and found.objective == 2.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cost": [[np.nan, 1.0]]}, "NaN"),
        ({"cost": [[-np.inf, 1.0]]}, "-inf"),
        ({"cost": [1.0, 2.0]}, "shape"),
        ({"cost": []}, "shape"),
        ({"cost": [["a", "b"]]}, "no table of numbers"),
        ({"cost": [[np.inf, np.inf]]}, "no option is allowed"),
        ({"cost": [[0.0, 1.0]], "uses": [[[1.0, -2.0]]], "limits": [3]}, "negative"),
        ({"cost": [[0.0, 1.0]], "uses": [[[1.0, np.nan]]], "limits": [3]}, "NaN"),
        ({"cost": [[0.0, 1.0]], "uses": [[[1.0, 2.0, 3.0]]], "limits": [3]}, "shape"),
        ({"cost": [[0.0, 1.0]], "uses": [[[1.0, 2.0]]], "limits": []}, "limits"),
        ({"cost": [[0.0, 1.0]], "uses": [[[1.0, 2.0]]], "limits": [np.nan]}, "NaN"),
        ({"cost": [[0.0, 1.0]], "tied": [[0, 1]]}, "layer 1 does not exist"),
        ({"cost": [[0.0, 1.0]], "tied": [[-1]]}, "layer -1 does not exist"),
        ({"cost": [[0.0, 1.0]], "pinned": {1: 0}}, "layer 1 does not exist"),
        ({"cost": [[0.0, 1.0]], "pinned": {0: 2}}, "option 2 does not exist"),
        ({"cost": [[0.0, np.inf]], "pinned": {0: 1}}, "pinned to what is not allowed"),
        ({"cost": [[0.0, 1.0]] * 2, "tied": [[0, 1]], "pinned": {0: 0, 1: 1}}, "tied layers to different options"),
        ({"cost": [[0.0, np.inf], [np.inf, 0.0]], "tied": [[0, 1]]}, "no allowed option in common"),
        ({"cost": [[0.0, 1.0]], "time_limit": 0.0}, "time_limit"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as refusal:
        allocate(**arguments)
    assert refusal.value.where and refusal.value.what_to_do


def test_no_plan_found_in_time_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from layerhess.planning.allocation.branching import Branched

    monkeypatch.setattr(
        "layerhess.planning.allocation.allocation.branched", lambda *_: Branched(None, -np.inf, finished=False)
    )
    with pytest.raises(CheckError, match="no plan within the limits was found in 1 s"):
        allocated(Problem([[0.0]]), time_limit=1.0)
