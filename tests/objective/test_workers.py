"""Workers that each read a whole IterableDataset count every example several times; those that share it do not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, get_worker_info

import layerhess as lh
from layerhess.cli.user_frames import describe
from layerhess.errors import InputError
from layerhess.objective.workers import refuse_repeated_examples
from refusals import X, Y, mlp
from witness import untouched


class Rows(IterableDataset):  # type: ignore[type-arg]
    """Some rows; ``shares``: each worker takes its own; ``needs``: it does not run without workers."""

    def __init__(self, shares: bool = False, needs: bool = False) -> None:
        self.shares, self.needs = shares, needs
        self.rows = range(len(X))

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        if self.needs:
            assert info is not None
        rows = self.rows[info.id :: info.num_workers] if self.shares and info is not None else self.rows
        return ((X[i], Y[i]) for i in rows)


def shared_out(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.rows = info.dataset.rows[worker :: info.num_workers]


def lists(items: Any) -> Any:
    return {"names": ["a"] * len(items)}


@pytest.mark.parametrize("options", [{"batch_size": 4}, {"batch_size": 4, "collate_fn": lists}, {"batch_size": None}])
def test_workers_that_repeat_are_refused(options: Any) -> None:
    with pytest.raises(InputError, match="2 workers yield 24 examples of a data set that has 12") as caught:
        refuse_repeated_examples(DataLoader(Rows(), num_workers=2, **options))
    assert "num_workers=0" in caught.value.what_to_do and "Rows" in caught.value.where


def test_workers_that_share_are_not() -> None:
    for data in (
        DataLoader(Rows(shares=True), 4, num_workers=2),
        DataLoader(Rows(shares=True, needs=True), 4, num_workers=2),
        DataLoader(Rows(), 4, num_workers=2, worker_init_fn=shared_out),
        DataLoader(Rows(), 4, num_workers=1),
        DataLoader(Rows(), 4),
        DataLoader(TensorDataset(X, Y), 4, num_workers=2),
        [(X, Y)],
    ):
        refuse_repeated_examples(data)


def test_the_analysis_looks_before_it_begins() -> None:
    model = mlp()
    with untouched(model), pytest.raises(InputError, match="repeat examples"):
        lh.analyze(lh.Objective(model, DataLoader(Rows(), 4, num_workers=2), nn.CrossEntropyLoss()))
    shared = lh.analyze(lh.Objective(model, DataLoader(Rows(shares=True), 4, num_workers=2), nn.CrossEntropyLoss()))
    alone = lh.analyze(lh.Objective(model, DataLoader(Rows(), 4), nn.CrossEntropyLoss()))
    assert shared.full is not None and alone.full is not None and shared.examples == alone.examples == 12
    torch.testing.assert_close(shared.full.eigenvalues, alone.full.eigenvalues, rtol=1e-4, atol=1e-6)


def test_a_subset_looks_too() -> None:
    objective = lh.Objective(mlp(), DataLoader(Rows(), 4, num_workers=2), nn.CrossEntropyLoss())
    with pytest.raises(InputError, match="repeat examples"):
        objective.subset(5)


class Endless(Rows):
    """It begins again and again, in every process or in workers only."""

    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(super().__iter__()) if get_worker_info() or not self.shares else super().__iter__()


@pytest.mark.parametrize("in_workers_only", [False, True])
def test_a_count_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch, in_workers_only: bool) -> None:
    monkeypatch.setattr("layerhess.objective.workers.MOST", 100)
    with pytest.raises(InputError, match="more than 100 examples.*perhaps without end") as caught:
        refuse_repeated_examples(DataLoader(Endless(shares=in_workers_only), 4, num_workers=2))
    assert "Endless" in caught.value.where and "num_workers=0" in caught.value.what_to_do


class Broken(Dataset[Any]):
    """Its seventh example cannot be read."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        if index == 6:
            raise OSError("row 6 is damaged")
        return torch.ones(3), torch.ones(2)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_loader_raises_names_the_batch(workers: int) -> None:
    loader = DataLoader(Broken(), batch_size=2, num_workers=workers)
    with pytest.raises(OSError, match="row 6 is damaged") as caught:
        lh.analyze(lh.Objective(nn.Linear(3, 2), loader, nn.MSELoss()))
    said = describe(caught.value)
    assert "row 6 is damaged" in said and said.endswith("(raised while batch 3 was read)") and len(said) < 200
