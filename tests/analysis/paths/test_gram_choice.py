"""The Gram path: what it refuses, and when it is taken by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
import zoo
from commands import Capture, refusal, workplace
from complete_spectra import CE, assert_complete, problem, truth
from layerhess.analysis.paths import gram
from layerhess.analysis.result import Analysis
from layerhess.linalg.eigen.row_sum import RowSum
from piecewise_linear import Changing
from witness import refused

# -- refusals ----------------------------------------------------------------------------------------------------------


def smooth() -> lh.Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))
    return lh.Objective(model, (torch.randn(9, 6), torch.randn(9, 1)), nn.MSELoss())


def test_blocks_without_a_licence_are_refused() -> None:
    objective = smooth()
    with refused(objective.model, "0.weight", "piecewise linear", "path='auto'"):
        lh.analyze(objective, path="gram")


def test_the_empirical_fisher_has_no_factors_and_says_so() -> None:
    objective = problem(9)
    with refused(objective.model, "0.weight", "no factors for the empirical Fisher", "path='exact'"):
        lh.analyze(objective, operator="empirical_fisher", path="gram")


def test_layers_without_rows_are_refused() -> None:
    objective = zoo.BY_NAME["embedding-words"].build(torch.float64, 0).objective()
    with refused(objective.model, "apart", "path='auto'"):
        lh.analyze(objective, operator="gauss_newton", path="gram")


def test_what_does_not_fit_is_refused_by_name() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 200), nn.ReLU(), nn.Linear(200, 4))
    objective = lh.Objective(model, (torch.randn(80, 40), torch.randint(4, (80,))), CE)
    with refused(model, "0.weight", "does not fit into memory", "MiB", "path='auto'"):
        lh.analyze(objective, blocks="weight", path="gram", full=False, memory="4MB")
    with refused(model, "room for 0.2 MiB"):
        lh.analyze(objective, blocks="weight", path="gram", full=False, memory="1MB")


def test_power_iteration_is_no_method_of_this_path() -> None:
    objective = problem(9)
    with refused(objective.model, "method", "path='gram'"):
        lh.analyze(objective, path="gram", method="power")


def test_a_batch_without_factors_is_refused_or_left_to_lanczos(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    data = [(torch.randn(8, 4).double(), torch.randint(3, (8,))) for _ in range(12)]
    data[7][0][0, 0] = 1000.0
    objective = lh.Objective(Changing("smooth").double(), data, CE)
    monkeypatch.setattr("layerhess.checks.survey.Sampler.chosen", lambda sampler, _: [sampler._first[::2]])
    with refused(objective.model, "first.weight", "no factors", "path='auto'"):
        lh.analyze(objective, blocks="weight", path="gram", full=False)
    monkeypatch.setattr("layerhess.analysis.paths.gram.is_cheaper", lambda *arguments: True)
    found = lh.analyze(objective, blocks="weight", full=False, top=2)
    assert found.blocks["first.weight"].path != "gram on factors"
    matrix = lh.Hessian(objective, blocks="weight")
    for name, spectrum in found.blocks.items():
        values = np.linalg.eigvalsh(matrix.block(name).to_dense().numpy())[::-1][:2]
        assert (np.abs(spectrum.eigenvalues - values) <= spectrum.error_bounds + 1e-12).all(), name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with workplace(tmp_path, monkeypatch) as folder:
        yield folder


def test_the_command_line_refuses_with_the_same_words(here: Path, capsys: Capture) -> None:
    said = refusal(capsys, "analyze", "mine:make", "--path", "gram", "--out", "run")
    assert "piecewise linear" in said and "0.weight" in said
    assert "'gram'" in refusal(capsys, "analyze", "mine:make", "--path", "grams", "--out", "run")


# -- the choice --------------------------------------------------------------------------------------------------------


def on_gram(found: Analysis) -> set[str]:
    return {name for name, s in found.blocks.items() if s.path == "gram on factors"}


def test_few_rows_and_many_pairs_are_taken_by_themselves() -> None:
    objective = problem(5, 4)
    few = lh.analyze(objective, blocks="weight", top=10, bottom=4, full=False)
    assert on_gram(few) == {"0.weight", "2.weight", "4.weight"}
    reference = truth(objective.model, objective.data)
    for name, spectrum in few.blocks.items():
        assert_complete(spectrum, reference.block([name]), 1e-12)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 60), nn.ReLU(), nn.Linear(60, 5))
    many = lh.Objective(model, (torch.randn(2000, 100), torch.randint(5, (2000,))), CE)
    assert not on_gram(lh.analyze(many, blocks="weight", full=False, tol=1e-2))


def test_memory_that_is_too_small_leaves_the_blocks_to_lanczos() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 400), nn.ReLU(), nn.Linear(400, 3))
    objective = lh.Objective(model, (torch.randn(12, 50), torch.randint(3, (12,))), CE)
    options: dict[str, Any] = {"blocks": "weight", "top": 2, "full": False}
    free = lh.analyze(objective, **options)
    assert "0.weight" in on_gram(free)
    tight = lh.analyze(objective, memory="12MB", **options)
    assert "0.weight" not in on_gram(tight) and tight.converged
    for name, spectrum in tight.blocks.items():
        other = free.blocks[name]
        assert (np.abs(spectrum.eigenvalues - other.eigenvalues) <= spectrum.error_bounds + other.error_bounds).all()


@pytest.mark.parametrize("path", ["auto", "gram"])
def test_running_out_of_memory_is_no_end(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RowSum, rows: Tensor, signs: Tensor) -> None:
        raise MemoryError("not enough memory")

    objective = problem(5, 4)
    monkeypatch.setattr(RowSum, "add", full)
    if path == "gram":
        with refused(objective.model, "0.weight", "do not fit into memory"):
            lh.analyze(objective, blocks="weight", path=path, top=10, bottom=4, full=False)
        return
    found = lh.analyze(objective, blocks="weight", top=10, bottom=4, full=False)
    assert not on_gram(found) and found.converged


@pytest.mark.parametrize("forced", [False, True])
def test_rows_that_are_not_the_operators_leave_the_block_to_a_search(
    monkeypatch: pytest.MonkeyPatch, forced: bool
) -> None:
    objective = problem(5, 4)
    asked: dict[str, Any] = {"blocks": "weight", "top": 10, "bottom": 4, "full": False}
    expected = lh.analyze(objective, path="exact", **asked)
    monkeypatch.setattr("layerhess.linalg.eigen.gram.SAME", {True: -1.0, False: -1.0})  # no vector agrees
    taken: set[str] = set()
    real = gram.gram_processes

    def watched(*args: Any, **named: Any) -> Any:
        made = real(*args, **named)
        taken.update(made)
        return made

    monkeypatch.setattr("layerhess.analysis.run.gram_processes", watched)
    found = lh.analyze(objective, path="gram" if forced else "auto", trace=True, **asked)
    assert taken
    reference = truth(objective.model, objective.data)
    for name, spectrum in found.blocks.items():
        other = expected.blocks[name]
        assert spectrum.converged.all() and spectrum.status.startswith(("converged", "complete")), spectrum.status
        off = np.abs(spectrum.eigenvalues - other.eigenvalues)
        assert (off <= spectrum.error_bounds + other.error_bounds).all(), name
        trace, true = spectrum.trace, float(np.trace(reference.block([name])))
        assert trace is not None and abs(trace.value - true) <= 5.0 * trace.standard_error + 1e-10
        if name in taken:
            assert not spectrum.path.startswith("gram") and spectrum.steps > 4
