"""Loaders of launchers: in all ranks together every example comes once, whatever fills their shares up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

import layerhess as lh
from layerhess.errors import InputError
from layerhess.objective.batches import is_shuffling, is_stable
from layerhess.objective.loaders import left_out, share_of

COUNT = 13
DATA = TensorDataset(torch.arange(COUNT))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(torch.arange(COUNT))


def seen(loaders: list[Any]) -> list[int]:
    batches = [batch for loader in loaders for batch in loader]
    examples = [torch.as_tensor(batch[0] if isinstance(batch, (list, tuple)) else batch) for batch in batches]
    return sorted(int(number) for part in examples for number in part.reshape(-1))


def assert_once(make: Callable[[int, int], Any], ranks: int) -> None:
    loaders = [make(rank, ranks) for rank in range(ranks)]
    shares = [share_of(loader, ranks) for loader in loaders]
    for _ in range(2):  # passes
        assert seen(shares) == list(range(COUNT))
    padded = len(seen(loaders))
    assert padded > COUNT and padded == len(seen(loaders)), "the loader itself is as it was"


def distributed(rank: int, ranks: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(DATA, 4, sampler=DistributedSampler(DATA, ranks, rank, **options))


def one_by_one(rank: int, ranks: int) -> DataLoader[Any]:
    return DataLoader(DATA, batch_size=None, sampler=DistributedSampler(DATA, ranks, rank, seed=rank))


def batch_sampler(rank: int, ranks: int) -> DataLoader[Any]:
    return DataLoader(DATA, batch_sampler=BatchSampler(DistributedSampler(DATA, ranks, rank), 4, False))


def workers(rank: int, ranks: int) -> DataLoader[Any]:
    return DataLoader(DATA, 4, sampler=DistributedSampler(DATA, ranks, rank), num_workers=1, persistent_workers=True)


def accelerated(loader: DataLoader[Any], rank: int, ranks: int, **options: Any) -> Any:
    made = pytest.importorskip("accelerate.data_loader", reason="accelerate is not installed")
    return made.prepare_data_loader(loader, num_processes=ranks, process_index=rank, **options)


def accelerate(rank: int, ranks: int) -> Any:
    return accelerated(DataLoader(DATA, 4), rank, ranks)


def accelerate_split(rank: int, ranks: int) -> Any:
    return accelerated(DataLoader(DATA, 6), rank, ranks, split_batches=True)


def accelerate_shuffled(rank: int, ranks: int) -> Any:
    return accelerated(DataLoader(DATA, 4, shuffle=True), rank, ranks)


def accelerate_seeded(rank: int, ranks: int) -> Any:
    return accelerated(DataLoader(DATA, 4, shuffle=True), rank, ranks, use_seedable_sampler=True, data_seed=rank)


def accelerate_own_batches(rank: int, ranks: int) -> Any:
    return accelerated(DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 4, False)), rank, ranks)


def accelerate_stream(rank: int, ranks: int) -> Any:
    return accelerated(DataLoader(Stream(), 4), rank, ranks, dispatch_batches=False)


MAKERS = [
    distributed, one_by_one, batch_sampler, workers, accelerate, accelerate_split,
    accelerate_shuffled, accelerate_seeded, accelerate_own_batches, accelerate_stream,
]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
def test_every_example_comes_once(make: Callable[[int, int], Any]) -> None:
    assert_once(make, 2)
    if make not in (workers, accelerate_split):
        assert_once(make, 3)


def test_shares_that_drop_examples_are_left_as_they_are() -> None:
    assert len(seen([share_of(distributed(rank, 2, drop_last=True), 2) for rank in (0, 1)])) == 12
    even = [share_of(accelerated(DataLoader(DATA, 4, drop_last=True), rank, 2), 2) for rank in (0, 1)]
    assert seen(even) == list(range(8))


def test_examples_that_a_loader_drops_are_told() -> None:
    def told(loader: Any, seen: int, ranks: int = 1) -> str:
        return left_out(loader, seen, ranks)

    drops = DataLoader(DATA, 4, drop_last=True)
    assert told(drops, 12) == "data: 1 of 13 examples are left out (the loader's drop_last=True)"
    assert told(distributed(0, 2, drop_last=True), 12, 2).startswith("data: 1 of 13 examples")
    chosen = DataLoader(DATA, 4, sampler=SubsetRandomSampler(range(8)), drop_last=True)
    assert not told(chosen, 8), "what the sampler leaves out was left out on purpose"
    assert not told(DataLoader(DATA, 4), 13) and not told([DATA], 3) and not told(drops, 0)
    model = nn.Linear(1, 1)
    data = TensorDataset(torch.arange(13.0)[:, None], torch.arange(13.0)[:, None])
    found = lh.analyze(lh.Objective(model, DataLoader(data, 4, drop_last=True), nn.MSELoss()))
    assert any("1 of 13 examples are left out" in note for note in found.notes)


def test_shares_without_a_rank_for_each_are_refused() -> None:
    with pytest.raises(InputError, match="one of 3 shares") as caught:
        share_of(distributed(0, 3), 1)
    assert caught.value.where == "its DistributedSampler" and "without that sampler" in caught.value.what_to_do
    with pytest.raises(InputError, match="one of 3 shares") as caught:
        share_of(distributed(0, 3), 4)
    assert "make 4 shares" in caught.value.what_to_do
    with pytest.raises(InputError, match="one of 3 shares"):
        share_of(accelerated(DataLoader(Stream(), 4), 0, 3, dispatch_batches=False), 2)
    assert len(seen([share_of(distributed(rank, 2), 4, copies=2) for rank in (0, 1)])) == COUNT


def test_what_ranks_cannot_agree_on_is_refused() -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from accelerate.data_loader import skip_first_batches

    shuffled = accelerated(DataLoader(DATA, 4, shuffle=True, drop_last=True), 0, 2)
    with pytest.raises(InputError, match="another order") as caught:
        share_of(shuffled, 2)
    assert caught.value.where == "its RandomSampler"
    dispatched = accelerated(DataLoader(Stream(), 4), 0, 2, dispatch_batches=True, put_on_device=True)
    with pytest.raises(InputError, match="rank 0 reads") as caught:
        share_of(dispatched, 2)
    assert "dispatch_batches=False" in caught.value.what_to_do
    with pytest.raises(InputError, match="skips its first 1 batches"):
        share_of(skip_first_batches(accelerated(DataLoader(DATA, 4), 0, 1), 1), 1)


def test_a_sampler_that_pads_in_its_own_way_is_refused() -> None:
    class Even(DistributedSampler[Any]):
        def __iter__(self) -> Iterator[int]:
            return iter([0, 1, 2, 3, 4, 5, 6])

    with pytest.raises(InputError, match="gives this rank 7 of 13") as caught:
        share_of(DataLoader(DATA, 4, sampler=Even(DATA, 2, 1)), 2)
    assert caught.value.where == "its Even"


class _WrappedDataLoader(DataLoader[Any]):
    """As Ray Train's (2.x): its own iterator, which starts afresh with every iter()."""

    def __init__(self, base: DataLoader[Any]) -> None:
        self.__dict__.update(base.__dict__)
        self._dataloader = base

    def __iter__(self) -> Any:
        self.dataloader_iter = iter(self._dataloader)
        return self

    def __next__(self) -> Any:
        return next(self.dataloader_iter)


def test_ray_trains_loader_is_no_iterator() -> None:
    assert_once(lambda rank, ranks: _WrappedDataLoader(distributed(rank, ranks)), 2)


def test_ray_datas_batches_are_refused_where_ranks_share_them() -> None:
    batches = type(
        "_IterableFromIterator", (), {"__module__": "ray.data.iterator", "__iter__": lambda self: iter([])}
    )()
    assert share_of(batches, 1) is batches
    with pytest.raises(InputError, match="Ray Data") as caught:
        share_of(batches, 2)
    assert "list(" in caught.value.what_to_do


def test_whether_batches_stay_the_same_is_seen_inside_batch_samplers() -> None:
    assert is_stable(DataLoader(DATA, 4)) and is_stable(share_of(distributed(0, 2), 2))
    random = DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 4, False))
    assert is_shuffling(random) and not is_stable(random)
    fixed = DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 4, False))
    assert is_stable(fixed) and not is_shuffling(fixed)
