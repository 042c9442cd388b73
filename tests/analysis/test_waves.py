"""Operators in waves that fit a budget: the same eigenvalues as all at once, with few rows, in either dtype."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import layerhess as lh
from four_layers import four_layers
from layerhess.analysis.arguments import check_arguments
from layerhess.analysis.fitting import refuse_unless_it_fits
from layerhess.analysis.probing.room import ROOM_SHARE
from layerhess.analysis.tasks import Task
from layerhess.analysis.waves import (
    ENOUGH,
    IN_FLIGHT,
    LARGEST_SHARE,
    LEAST,
    SOLVER_SHARE,
    SOLVERS_AND_GRAPHS,
    Held,
    graphs_may_keep,
    waves,
)
from layerhess.checks import rounding
from layerhess.checks.heavy_examples import HeavyExamples
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL
from layerhess.curvature.device import PIECE_SHARE, Budget
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.request import Request
from layerhess.errors import InputError
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.process import Wanted
from layerhess.objective.blocks import make_block, partition
from references.dense import Matrix, rows_of_hessian
from witness import refused

TOP = Wanted(top=1)


def test_where_there_is_room_all_bases_are_comfortable_and_there_is_one_wave() -> None:
    plan = waves({"a": 10**6, "b": 100}, TOP, Budget(2**40), torch.float32, exclude=0.05)
    assert plan.waves == (("a", "b"),)
    assert plan.held == {"a": Held(160, torch.float64), "b": Held(100, torch.float64)}


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_stays_within_its_share_and_leaves_nobody_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = {f"b{i}": int(n) for i, n in enumerate(10 ** rng.uniform(0.0, 6.0, size=30))}
    wanted, width = Wanted(top=1 + seed % 3, bottom=seed % 2), 1 + seed % 2
    dtype, exclude = (torch.float32, torch.float64, torch.bfloat16)[seed % 3], (None, 0.05)[seed // 3 % 2]
    item, ranks = 8 if dtype == torch.float64 else 4, (1, 2, 1, 3)[seed % 4]
    memory = Budget(2**50, limit=int(400 * item * max(sizes.values())))
    plan = waves(sizes, wanted, memory, dtype, exclude=exclude, width=width, ranks=ranks)
    assert sorted(name for wave in plan.waves for name in wave) == sorted(sizes)
    assert plan == waves(sizes, wanted, memory, dtype, exclude=exclude, width=width, ranks=ranks)
    pairs = item * wanted.total * sum(sizes.values())
    large = max(sizes.values()) * (2 * max(LEAST, wanted.total + 11) * item + width * (item + IN_FLIGHT))
    room = max(SOLVER_SHARE * memory.room, large + pairs + 0.11 * memory.room)
    for wave in plan.waves:
        assert pairs + sum(plan.held[name].nbytes(sizes[name], width) for name in wave) <= room
    assert plan.nbytes <= LARGEST_SHARE * memory.room
    for name, n in sizes.items():
        held = plan.held[name]
        assert held.rows >= LEAST or held.rows == n
        precise = held.rows == n or dtype == torch.float64
        assert ranks > 1 or held.dtype == (torch.float64 if precise else torch.float32)
        assert held.ranks == (1 if held.rows == n else ranks)


def test_ranks_share_rows_before_they_are_fewer_and_only_where_all_do_not_fit() -> None:
    sizes, memory = {"a": 10**6, "b": 100}, Budget(2**50, limit=6 * 10**9)  # of which solvers have 1.8e9
    whole, shared = (waves(sizes, TOP, memory, torch.float32, ranks=ranks) for ranks in (1, 2))
    assert whole.held["a"].dtype == torch.float32 and whole.held["a"].ranks == 1
    assert shared.held == {"a": Held(160, torch.float64, 2), "b": Held(100, torch.float64)} and not shared.roomy
    assert waves(sizes, TOP, Budget(2**50, limit=12 * 10**9), torch.float32, ranks=2).held["a"].ranks == 1


def test_more_rows_are_kept_where_something_is_to_be_excluded_and_waves_are_as_few_as_rows_allow() -> None:
    sizes, memory = dict.fromkeys("abcd", 10**6), Budget(2**50, limit=1_300_000_000)
    few, many = (waves(sizes, TOP, memory, torch.float32, exclude=exclude) for exclude in (None, 0.05))
    assert len(few.waves) == 2 and len(many.waves) == 4
    assert LEAST <= min(held.rows for held in few.held.values()) < ENOUGH <= many.held["a"].rows


def test_no_more_than_the_budget_is_given_away() -> None:
    """Solvers and kept graphs, the graph at hand, estimators, and the sample's graphs in two precisions."""
    assert SOLVERS_AND_GRAPHS + PIECE_SHARE + ROOM_SHARE + 2 * rounding.SHARE <= 1.0 + 1e-12
    assert SOLVER_SHARE < LARGEST_SHARE < SOLVERS_AND_GRAPHS


def test_kept_graphs_make_room_for_the_largest_solver() -> None:
    graphs, memory = Budget(1000, limit=400), Budget(1000)
    assert graphs_may_keep(graphs, memory, 100) == graphs_may_keep(graphs, memory, 300) > 0
    assert graphs_may_keep(graphs, memory, 600) == pytest.approx(SOLVERS_AND_GRAPHS * 1000 - 600)


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    sizes = {"(full)": 10**9, "b": 10}
    with pytest.raises(InputError) as refused:
        waves(sizes, TOP, Budget(100 << 30), torch.float32)
    for word in ("'(full)' has 1,000,000,000 parameters", "12 rows", "full=False", "memory='212GiB'"):
        assert word in str(refused.value)
    assert len(str(refused.value)) <= 400
    fits = int(re.findall("at most ([0-9,]+) parameters", str(refused.value))[0].replace(",", ""))
    assert len(waves(sizes, TOP, Budget(212 << 30), torch.float32).waves[0]) == 2
    assert waves({"b": fits}, TOP, Budget(100 << 30), torch.float32).held["b"].rows == 12


SAMPLED: Any = {
    "blocks": "module", "full": False, "path": "exact", "exclude": None, "sampling": True, "trace": True,
}  # fmt: skip


@cache
def _exact() -> dict[str, Matrix]:
    """Block -> all its eigenvalues, descending, of float64."""
    objective = four_layers(torch.float64)
    model, (x, y) = objective.model, objective.data
    made = {}
    for place, layer in enumerate(model):
        if not isinstance(layer, nn.Linear):
            continue

        def loss(flat: torch.Tensor, place: int = place, layer: nn.Linear = layer) -> torch.Tensor:
            weight, bias = flat[: layer.weight.numel()].view_as(layer.weight), flat[layer.weight.numel() :]
            outputs = torch.func.functional_call(model, {f"{place}.weight": weight, f"{place}.bias": bias}, (x,))
            return nn.functional.cross_entropy(outputs, y)

        at = torch.cat([layer.weight.detach().reshape(-1), layer.bias.detach()])
        made[str(place)] = np.linalg.eigvalsh(rows_of_hessian(loss, at))[::-1]
    return made


class _Watched(Task):
    """Counts the bytes of all bases whenever a task is told something."""

    alive: ClassVar[list[Task]] = []
    most: ClassVar[int] = 0
    dtypes: ClassVar[set[torch.dtype]] = set()

    def tell(self, products: torch.Tensor) -> None:
        super().tell(products)
        if self not in _Watched.alive:
            _Watched.alive.append(self)
        bases = [t._process.basis for t in _Watched.alive if isinstance(t._process, Lanczos)]
        _Watched.most = max(_Watched.most, sum(b._q.nbytes + b._w.nbytes for b in bases))
        _Watched.dtypes |= {b.dtype for b in bases}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{"exclude": None}, {"exclude": 0.05}, {"top": 2, "exclude": None}], ids=str)
def test_waves_find_what_one_wave_finds(dtype: torch.dtype, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerhess.analysis.tasks.Task", _Watched)
    _Watched.alive, _Watched.most, _Watched.dtypes = [], 0, set()
    objective = four_layers(dtype)
    whole = lh.analyze(objective, blocks="module", full=False, path="exact", **options)
    limit = 1_000_000 if dtype == torch.float32 else 1_700_000
    assert _Watched.dtypes == {torch.float64}
    _Watched.alive, _Watched.most, _Watched.dtypes = [], 0, set()
    parts = lh.analyze(objective, blocks="module", full=False, path="exact", memory=limit, **options)
    assert 0 < _Watched.most <= LARGEST_SHARE * limit
    assert dtype in _Watched.dtypes
    assert {task.wave for task in _Watched.alive} == {*range(1 + max(task.wave for task in _Watched.alive))} > {0}
    assert all(task.released for task in _Watched.alive)
    for name, one in whole.blocks.items():
        other = parts.blocks[name]
        assert one.status == other.status == "converged", (name, one.status, other.status)
        together = one.error_bounds + other.error_bounds
        assert np.all(np.abs(one.eigenvalues - other.eigenvalues) <= together)
        exact, count = _exact()[name], len(other.eigenvalues)
        assert np.all(np.abs(other.eigenvalues - exact[:count]) <= other.error_bounds)
        assert exact[count - 1 if count == 1 else count] <= other.missed_above * (1.0 + 1e-6)
        if options["exclude"]:
            assert other.missed_above <= 1.05 * exact[0]
        for vector in other.eigenvectors:
            assert {part.dtype for part in vector.values()} == {dtype}


def test_pairs_in_float32_serve_sampling_errors_and_the_choice_of_heavy_examples() -> None:
    torch.manual_seed(1)
    model = four_layers(torch.float32).model
    x, y = torch.randn(300, 30), torch.randint(0, 4, (300,))
    objective = lh.Objective(model, (x, y), nn.CrossEntropyLoss())
    whole, parts = lh.analyze(objective, **SAMPLED), lh.analyze(objective, memory="1.1MB", **SAMPLED)
    for name, one in whole.blocks.items():
        other = parts.blocks[name]
        np.testing.assert_allclose(other.sampling_errors, one.sampling_errors, rtol=1e-2)
        assert other.trace is not None and other.trace.sampling_error > 0.0
    block = make_block("0", {n: p for n, p in objective.parameters.items() if n.startswith("0.")})
    rows = torch.randn(2, block.numel, generator=torch.Generator().manual_seed(0))
    heavy = HeavyExamples(objective, Counters(), HessianGraph)
    steps = [heavy._direction({"0": Request(block, v)}, {"0": 1.0}, torch.float64) for v in (rows, rows.double())]
    for name in block.parameters:
        np.testing.assert_allclose(steps[0][name], steps[1][name], rtol=1e-12)


def test_sampling_errors_of_several_passes_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = four_layers(torch.float64)
    whole = lh.analyze(objective, **SAMPLED)
    monkeypatch.setattr("layerhess.analysis.sampling_errors.SHARE", 1e-9)
    parts = lh.analyze(objective, **SAMPLED)
    assert parts.counts.products == whole.counts.products
    assert parts.counts.forwards > whole.counts.forwards
    for name, one in whole.blocks.items():
        np.testing.assert_allclose(parts.blocks[name].sampling_errors, one.sampling_errors, rtol=1e-9)
        assert one.trace is not None and parts.blocks[name].trace is not None
        np.testing.assert_allclose(parts.blocks[name].trace.sampling_error, one.trace.sampling_error, rtol=1e-9)


def test_a_run_that_is_stopped_in_its_first_wave_has_nothing_of_the_later_ones() -> None:
    found = lh.analyze(
        four_layers(torch.float32), blocks="module", full=False, path="exact", memory="1MB", max_passes=3
    )
    statuses = [spectrum.status for spectrum in found.blocks.values()]
    assert any("bound so far" in status for status in statuses)
    assert any("stopped before its first product" in status for status in statuses)


class _Silent(nn.Linear):
    """Must not be evaluated."""

    def forward(self, *_: Any) -> Any:
        raise AssertionError("a forward pass")


@pytest.mark.parametrize(
    ("memory", "options", "advice"),
    [
        ("4MB", {}, "use full=False, which fits, or give memory='"),
        ("4MB", {"blocks": {"all": "*"}, "full": False}, "use blocks='depth:1', which fits"),
        ("8MB", {"blocks": {"all": "*"}}, "use blocks='depth:1', full=False, which fits"),
        ("1MB", {"blocks": "module", "full": False}, "give memory='3MiB', or freeze"),
        ("2MB", {"blocks": "parameter", "full": False}, "MiB', or use fewer eigenvalues, or blocks of at most"),
        ("5MB", {"top": 0, "trace": True}, "give memory='6MiB', or leave out: trace"),
        (
            "5MB",
            {"top": 0, "diagonal": True, "blocks": {"last": "5.*"}},
            "use full=False, which fits, or give memory='",
        ),
        ("5MB", {"top": 0, "density": True}, "use full=False, which fits, or give memory='7MiB'"),
        ("5MB", {"top": 0, "density": True, "blocks": {"all": "*"}, "full": False}, "use blocks='depth:1', which fits"),
        ("40MB", {"top": 0, "diagonal": lh.Diagonal(method="xdiag", probes=40)}, "give memory='"),
    ],
)
def test_what_numel_alone_decides_is_refused_before_the_first_forward_pass(
    memory: str, options: dict[str, Any], advice: str
) -> None:
    model = nn.Sequential(*(_Silent(100, 100) for _ in range(6)))
    objective = lh.Objective(model, (torch.randn(4, 100), torch.randn(4, 100)), nn.MSELoss())
    with refused(model, "do not fit into memory", advice, "memory"):
        lh.analyze(objective, memory=memory, **options)


@pytest.mark.parametrize("memory", ["1MB", "3MB", "9MB"])
@pytest.mark.parametrize(
    "options",
    [
        {"blocks": "module", "full": False, "top": 3, "bottom": 1},
        {"blocks": "weight", "trace": True, "density": True},
        {"blocks": {"all": "*"}, "full": False, "coupling": True, "exclude": None},
        {"blocks": "depth:1", "diagonal": True, "top": 0},
    ],
    ids=str,
)
def test_memory_that_a_refusal_asks_for_is_enough_and_little_less_is_not(memory: str, options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(30, 900), nn.Tanh(), nn.Linear(900, 100), nn.Tanh(), nn.Linear(100, 4))
    asked = {"method": "lanczos", "path": "auto"} | options

    def refused(memory: str) -> str:
        objective = lh.Objective(model, (torch.randn(4, 30), torch.randint(4, (4,))), nn.CrossEntropyLoss())
        given: dict[str, Any] = {
            "operator": "hessian", "top": 1, "bottom": 0, "full": True, "tol": 1e-3, "seed": 0, "out": None,
            "max_passes": 9, "time_limit": None, "memory": memory, "exclude": 0.05, "resume": False, "progress": None,
        }  # fmt: skip
        given |= {key: value for key, value in asked.items() if key != "blocks"}
        arguments = check_arguments(objective, **given)
        divided = partition(model, objective.parameters, objective.frozen, asked["blocks"])
        operators = {block.name: block for block in divided.blocks} | (
            {FULL: make_block(FULL, objective.parameters)} if arguments.full else {}
        )
        try:
            refuse_unless_it_fits(
                objective, operators, Wanted(arguments.top, arguments.bottom), Budget(1 << 40, arguments.memory),
                arguments.path, arguments.method, arguments.estimates, arguments.exclude,
            )  # fmt: skip
        except lh.InputError as error:
            return error.what_to_do
        return ""

    advice = refused(memory)
    if not advice:
        return
    enough = int(re.search(r"memory='(\d+)MiB'", advice)[1])  # type: ignore[index]
    assert not refused(f"{enough}MiB")
    assert enough <= 2 or refused(f"{int(0.85 * enough) - 1}MiB")
    assert ("use full=False" in advice) <= asked.get("full", True)
    for kind in ("trace", "diagonal", "density", "coupling"):
        assert kind not in advice or asked.get(kind)


def test_what_fits_or_is_not_asked_reaches_the_first_forward_pass() -> None:
    objective = lh.Objective(_Silent(100, 100), (torch.randn(4, 100), torch.randn(4, 100)), nn.MSELoss())
    for options in (
        {"memory": "5MB", "full": False},
        {"memory": "1.1MB", "path": "gram"},
        {"memory": "1.1MB", "top": 0},
    ):
        with pytest.raises(AssertionError, match="a forward pass"):
            lh.analyze(objective, **{"trace": True, **options})  # type: ignore[arg-type]
