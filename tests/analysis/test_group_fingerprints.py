"""The fingerprint of groups: equal where two results have the same examples in the same groups, and only there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import layerhess as lh
from grouped_batches import grouped_problem, whole_batches
from layerhess.analysis import example_groups

MODEL = grouped_problem()[0]
BATCHES: list[tuple[Tensor, Tensor]] = grouped_problem()[1]


def fingerprint(data: Any) -> str:
    analysis = lh.analyze(lh.Objective(MODEL, data, nn.CrossEntropyLoss()), "weight", full=False, sampling=True)
    assert analysis.groups is not None and analysis.groups.counts.sum() == analysis.loss_count
    assert len(analysis.groups.counts) == analysis.blocks["0.weight"].sampling_sums.shape[1]
    return analysis.groups.fingerprint


def joined(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_dealt_examples_have_one_however_batches_hold_them() -> None:
    whole = joined(BATCHES)
    known = fingerprint(whole)
    assert fingerprint(BATCHES) == known == fingerprint(BATCHES[::-1])
    one = whole[0].clone()
    one[0, 0] += 1.0
    target = whole[1].clone()
    target[0] = (target[0] + 1) % 3
    others = [fingerprint((one, whole[1])), fingerprint((whole[0], target)), fingerprint(BATCHES[:17])]
    assert len({known, *others}) == 4


def test_whole_batches_have_one_that_sees_their_order_and_not_that_within() -> None:
    turned = [(x.flip(0), y.flip(0)) for x, y in BATCHES]
    with whole_batches():
        known = fingerprint(BATCHES)
        assert fingerprint(turned) == known
        others = [fingerprint(BATCHES[::-1]), fingerprint([joined(BATCHES[:2]), *BATCHES[2:]])]
        moved = [(x + 1.0, y) if place == 17 else (x, y) for place, (x, y) in enumerate(BATCHES)]
        others.append(fingerprint(moved))
    assert len({known, fingerprint(BATCHES), *others}) == 5, "dealt examples are other groups"


def test_shuffled_batches_are_never_taken_for_the_same_groups() -> None:
    x, y = joined(BATCHES)
    with whole_batches():
        found = [
            fingerprint(DataLoader(TensorDataset(x, y), 9, shuffle=True, generator=torch.Generator().manual_seed(seed)))
            for seed in range(2)
        ]
    assert found[0] != found[1]


def own_loss(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
    rows = batch["x"].unbind() if batch["x"].is_nested else [batch["x"].to_dense()]
    return sum((model(row).square().mean() for row in rows), torch.zeros(())), float(len(rows))


def of_batches(made: Any) -> str:
    """Six batches that cannot be cut, with a label that is no tensor."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    data = [{"x": made(torch.randn(2 + i, 3), torch.randn(4, 3)), "source": f"file {i}"} for i in range(6)]
    analysis = lh.analyze(lh.Objective(model, data, lh.batch_loss(own_loss)), "weight", full=False, sampling=True)
    assert analysis.groups is not None and len(analysis.groups.counts) == 6
    return analysis.groups.fingerprint


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_batches_have_one_too(layout: torch.layout) -> None:
    def nested(a: Tensor, b: Tensor) -> Tensor:
        return torch.nested.nested_tensor([a, b], layout=layout)

    known = of_batches(nested)
    assert known and of_batches(nested) == known
    assert of_batches(lambda a, b: nested(a, b + 1.0)) != known


def test_batches_that_cannot_be_read_are_never_taken_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(tensor: Tensor) -> bytes:
        raise RuntimeError("no storage")

    monkeypatch.setattr(example_groups, "bytes_of", unreadable)
    with whole_batches():
        assert of_batches(lambda a, b: torch.nested.nested_tensor([a, b])) == ""
