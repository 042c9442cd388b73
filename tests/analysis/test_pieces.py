"""``memory=`` binds the survey, the self-check and rounding: how many examples they take at a time, and no copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from layerhess.analysis.pieces import sample_within
from layerhess.checks.rounding import COPIED, COPY_SHARE, set_aside
from layerhess.checks.survey import survey
from layerhess.curvature.counters import Counters
from layerhess.curvature.device import PIECE_SHARE, Budget
from layerhess.curvature.live_bytes import LiveBytes
from witness import untouched

CE = nn.CrossEntropyLoss()
WIDE, MEMORY = 400, 2_000_000
ROW = 8 * WIDE  # bytes of an example's activation


SEEN: set[int] = set()  # how many examples a model was given at a time


class Watched(nn.Sequential):
    def forward(self, x: Tensor) -> Any:
        SEEN.add(len(x))
        return super().forward(x)


def network(*more: nn.Module) -> Watched:
    SEEN.clear()
    torch.manual_seed(0)
    return Watched(nn.Linear(4, WIDE), nn.Tanh(), *more, nn.Linear(WIDE, 2)).double()


def examples(number: int) -> tuple[Tensor, Tensor]:
    return torch.randn(number, 4, generator=torch.Generator().manual_seed(1)).double(), torch.arange(number) % 2


def analyze(model: nn.Module, data: Any, loss: Any = CE, **options: Any) -> lh.Analysis:
    return lh.analyze(lh.Objective(model, data, loss), blocks={"last": "2.*"}, full=False, path="exact", **options)


def test_a_survey_takes_no_more_examples_than_the_budget_allows() -> None:
    model, data = network(), [examples(10), examples(490)]
    free = analyze(model, data)
    assert max(SEEN) == 500, "both batches together"
    model = network()
    with untouched(model):
        bound = analyze(model, data, memory=MEMORY)
    most = max(SEEN)
    assert any(f"pieces of {most} examples, of which a forward pass" in note for note in bound.notes)
    with LiveBytes(known=model.parameters()) as live, torch.no_grad():
        CE(model(examples(most)[0]), examples(most)[1])
    assert 0.7 * PIECE_SHARE * MEMORY <= live.peak <= PIECE_SHARE * MEMORY
    assert bound.examples == 500 and bound.loss == pytest.approx(free.loss, rel=1e-12)
    assert bound.blocks["last"].eigenvalues == pytest.approx(free.blocks["last"].eigenvalues, rel=1e-9)


def test_the_sample_is_cut_where_its_graph_does_not_fit() -> None:
    model, data, memory = network(), [examples(256), examples(300)], MEMORY // 2
    objective = lh.Objective(model, data, CE)
    with objective.session():
        surveyed = survey(objective, Counters())
        cut = sample_within(objective, surveyed, Budget(1 << 40, memory))
        assert sample_within(objective, surveyed, Budget(1 << 40)) is surveyed
        assert sample_within(objective, surveyed, Budget(1 << 40, 100 * memory)) is surveyed
    most = len(cut.sample[0])
    assert 4.0 * most * ROW <= PIECE_SHARE * memory <= 4.0 * 1.3 * (most + 1) * ROW
    assert len(surveyed.sample[0]) == 16 and cut.sample_size == surveyed.sample_size == 32
    free, bound = analyze(model, data), analyze(model, data, memory=memory)
    assert {check.name for check in bound.checks} == {check.name for check in free.checks}
    assert all(check.passed for check in bound.checks) and bound.converged
    assert bound.blocks["last"].eigenvalues == pytest.approx(free.blocks["last"].eigenvalues, rel=1e-9)


@pytest.mark.parametrize("kind", ["norm", "whole"])
def test_batches_that_must_not_be_cut_stay_whole(kind: str) -> None:
    def contrast(model: nn.Module, batch: Any) -> Any:
        output = model(batch[0])
        return (output.softmax(1) @ output.softmax(1).T).logsumexp(1).sum(), len(batch[0])

    model = network(nn.BatchNorm1d(WIDE)) if kind == "norm" else network()
    loss = CE if kind == "norm" else lh.batch_loss(contrast)
    free, bound = (analyze(model, examples(500), loss, **{"memory": m} if m else {}) for m in (None, MEMORY))
    assert bound.loss == pytest.approx(free.loss, rel=1e-12) and bound.batches == 1
    assert bound.blocks["last"].eigenvalues == pytest.approx(free.blocks["last"].eigenvalues, rel=1e-9)


def test_a_float64_copy_that_is_not_in_the_budget_is_not_made() -> None:
    model = nn.Sequential(nn.Linear(100, 300), nn.Tanh(), nn.Linear(300, 2))
    numel = sum(parameter.numel() for parameter in model.parameters())
    data = torch.randn(16, 100), torch.arange(16) % 2
    sources = {}
    for memory in (5 * COPIED * numel, 2 * COPIED * numel):
        found = analyze(model, data, memory=memory)
        sources[memory] = found.blocks["last"].rounding_source
        assert any("MiB' would do" in note for note in found.notes) == (memory < 3 * COPIED * numel)
    assert list(sources.values()) == ["measured", "assumed"]


def test_graphs_leave_what_rounding_takes() -> None:
    assert set_aside(10**6, Budget(1 << 40, 10**9)) == 0.0
    assert set_aside(10**7, Budget(1 << 40, 10**9)) == pytest.approx(COPIED * 10**7 - COPY_SHARE * 10**9)
    assert set_aside(10**9, Budget(1 << 40, 10**9)) == 0.0  # no copy is made
    assert set_aside(10**9, Budget(1 << 40, 10**9, asked=False)) == 0.0
