"""What an analysis will cost, said beforehand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import layerhess as lh
from layerhess.analysis import estimate, tasks
from layerhess.analysis.trial import Growth, Rows, Unit
from layerhess.curvature import device
from layerhess.linalg.long_rows import Space
from repeated_blocks import Tied


def network(width: int = 40) -> lh.Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))
    data = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(4)]
    return lh.Objective(model, data, nn.CrossEntropyLoss())


def test_blocks_that_are_read_whole_take_as_many_products_as_they_have_parameters() -> None:
    objective = network(width=3)  # 21 and 12 parameters
    found = lh.estimate(objective, blocks="module", full=False)
    assert (found.products, found.world, found.examples) == (33, 1, 64)
    assert found.passes == lh.analyze(objective, blocks="module", full=False).counts.passes <= 21
    assert found.seconds > 0.0 and found.gradient_seconds > 0.0 and found.peak_bytes > 0 and found.sent_bytes == 0


def test_the_passes_are_near_those_of_a_run() -> None:
    objective = network()
    found, made = lh.estimate(objective, blocks="module", top=2), lh.analyze(objective, blocks="module", top=2)
    assert 0.5 < found.passes / made.counts.passes < 2.0


SHAPES = ("wide layers", "many examples", "a transformer")
RUN = """
import sys, torch, layerhess as lh
from layerhess.curvature import device
from layerhess.curvature.device import peak_bytes, restart_peak, used_bytes
from test_estimate import shape
device.free_bytes = lambda place: 12 << 30  # both plan for the same, whatever others take meanwhile
torch.set_num_threads(1)
objective, cpu = shape(sys.argv[1]), torch.device("cpu")
if sys.argv[2] == "estimate":
    found = lh.estimate(objective)
    print(found.peak_bytes)
else:
    restart_peak(cpu)
    before = used_bytes(cpu)
    found = lh.analyze(objective)
    print(peak_bytes(cpu) - before)
"""


def shape(name: str) -> lh.Objective:
    torch.manual_seed(0)
    if name == "a transformer":
        words = torch.randint(0, 7, (32, 64))
        return lh.Objective(Tied(3, 64), list(zip(words.split(8), words.split(8), strict=True)), nn.CrossEntropyLoss())
    wide, n, batch = (768, 1024, 128) if name == "wide layers" else (256, 6000, 3000)
    model = nn.Sequential(nn.Linear(64, wide), nn.Tanh(), nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, 10))
    x, y = torch.randn(n, 64), torch.randint(0, 10, (n,))
    return lh.Objective(model, list(zip(x.split(batch), y.split(batch), strict=True)), nn.CrossEntropyLoss())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs the peak of one process (Linux)")
@pytest.mark.parametrize("name", SHAPES)
def test_the_peak_is_near_that_of_a_run(name: str) -> None:
    """Each in a process of its own: what the first allocations of a process take belongs to both."""
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    figures = []
    for what in ("estimate", "analyze"):
        command = [sys.executable, "-c", RUN, name, what]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        figures.append(float(done.stdout))
    peak, real_peak = figures
    assert abs(peak / real_peak - 1.0) <= 0.15


def test_what_has_the_size_of_the_weights_does_not_grow_with_the_examples() -> None:
    growth = Growth.through((4, 500.0), (8, 900.0))
    assert (growth.fixed, growth.each, growth.of(100)) == (100.0, 100.0, 10100.0)
    assert Growth.through((1, 70.0), (1, 70.0)).of(3) == 210.0
    assert Growth.through((4, 90.0), (8, 80.0)).of(100) == 80.0


def test_a_trial_that_is_ended_is_carried_on(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lh.estimate(network())
    monkeypatch.setattr(estimate, "TRIAL_SECONDS", 0.0)
    cut = lh.estimate(network())
    assert any("that search was ended" in note for note in cut.notes)
    assert 1 <= cut.passes <= 3 * whole.passes and cut.peak_bytes > 0


@pytest.mark.parametrize("limit", [1e-3, 1.0])
def test_limits_of_the_run_count_and_where_it_writes_does_not(limit: float) -> None:
    few = lh.estimate(network(), max_passes=3, out="nowhere", resume=True)
    assert few.passes == lh.analyze(network(), max_passes=3).counts.passes < lh.estimate(network()).passes
    short = lh.estimate(network(), time_limit=limit)
    checks = lh.estimate(network()).seconds
    assert 0.0 < short.seconds < limit + checks and short.peak_bytes > 0


def test_graphs_are_kept_as_whole_batches() -> None:
    unit = Unit(Growth(10.0, 1.0), 1.5, Growth(20.0, 2.0), 4.0, 1.0, examples=64, pieces=4, piece=16, tried=(16,))
    assert unit.graphs == 1.5 * (4 * 10.0 + 64.0) and unit.held([16, 4]) == 1.5 * (26.0 + 14.0)
    assert [estimate._whole_batches(unit, room) for room in (38.0, 39.0, 90.0, 1000.0)] == [0.0, 39.0, 78.0, 975.0]


def task(size: int, limit: int, products: int, *, done: bool = False, ranks: int = 1) -> Any:
    basis = SimpleNamespace(space=Space(100), dtype=torch.float64, size=size, limit=limit)
    return SimpleNamespace(process=SimpleNamespace(basis=basis), products=products, done=done, ranks=ranks)


def test_rows_grow_with_the_steps_of_open_searches_until_they_restart() -> None:
    row = 2 * 8 * 100.0
    assert Rows.of(task(20, 160, 20)).after(3.0, 0.9) == pytest.approx(54 * row)
    assert Rows.of(task(20, 30, 20)).after(3.0, 0.9) == 30 * row
    assert Rows.of(task(20, 160, 20, done=True)).after(3.0, 0.9) == pytest.approx(18 * row)
    assert Rows.of(task(12, 12, 40)).after(3.0, 0.9) == 12 * row  # it has restarted
    assert Rows.of(task(12, 12, 40, ranks=4)).after(3.0, 0.9) == 3 * row
    assert Rows.of(SimpleNamespace(process=None)).nbytes == 0.0  # type: ignore[arg-type]


def test_processes_share_the_rows_where_whole_ones_do_not_fit() -> None:
    """Of 6,003 parameters 12 rows and their products do not fit in 0.6 MB; a third of them does."""
    objective = network(width=600)
    with pytest.raises(lh.InputError, match="solvers' vectors do not fit"):
        lh.estimate(objective, device_memory=10**6, path="exact")
    found = lh.estimate(objective, device_memory=10**6, path="exact", world=3, max_passes=5)
    assert found.passes == 5 and not any("as if they were not sliced" in note for note in found.notes)


def test_a_trial_of_ranks_plans_as_they_do_and_holds_rows_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    plans, made = [], tasks.waves
    monkeypatch.setattr(tasks, "waves", lambda *a, **k: plans.append(made(*a, **k)) or plans[-1])
    objective, asked = network(width=600), {"device_memory": 2 * 10**7, "max_passes": 12}
    alone, three = lh.estimate(objective, **asked), lh.estimate(objective, world=3, **asked)
    shared = [{held.ranks for held in plan.held.values() if held.rows == 160} for plan in plans]
    assert set() in shared and {3} in shared  # whole rows: fewer and in float32; shared: a comfortable basis
    assert three.sent_bytes > 0 == alone.sent_bytes


def test_where_whole_rows_have_no_room_here_ranks_are_said_not_to_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "free_bytes", lambda place: 10**6)
    found = lh.estimate(network(width=400), device_memory=10**7, world=3, max_passes=3)
    assert any("as if they were not sliced" in note for note in found.notes)


def test_processes_send_sums() -> None:
    alone, four = (lh.estimate(network(), world=world) for world in (1, 4))
    assert (alone.world, four.world) == (1, 4) and alone.sent_bytes == 0
    assert four.sent_bytes > 8 * 403 * four.passes


def test_what_analyze_refuses_is_refused_and_the_model_stays() -> None:
    objective = network()
    before = [parameter.clone() for parameter in objective.model.parameters()]
    state = torch.get_rng_state()
    for wrong in ({"top": -1}, {"blocks": "nothing"}, {"world": 0}, {"device_memory": "much"}):
        with pytest.raises(lh.InputError, match=next(iter(wrong))):
            lh.estimate(objective, **wrong)
    with pytest.raises(TypeError, match="nonsense"):
        lh.estimate(objective, nonsense=1)
    lh.estimate(objective)
    assert all(torch.equal(a, b) for a, b in zip(before, objective.model.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_many_processes_have_no_more_examples_than_there_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 2))
    objective = lh.Objective(model, (torch.randn(61, 30), torch.randint(2, (61,))), nn.CrossEntropyLoss())
    found = lh.estimate(objective, world=1000, max_passes=1)
    assert any(" of 61 examples" in note for note in found.notes)
