"""The most curved examples as a guide: which they are, what they save, and when there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_pieces import in_batches, trained
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import layerhess as lh
from layerhess.analysis import run
from layerhess.analysis.paths import part
from layerhess.analysis.paths.exact import ROOM_FOR_GUIDES
from layerhess.analysis.paths.part import CARRIED, LEAST_CARRIED, MOST_EXAMPLES, most_curved
from layerhess.checks.survey import survey
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import DataPass

SHORT = "25MB"  # less than the factors of all examples take


def _sure(seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A trained network that is sure of most of 9,000 examples."""
    model, x, _ = trained(width=24, steps=60, seed=seed)
    with torch.no_grad():
        model[-1].weight.mul_(8.0)  # type: ignore[operator]
    return model, x, model(x).argmax(1)


def _without(monkeypatch: pytest.MonkeyPatch, analyse: Callable[[], lh.Analysis]) -> lh.Analysis:
    with monkeypatch.context() as patched:
        patched.setattr(run, "part_of", lambda *arguments: None)
        return analyse()


def _curvature(model: nn.Module, x: Tensor) -> Any:
    """The norm of the second derivative of every example's cross entropy, by NumPy."""
    z = model(x).detach().numpy()
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return np.linalg.norm(p[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * p[:, None, :], axis=(1, 2))


def test_the_examples_picked_are_the_most_curved_ones() -> None:
    model, x, y = _sure()
    objective = in_batches(model, x, y)
    with objective.session():
        surveyed = survey(objective, Counters())
        found = most_curved(objective, surveyed, 10_000)
        few = most_curved(objective, surveyed, found.examples // 2) if found is not None else None
    assert found is not None and len(found.data) == 1 and len(found.data[0][0]) == found.examples
    curvature = _curvature(model, x)
    order = np.argsort(-curvature)
    carried = np.cumsum(curvature[order]) / curvature.sum()
    assert found.carried >= CARRIED and found.examples <= MOST_EXAMPLES * len(x)
    assert abs(carried[found.examples - 1] - CARRIED) <= 0.05  # the survey looks at S r for one r
    place = {tuple(row): i for i, row in enumerate(x.numpy())}
    picked = np.array([place[tuple(row)] for row in found.data[0][0].numpy()])
    assert len(set(picked)) == found.examples and torch.equal(y[picked], found.data[0][1])
    assert curvature[picked].sum() >= 0.85 * carried[found.examples - 1] * curvature.sum()
    assert few is None or LEAST_CARRIED <= few.carried < CARRIED


def test_guided_by_a_part_an_analysis_takes_fewer_passes_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = in_batches(*_sure())

    def analyse() -> lh.Analysis:
        return lh.analyze(objective, blocks="weight", full=False, memory=SHORT)

    guided, alone = analyse(), _without(monkeypatch, analyse)
    assert guided.converged and any("say where to look" in note for note in guided.notes)
    assert not any("say where to look" in note for note in alone.notes)
    assert guided.counts.passes < alone.counts.passes and guided.counts.by_phase["part"]["products"] > 0
    assert guided.cost is not None and guided.cost.gradients["part"] > 0.0
    hessian = lh.Hessian(objective, "weight")
    for name, found in guided.blocks.items():
        truth = np.linalg.eigvalsh(hessian.block(name).to_dense().numpy())[-1]
        assert (np.abs(found.eigenvalues - truth) <= found.error_bounds).all(), name
        assert found.missed_factor <= 1.1, name


def test_a_tight_tolerance_beside_a_guide() -> None:
    objective = in_batches(*_sure(1))
    found = lh.analyze(objective, blocks="weight", tol=1e-8, full=False, memory=SHORT)
    assert found.converged and any("say where to look" in note for note in found.notes)
    hessian = lh.Hessian(objective, "weight")
    for name, spectrum in found.blocks.items():
        truth = np.linalg.eigvalsh(hessian.block(name).to_dense().numpy())[-1]
        assert (np.abs(spectrum.eigenvalues - truth) <= spectrum.error_bounds + 1e-14).all(), name


class _Shuffled:
    """Batches in another order at every pass."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.passes = x, y, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.passes))
        return iter(list(zip(self.x[order].split(1500), self.y[order].split(1500), strict=True)))


@pytest.mark.parametrize("kind", ["loader", "iterable"])
def test_examples_that_cannot_be_found_again_guide_nobody(kind: str) -> None:
    model, x, y = _sure()
    data = DataLoader(TensorDataset(x, y), batch_size=1500, shuffle=True) if kind == "loader" else _Shuffled(x, y)
    found = lh.analyze(lh.Objective(model, data, nn.CrossEntropyLoss()), blocks="weight", full=False, memory=SHORT)
    assert found.converged and not any("say where to look" in note for note in found.notes)


def test_outputs_that_are_all_about_as_curved_guide_nobody() -> None:
    model, x, y = _sure()
    with torch.no_grad():
        model[-1].weight.mul_(0.01)  # type: ignore[operator]
    found = lh.analyze(in_batches(model, x, y), blocks="weight", full=False, memory=SHORT)
    assert found.converged and "part" not in found.counts.by_phase


class _OfFullBatches(nn.Module):
    """Works on 1,500 examples and on few, as a model that was exported for one batch size and for tests does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if 32 < len(x) < 100 or 100 < len(x) < 1500:
            raise RuntimeError(f"no kernel for {len(x)} examples")
        return torch.as_tensor(self.inner(x))


def test_a_model_that_does_not_run_on_the_part_is_analysed_without_one() -> None:
    model, x, y = _sure()
    wrapped = _OfFullBatches(model)
    found = lh.analyze(in_batches(wrapped, x, y), blocks="weight", full=False, memory="100MB")
    assert found.converged
    assert not any("cut into pieces" in note for note in found.notes) and not any(
        "say where to look" in note for note in found.notes
    )
    assert "part" in found.seconds  # it was tried
    plain = lh.analyze(in_batches(model, x, y), blocks="weight", full=False, memory="100MB")
    for name, spectrum in plain.blocks.items():
        np.testing.assert_allclose(found.blocks[f"inner.{name}"].eigenvalues, spectrum.eigenvalues, rtol=2e-3)


def test_the_model_comes_back_as_it_was_when_the_user_stops_it_inside_the_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x, y = _sure()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def stop(self: Any, *arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(part.Part, "guide", stop)
    with pytest.raises(KeyboardInterrupt):
        lh.analyze(in_batches(model, x, y), blocks="weight", full=False, memory=SHORT)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("wanted", [{"top": 2}, {"bottom": 1, "tol": 1e-2}], ids=["two", "both ends"])
def test_more_than_the_largest_eigenvalue_is_searched_without_a_guide(wanted: dict[str, Any]) -> None:
    found = lh.analyze(in_batches(*_sure()), blocks="weight", full=False, memory=SHORT, **wanted)
    assert found.converged and "part" not in found.seconds


def test_a_basis_that_restarts_at_once_has_no_room_for_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "basis_limit", lambda *arguments: ROOM_FOR_GUIDES - 1)
    found = lh.analyze(in_batches(*_sure()), blocks="weight", full=False, memory=SHORT)
    assert found.converged and "part" not in found.seconds


@pytest.mark.parametrize("fails_at", [1, 10, 25])
def test_a_part_that_fails_on_the_way_is_done_without(fails_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = in_batches(*_sure())
    asked = 0
    original = DataPass.run

    def failing(self: DataPass, *arguments: Any) -> Any:
        nonlocal asked
        if self.counters.phase == "part":
            asked += 1
            if asked >= fails_at:
                raise MemoryError("as if another program had taken it")
        return original(self, *arguments)

    plain = lh.analyze(objective, blocks="weight", full=False, memory=SHORT)
    monkeypatch.setattr(DataPass, "run", failing)
    found = lh.analyze(objective, blocks="weight", full=False, memory=SHORT)
    assert asked == fails_at and found.converged
    assert fails_at > 1 or not any("say where to look" in note for note in found.notes)
    for name, spectrum in plain.blocks.items():
        np.testing.assert_allclose(found.blocks[name].eigenvalues, spectrum.eigenvalues, rtol=2e-3)
