"""Which examples stand for the data where rounding is measured."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from layerhess.checks.sample import MOST_BATCHES, WHOLE, Sample, Sampler, WholeData, by_example
from layerhess.curvature.factors.output_hessian import item_curvature
from layerhess.objective.losses import Seen


def sampled(data: list[tuple[Tensor, Tensor]], model: nn.Module, loss: object) -> Sample:
    objective = lh.Objective(model, data, loss)
    with objective.session(), torch.no_grad():
        sampler = Sampler(objective)
        own: list[Tensor | None] = []
        items: list[int] = []
        for index, batch in enumerate(data):
            seen = objective.evaluation.surveyed(objective.model, batch, "")
            known = None if seen.again is None else item_curvature(seen.output, seen.again)
            own.append(by_example(batch, known))
            items.append(0 if known is None else len(known))
            sampler.offer(index, batch, float(seen.loss), seen.count, own[-1])
        examples = sum(len(x) for x, _ in data)
        total = sum(float(part.sum()) for part in own if part is not None)
        pieces = [piece for _, piece in sampler.chosen(examples)]
        return sampler.measured(pieces, examples, total / examples, total / max(1, sum(items)))


def test_the_undecided_examples_are_measured() -> None:
    margins = torch.full((5, 40), 30.0)
    margins[1, 17] = margins[3, 33] = 0.5
    z = torch.stack([margins, torch.zeros_like(margins)], dim=2)
    data = [(part, torch.zeros(40, dtype=torch.long)) for part in z]
    sample = sampled(data, _Identity(), nn.CrossEntropyLoss())
    (piece,) = sample.pieces
    assert int((piece[0][:, 0] == 0.5).sum()) >= 2 and len(piece[0]) <= 32
    assert sample.excess == pytest.approx(200 / len(piece[0]), rel=1e-6)


def test_all_of_little_data_is_measured_and_nothing_of_it_is_kept_of_more() -> None:
    parts = [((torch.ones(4, 8), torch.zeros(4, 8)), Seen(torch.zeros(()), 4.0)) for _ in range(3)]
    made = lh.Objective(nn.Linear(8, 8), parts[0][0], nn.MSELoss())
    for parameters, whole in ((WHOLE // 192, True), (WHOLE // 192 + 1, False)):
        data = WholeData(parameters)
        assert data.sample(made) is None
        for batch, seen in parts:
            data.offer(batch, seen)
        found = data.sample(made)
        assert (found is not None) is whole
        if found is not None:
            assert found.whole and found.excess == 1.0 and found.curvature == 0.0
            assert [piece is batch for piece, (batch, _) in zip(found.pieces, parts, strict=True)] == [True] * 3
            assert [one is seen for one, (_, seen) in zip(found.seen, parts, strict=True)] == [True] * 3


def test_of_many_small_batches_none_is_kept() -> None:
    data = WholeData(10)
    made = lh.Objective(nn.Linear(2, 1), (torch.ones(1, 2), torch.zeros(1, 1)), nn.MSELoss())
    for number in range(MOST_BATCHES + 2):
        data.offer((torch.ones(1, 2), torch.zeros(1)), Seen(torch.zeros(()), 1.0))
        if number == MOST_BATCHES - 1:
            found = data.sample(made)
            assert found is not None and len(found.pieces) == MOST_BATCHES
    assert data.sample(made) is None


class _Identity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


def test_alike_examples_are_measured_as_they_were() -> None:
    data = [(torch.randn(50, 3), torch.randn(50, 3)) for _ in range(3)]
    sample = sampled(data, _Identity(), nn.MSELoss())
    assert (sample.excess, sample.curvature, len(sample.pieces)) == (1.0, 0.0, 2)


def test_a_loss_of_the_model_alone_is_measured_on_a_spread() -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

    data = [(50.0 * torch.randn(50, 3), torch.zeros(50, dtype=torch.long))]
    assert sampled(data, _Identity(), lh.batch_loss(loss)).curvature == 0.0
    known = lh.batch_loss(
        lambda z, batch: (F.cross_entropy(z, batch[1], reduction="sum"), 50), output=lambda m, b: m(b[0])
    )
    assert sampled(data, _Identity(), known).curvature > 0.0
