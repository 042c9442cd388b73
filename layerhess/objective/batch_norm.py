"""Finds BatchNorm modules that normalise by the current batch, so that an example's loss depends on the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from layerhess.errors import InputError
from layerhess.objective.batches import is_shuffling


@dataclass(frozen=True)
class TiedNorms:
    """The BatchNorm modules of a model that use the statistics of the batch; true if there are any.

    Attributes:
        training: names of those that do so because they run in train mode.
        untracked: names of those that keep no running statistics, and so use the batch's in eval mode too.
        synchronised: names of those that use the statistics of the batches of all ranks (SyncBatchNorm in train mode).
    """

    training: tuple[str, ...] = ()
    untracked: tuple[str, ...] = ()
    synchronised: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.training or self.untracked)

    @property
    def what(self) -> str:
        """What makes examples depend on each other, for the beginning of a sentence."""
        if self.untracked:
            return "BatchNorm without running statistics uses those of the batch in every mode"
        return "BatchNorm runs in train mode"

    @property
    def where(self) -> str:
        """The first names."""
        names = self.untracked or self.training
        return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")

    @property
    def cure(self) -> str:
        """What to do about it, for the beginning of a sentence."""
        return "use a BatchNorm with track_running_stats=True" if self.untracked else "use mode='eval'"


def tied_norms(model: nn.Module, mode: str) -> TiedNorms:
    """The modules that will use the batch's statistics in ``mode``, "as-is" or "eval"."""
    norms = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    untracked = tuple(name for name, module in norms if module.running_mean is None)
    training = [name for name, module in norms if module.training and module.running_mean is not None]
    together = [name for name, module in norms if module.training and isinstance(module, nn.SyncBatchNorm)]
    return TiedNorms(() if mode == "eval" else tuple(training), untracked, () if mode == "eval" else tuple(together))


def said_of_split(norms: TiedNorms, data: Any, batch_size: int | None, ranks: int) -> str:
    """A note that the split into batches is part of the loss; "" where it is not.

    Raises:
        InputError: the split is not the same in every pass, or would be changed, or is that of all ranks together.
    """
    if not norms:
        return ""
    part = f"{norms.what}, so that the split into batches is part of the loss"
    if norms.synchronised and ranks > 1:
        raise InputError(
            "SyncBatchNorm runs in train mode: it normalises by the batches of all ranks together, so that no rank has "
            "a loss of its own",
            where=", ".join(norms.synchronised[:3]),
            what_to_do="use mode='eval'",
        )
    if is_shuffling(data):
        raise InputError(
            f"{part}, and the loader shuffles: every pass would have another loss",
            where=norms.where,
            what_to_do=f"{norms.cure}, or shuffle=False",
        )
    if batch_size is not None:
        raise InputError(
            f"{part}, and batch_size would change the loss",
            where=norms.where,
            what_to_do=f"{norms.cure}, or give smaller batches yourself if that is the loss you mean",
        )
    return f"{norms.what} ({norms.where}): the split into batches is part of the loss"
