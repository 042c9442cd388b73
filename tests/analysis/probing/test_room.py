"""What estimators hold fits the budget: fewer vectors at a time, group after group; a sentence where none fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import layerhess as lh
from driven_solver import draw
from four_layers import four_layers
from layerhess.analysis.estimate_options import EstimateOptions
from layerhess.analysis.estimates import Estimation
from layerhess.analysis.probing.room import DENSITY, PROBE, Room
from layerhess.analysis.tasks import Task
from layerhess.curvature.device import Budget
from layerhess.errors import InputError
from layerhess.linalg.stochastic.density import Density, StochasticLanczos
from layerhess.objective.blocks import make_block
from references.spectra import rotated


def test_probes_columns_and_densities_fit() -> None:
    room = Room(1e6)
    assert room.probes(1000) == int(1e6 // (PROBE * 1000)) and room.probes(10) == 64
    assert room.probes(1000) > room.probes(1000, diagonal=True) >= 1
    assert room.densities({"a": 10, "b": 20}, 10, False) is None
    found = room.densities({"a": 100, "b": 5000}, 10, False)
    assert found == {"a": 10, "b": int(1e6 // (DENSITY * 5000))}
    assert room.products(100, 1000, 32, "trace") == 1e6 // 2400


@pytest.mark.parametrize(
    ("asked", "without"),
    [
        (lambda room: room.probes(30_000), ""),
        (lambda room: room.probes(30_000, kinds="trace, coupling"), "trace, coupling"),
        (lambda room: room.densities({"wte": 30_000}, 10, False), "density"),
        (lambda room: room.products(3000, 64, 32, "trace"), "trace"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_memory_that_would_do(asked: Any, without: str) -> None:
    with pytest.raises(InputError, match="memory") as refused:
        asked(Room(1e6, 0.1))
    assert refused.value.what_to_do.partition("or leave out: ")[2] == without
    size = float(str(refused.value).split("memory='")[1].split("MiB")[0])
    assert asked(Room(0.1 * size * 2**20)) != 0
    assert len(str(refused.value)) <= 400


@pytest.mark.parametrize("together", [1, 3, 5])
def test_a_density_from_some_vectors_at_a_time_is_that_from_all(together: int) -> None:
    matrix = torch.from_numpy(rotated(np.linspace(-1.0, 3.0, 60), seed=1))
    options = Density(probes=5, steps=8)
    both = [StochasticLanczos(60, options, draw(60), number) for number in (None, together)]
    for process in both:
        while not process.done:
            rows = process.ask()
            assert len(rows) <= (together if process is both[1] else 5)
            process.tell(rows @ matrix)
            early = process.result()
            assert early.finished == process.done and early.probes >= 1
    whole, parts = (process.result() for process in both)
    for name in ("nodes", "weights", "value", "low", "high", "mean", "mean_error"):
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), rtol=1e-9, atol=1e-12)


def test_estimates_after_waves_agree_with_those_beside_one() -> None:
    objective = four_layers(torch.float32)
    options: Any = {
        "blocks": "module", "full": False, "path": "exact", "exclude": None, "trace": lh.Trace(rel=0.2),
        "density": lh.Density(probes=4, steps=6), "seed": 3,
    }  # fmt: skip
    whole, parts = lh.analyze(objective, **options), lh.analyze(objective, memory="1.5MB", **options)
    for name, one in whole.blocks.items():
        other = parts.blocks[name]
        assert other.density is not None and one.density is not None and one.trace and other.trace
        if one.density.probes:
            np.testing.assert_allclose(other.density.nodes, one.density.nodes, rtol=1e-4, atol=1e-4)
        error = np.hypot(one.trace.standard_error, other.trace.standard_error)
        assert abs(one.trace.value - other.trace.value) <= 6.0 * error + 1e-6


@pytest.mark.parametrize(("memory", "kept"), [(30_000, True), (10_000, False)])
def test_bases_are_dropped_where_estimates_do_not_fit_beside_them(memory: int, kept: bool) -> None:
    """``memory``: bytes a parameter; 100 products of a method that keeps them take 2400."""
    block = make_block("a", {"w": torch.nn.Parameter(torch.zeros(5000))})
    task = Task("a", block, make=lambda definite: None)  # type: ignore[arg-type,return-value]
    made = Estimation(
        EstimateOptions(trace=lh.Trace(method="xtrace", probes=100)), {"a": block}, block, None, False, 0,
        {"w": torch.zeros(1)}, Budget(memory * block.numel), [task],
    )  # fmt: skip
    assert task.kept == kept and made.room.share == pytest.approx(0.1 if kept else 0.4)
