"""Models whose examples are tied together by the statistics of their batch: said, and refused where it must be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import layerhess as lh
from layerhess.objective.batch_norm import said_of_split, tied_norms
from references.curvature import empirical_fisher, split
from witness import refused

generator = torch.Generator().manual_seed(0)
X = torch.randn(64, 4, generator=generator)
Y = torch.arange(64) % 3
FISHERS = ("empirical_fisher", "empirical_fisher:token")


class ByHand(nn.Module):
    """A batch norm that no library module stands for."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0) + 1e-3)


class NoisyScale(nn.Module):
    """Divides by the batch's largest entry: other company, other loss, though nothing is centred."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().max()


def net(*norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), *norm, nn.Tanh(), nn.Linear(8, 3))


def untracked() -> nn.Module:
    return nn.BatchNorm1d(8, track_running_stats=False)


@pytest.mark.parametrize("operator", FISHERS)
@pytest.mark.parametrize("mode", ["as-is", "eval"])
@pytest.mark.parametrize("trained", [True, False])
def test_batch_norm_without_running_statistics_has_no_fisher_in_any_mode(
    operator: str, mode: str, trained: bool
) -> None:
    model = net(untracked()).train(trained)
    with refused(model, "without running statistics", "1", "track_running_stats=True") as caught:
        lh.analyze(lh.Objective(model, (X, Y), nn.CrossEntropyLoss(), mode=mode), operator=operator)
    assert "mode='eval'" not in str(caught.value)


@pytest.mark.parametrize("operator", FISHERS)
@pytest.mark.parametrize("norm", [ByHand, NoisyScale])
def test_a_normalisation_over_the_batch_by_hand_has_no_fisher(operator: str, norm: Callable[[], nn.Module]) -> None:
    model = net(norm())
    with refused(model, "depends on the other items of its batch", "Sequential", "another operator"):
        lh.analyze(lh.Objective(model, (X, Y), nn.CrossEntropyLoss()), operator=operator)
    with refused(model, "depends on the other items"):
        lh.trace(lh.EmpiricalFisher(lh.Objective(model, (X, Y), nn.CrossEntropyLoss())))


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.BatchNorm1d(8).eval()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_norms_have_one(norm: nn.Module, dtype: torch.dtype) -> None:
    model = net(norm).eval().to(dtype)
    objective = lh.Objective(model, (X.to(dtype), Y), nn.CrossEntropyLoss())
    found = lh.analyze(objective, operator="empirical_fisher").full

    def totals(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, float]:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum"), float(len(batch[1]))

    truth = empirical_fisher(model.double(), [(X.to(dtype).double(), Y)], totals, split).matrix
    top = torch.linalg.eigvalsh(torch.from_numpy(truth))[-1]
    assert found is not None and abs(found.eigenvalues[0] - float(top)) <= found.error_bounds[0] + 1e-5 * float(top)


@pytest.mark.parametrize("mode", ["as-is", "eval"])
def test_the_hessian_without_running_statistics_is_that_of_the_given_batches(mode: str) -> None:
    """Eight batches have another loss than one; both are said to depend on the split."""
    model = net(untracked()).eval().double()
    x = X.double()
    one = lh.analyze(lh.Objective(model, (x, Y), nn.CrossEntropyLoss(), mode=mode))
    eight = lh.analyze(
        lh.Objective(model, list(zip(x.split(8), Y.split(8), strict=True)), nn.CrossEntropyLoss(), mode=mode)
    )
    for found in (one, eight):
        assert any("without running statistics" in n and "part of the loss" in n for n in found.notes)
    assert one.full is not None and eight.full is not None
    assert eight.full.eigenvalues[0] > 1.1 * one.full.eigenvalues[0]


def test_what_would_change_the_split_is_refused_in_eval_mode_too() -> None:
    model = net(untracked()).eval()
    loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
    with refused(model, "without running statistics", "shuffles", "shuffle=False"):
        lh.Objective(model, loader, nn.CrossEntropyLoss(), mode="eval")
    with refused(model, "without running statistics", "batch_size"):
        lh.Objective(model, (X, Y), nn.CrossEntropyLoss(), mode="eval", batch_size=8)


@pytest.mark.parametrize("norm", [untracked, ByHand, NoisyScale])
@pytest.mark.parametrize("size", [64, 8])
def test_sampling_errors_come_from_whole_batches_where_a_piece_would_have_another_loss(
    norm: Callable[[], nn.Module], size: int
) -> None:
    model = net(norm()).eval()
    data = list(zip(X.split(size), Y.split(size), strict=True))
    found = lh.analyze(lh.Objective(model, data, nn.CrossEntropyLoss()), sampling=True)
    said = [note for note in found.notes if "sampling error" in note]
    if size == 64:
        assert "not measured" in said[0] and "cannot be cut" in said[0]
        assert found.counts.by_phase.get("sampling", {}).get("products", 0) == 0
    else:
        assert "8 groups" in said[0]


def test_norms_over_the_batches_of_all_ranks_are_refused() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(net(nn.BatchNorm1d(8)))
    data = [(X, Y)]
    assert said_of_split(tied_norms(model, "eval"), data, None, 2) == ""
    assert "part of the loss" in said_of_split(tied_norms(model, "as-is"), data, None, 1)
    with pytest.raises(lh.InputError, match="all ranks together") as caught:
        said_of_split(tied_norms(model, "as-is"), data, None, 2)
    assert caught.value.where == "1" and "eval" in caught.value.what_to_do
    assert "part of the loss" in said_of_split(tied_norms(net(nn.BatchNorm1d(8)), "as-is"), data, None, 2)
