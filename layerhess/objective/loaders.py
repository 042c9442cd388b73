"""Loaders of launchers: their shells come off, and a rank's share has every example once.

DistributedSampler, accelerate, Lightning Fabric and Ray Train fill the shares up to equal sizes with examples that come
twice. Training does not mind; a sum over all the data does.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from layerhess.errors import InputError

_SHELLS = ("base_dataloader", "_dataloader")  # accelerate; Lightning Fabric and Ray Train


def share_of(data: Any, ranks: int, copies: int = 1) -> Any:
    """The data without its launcher's shell; of a loader's share of a data set, without repeated examples.

    The loader itself is not changed: it is copied where it would repeat examples, and then yields them in the data
    set's order, in which all ranks agree without asking each other.

    Args:
        ranks: the number of processes. copies: how many of them may have the same share.

    Raises:
        InputError: a loader of one share of several without a rank for each, or whose shares could repeat or miss
            examples; it is named.
    """
    data = _without_shell(data, ranks)
    if ranks > 1 and type(data).__module__.startswith("ray.data"):
        raise InputError(
            "Ray Data hands its blocks out anew in every pass, so that a rank may be given another's examples",
            where=f"the data, {type(data).__name__}",
            what_to_do="pass list(shard.iter_torch_batches(...)), which reads this rank's share once",
        )
    if not isinstance(data, DataLoader):
        return data
    _refuse_skipped(data.batch_sampler)
    _refuse_other_shares(data, ranks, copies)
    if _is_accelerates(data.dataset, "IterableDatasetShard"):
        return _with(data, dataset=_Unfilled(data.dataset))
    for name in ("batch_sampler", "sampler"):
        sampler = getattr(data, name)
        if _is_accelerates(sampler, "BatchSamplerShard"):
            return _with(data, **{name: _unfilled_batches(sampler, data.dataset)})
    inner = getattr(data.batch_sampler, "sampler", None)
    if isinstance(data.batch_sampler, BatchSampler) and isinstance(inner, DistributedSampler):
        batch_sampler = copy.copy(data.batch_sampler)
        batch_sampler.sampler = _unfilled(inner)
        return _with(data, batch_sampler=batch_sampler, sampler=batch_sampler.sampler)
    if isinstance(data.sampler, DistributedSampler):
        return _with(data, sampler=_unfilled(data.sampler))
    return data


def order_of(loader: DataLoader[Any]) -> Any:
    """The sampler that determines the order of a loader's examples; None where that is not known."""
    place: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    while isinstance(place, BatchSampler):
        place = getattr(place, "batch_sampler", None) or place.sampler
    return place


def left_out(data: Any, seen: int, ranks: int) -> str:
    """A sentence on the examples that drop_last leaves out; "" where there are none, or their number is not known.

    Args:
        seen: examples in all ranks' batches.
    """
    if not isinstance(data, DataLoader) or not seen:
        return ""
    inner: Any = getattr(data.batch_sampler, "sampler", data.sampler)
    if not any(getattr(part, "drop_last", False) is True for part in (data.batch_sampler, data.sampler, inner)):
        return ""
    shared = isinstance(inner, DistributedSampler)
    source = inner.dataset if shared else inner
    if not isinstance(source, Sized) or (ranks > 1 and not shared):
        return ""
    missing = len(source) - seen
    return (
        f"data: {missing} of {len(source)} examples are left out (the loader's drop_last=True)" if missing > 0 else ""
    )


def _refuse_other_shares(loader: DataLoader[Any], ranks: int, copies: int) -> None:
    for part in (loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None), loader.dataset):
        shares = getattr(part, "num_replicas", getattr(part, "num_processes", 1))  # the latter of accelerate
        if isinstance(shares, int) and shares > 1 and shares not in (ranks, ranks // copies):
            raise InputError(
                f"the loader yields one of {shares} shares of the data set, which is not the whole",
                where=f"its {type(part).__name__}",
                what_to_do="use a loader without that sampler"
                if ranks == 1
                else f"there are {ranks} processes: make {ranks // copies} shares",
            )


def _without_shell(data: Any, ranks: int) -> Any:
    while (name := next((n for n in _SHELLS if isinstance(_vars_of(data).get(n), DataLoader)), None)) is not None:
        if ranks > 1 and type(data).__name__ == "DataLoaderDispatcher":
            raise InputError(
                "rank 0 reads the data for all ranks, and fills the last batch up with examples that come twice",
                where="its DataLoaderDispatcher",
                what_to_do="use accelerate's DataLoaderConfiguration(dispatch_batches=False, even_batches=False)",
            )
        _refuse_skipped(data)
        data = _vars_of(data)[name]
    return data


def _refuse_skipped(part: Any) -> None:
    if skipped := _vars_of(part).get("skip_batches"):
        raise InputError(
            f"the loader skips its first {skipped} batches",
            where=f"its {type(part).__name__}",
            what_to_do="give the loader as it was before accelerate's skip_first_batches",
        )


def _vars_of(value: Any) -> dict[str, Any]:
    return getattr(value, "__dict__", {})


def _is_accelerates(value: Any, name: str) -> bool:
    return any(kind.__name__ == name and kind.__module__.startswith("accelerate.") for kind in type(value).__mro__)


def _with(loader: DataLoader[Any], **changed: Any) -> DataLoader[Any]:
    """A copy of a loader with other parts; torch allows no such change by assignment."""
    made = copy.copy(loader)
    made.__dict__.update(changed, _iterator=None)
    return made


def _unfilled(sampler: DistributedSampler[Any]) -> DistributedSampler[Any]:
    """The sampler's share without what fills it up."""
    if sampler.drop_last or not isinstance(sampler.dataset, Sized):
        return sampler
    made, size = copy.copy(sampler), len(sampler.dataset)
    made.total_size, made.num_samples = size, len(range(sampler.rank, size, sampler.num_replicas))
    if type(sampler).__iter__ is DistributedSampler.__iter__:
        made.shuffle = False
        return made
    with_own_order = list(made)  # of a subclass, such as Fabric's around a sampler of the user's
    if len(with_own_order) != made.num_samples:
        raise InputError(
            f"the sampler gives this rank {len(with_own_order)} of {size} examples, where its share is "
            f"{made.num_samples}",
            where=f"its {type(sampler).__name__}",
            what_to_do="use torch's DistributedSampler, or Subset(dataset, range(rank, len(dataset), ranks))",
        )
    return made


def _unfilled_batches(sampler: Any, dataset: Any) -> Any:
    """Accelerate's share of the batches without what makes it even, in the data set's order."""
    made = copy.copy(sampler)
    made.even_batches = False
    order = order_of(DataLoader(dataset, batch_sampler=sampler))
    if not isinstance(order, RandomSampler):
        return made
    whole = sampler.batch_sampler
    if order.replacement or order.num_samples != len(dataset) or whole.drop_last or type(whole) is not BatchSampler:
        raise InputError(
            "the loader draws another order of the examples in every pass, and not all of them are in it",
            where=f"its {type(order).__name__}",
            what_to_do="use shuffle=False, or drop_last=False, in the loader that is prepared",
        )
    made.batch_sampler = BatchSampler(SequentialSampler(dataset), whole.batch_size, drop_last=False)
    return made


class _Unfilled(IterableDataset[Any]):
    """What accelerate's IterableDatasetShard yields, but for the examples from the beginning that fill up the end."""

    def __init__(self, shard: Any) -> None:
        self._shard = shard

    def __iter__(self) -> Iterator[Any]:
        shard = self._shard
        generator = getattr(shard.dataset, "generator", None)
        if isinstance(generator, torch.Generator) and not hasattr(shard.dataset, "set_epoch"):
            generator.manual_seed(shard.epoch)  # as there: all ranks in one order
        whole = shard.batch_size if shard.split_batches else shard.batch_size * shard.num_processes
        own = whole // shard.num_processes
        examples = iter(shard.dataset)
        while part := list(itertools.islice(examples, whole)):
            if len(part) == whole or not shard.drop_last:
                yield from part[own * shard.process_index : own * (shard.process_index + 1)]
