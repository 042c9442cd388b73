"""Finds BatchNorm modules that normalise by the current batch, so that an example's loss depends on the others."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class TiedNorms:
    """The BatchNorm modules of a model that use the statistics of the batch; true if there are any.

    Attributes:
        training: names of those that do so because they run in train mode.
        untracked: names of those that keep no running statistics, and so use the batch's in eval mode too.
    """

    training: tuple[str, ...] = ()
    untracked: tuple[str, ...] = ()

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
    return TiedNorms(() if mode == "eval" else tuple(training), untracked)
