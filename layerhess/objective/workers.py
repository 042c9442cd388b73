"""Checks that the workers of a loader share a data set, and do not each repeat all of it."""

from __future__ import annotations

import itertools
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from layerhess.errors import InputError

MOST = 1 << 18  # examples that are counted


def refuse_repeated_examples(data: Any) -> None:
    """Count the examples that a loader's workers yield together, and those that the data set yields alone.

    Only an ``IterableDataset`` can repeat: each worker has a copy of it, and reads all of that unless the data set or
    ``worker_init_fn`` shares it out. Nothing is collated or sent.

    Raises:
        InputError: the workers yield more; or there is no end of them.
    """
    if not isinstance(data, DataLoader) or not isinstance(data.dataset, IterableDataset) or data.num_workers < 2:
        return
    try:
        alone = _length(data.dataset)
    except Exception:  # user code that knows of workers, and does not run without them
        return
    together = 0
    if alone <= MOST:
        together = _length(
            DataLoader(
                data.dataset,
                batch_size=None,
                num_workers=data.num_workers,
                worker_init_fn=data.worker_init_fn,
                multiprocessing_context=data.multiprocessing_context,
                collate_fn=_nothing,
            )
        )
    if max(alone, together) > MOST:
        raise InputError(
            f"the data set yields more than {MOST:,} examples, too many to count whether the loader's "
            f"{data.num_workers} workers repeat them, and perhaps without end",
            where=f"{type(data.dataset).__name__} (an IterableDataset)",
            what_to_do="let it end, for example with itertools.islice in __iter__; if it does, use num_workers=0, or a "
            "part of it",
        )
    if together > alone:
        raise InputError(
            f"the loader's {data.num_workers} workers yield {together} examples of a data set that has {alone}: they "
            "repeat examples",
            where=f"{type(data.dataset).__name__} (an IterableDataset)",
            what_to_do="use num_workers=0, or share the examples out by torch.utils.data.get_worker_info() in __iter__",
        )


def _length(examples: Any) -> int:
    return sum(1 for _ in itertools.islice(examples, MOST + 1))


def _nothing(example: Any) -> int:
    return 0
