"""A monitor that is made when a trainer begins, for callbacks: the model and the optimizer exist only then."""

from __future__ import annotations

from typing import Any

from torch import nn

from layerhess.errors import InputError
from layerhess.monitor.monitor import Monitor
from layerhess.objective import batches
from layerhess.objective.group import world
from layerhess.objective.objective import Objective


class Deferred:
    """What a callback was given, until there is a model.

    Args:
        data, loss, mode, batch_size: of the :class:`layerhess.Objective`. optimizer: True takes the trainer's first
            one. settings: the other arguments of :class:`layerhess.Monitor`.
    """

    def __init__(
        self, data: Any, loss: Any, mode: str, batch_size: int | None, optimizer: Any, settings: dict[str, Any]
    ) -> None:
        self._data, self._loss, self._mode, self._batch_size = data, loss, mode, batch_size
        self._optimizer, self._settings = optimizer, settings

    def monitor(self, model: nn.Module, first: Any) -> Monitor:
        """The monitor of this model.

        Args:
            first: the trainer's optimizer; None if it has none.

        Raises:
            InputError: what the objective or the monitor refuses.
        """
        objective = Objective(model, _share(self._data), self._loss, batch_size=self._batch_size, mode=self._mode)
        optimizer = None if self._optimizer is False else self._optimizer
        if optimizer is True:
            if first is None:
                raise InputError(
                    "optimizer=True, and the trainer has no optimizer",
                    where="optimizer",
                    what_to_do="leave optimizer out",
                )
            optimizer = first
        return Monitor(objective, optimizer=optimizer, **self._settings)


def _share(data: Any) -> Any:
    """This rank's share of data that all ranks of a trainer were given; loaders are divided by the objective."""
    rank, size = world().rank, world().size
    if size == 1:
        return data
    if isinstance(data, list):
        return data[rank::size]
    return [batches.take(data, slice(rank, None, size))] if batches.is_single(data) else data
