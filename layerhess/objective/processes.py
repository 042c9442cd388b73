"""Refuses to analyse a share of the data as if it were the whole: one process of several, or one sampler of several."""

from __future__ import annotations

from typing import Any

import torch.distributed
from torch.utils.data import DataLoader

from layerhess.errors import InputError

ALONE = "run the analysis in one process, without a process group, on all the data"


def refuse_several_processes() -> None:
    """Refuse to go on in one of several processes: each would return its own share's answer as the whole.

    Raises:
        InputError: a process group of more than one rank is initialised.
    """
    group = torch.distributed
    if group.is_available() and group.is_initialized() and (ranks := group.get_world_size()) > 1:
        raise InputError(
            f"this is one of {ranks} processes (torch.distributed), and each would take its own share of the data for "
            "the whole; several processes are not supported yet",
            where=f"rank {group.get_rank()} of {ranks}",
            what_to_do=ALONE + " (python instead of torchrun, or after destroy_process_group())",
        )


def refuse_share(data: Any) -> None:
    """Refuse a loader whose sampler draws one of several shares of the data set.

    Raises:
        InputError: naming the sampler.
    """
    if not isinstance(data, DataLoader):
        return
    for sampler in (data.sampler, data.batch_sampler, getattr(data.batch_sampler, "sampler", None)):
        shares = getattr(sampler, "num_replicas", getattr(sampler, "num_processes", 1))  # the latter of accelerate
        if isinstance(shares, int) and shares > 1:
            raise InputError(
                f"the loader yields one of {shares} shares of the data set, which is not the whole",
                where=f"its {type(sampler).__name__}",
                what_to_do="use a loader without that sampler",
            )
