"""A callback for Lightning's Trainer that follows the curvature while it fits.

Works with ``lightning`` and ``pytorch_lightning``, whichever are installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerhess.monitor.deferred import Deferred
from layerhess.monitor.monitor import Monitor
from layerhess.objective.blocks import Scheme

if TYPE_CHECKING:
    from lightning.pytorch import Callback as _Callback
else:
    _bases = []
    try:
        from lightning.pytorch import Callback as _base

        _bases.append(_base)
    except ImportError:
        pass
    try:
        from pytorch_lightning import Callback as _base

        _bases.append(_base)
    except ImportError:
        pass
    if not _bases:
        raise ImportError("layerhess.lightning needs Lightning: pip install 'layerhess[lightning]'")
    _Callback = type("_Callback", tuple(dict.fromkeys(_bases)), {})


class CurvatureMonitor(_Callback):
    """Follows the largest eigenvalues of every block and of the whole model, and logs them to the trainer's loggers.

    A point is made after an optimizer step, never between accumulated batches. Training is not changed; see
    :class:`layerhess.Monitor`, whose arguments these are. The block names are the LightningModule's parameter names.

    Args:
        data: what the loss is over, as for :class:`layerhess.Objective`; not the loader that trains. loss: a criterion
            on (output of the module, target), or ``lh.batch_loss(fn)``. optimizer: True compares with the stability
            threshold of the trainer's first optimizer. mode: "eval" by default, since modules in training often have
            dropout; batch_size: as for the Objective.

    Attributes:
        monitor: the :class:`layerhess.Monitor`, from the beginning of the fit on.

    Raises:
        InputError: at the beginning of the fit: data, loss or another argument cannot be used.
    """

    def __init__(
        self,
        data: Any,
        loss: Any = None,
        every: int = 100,
        blocks: Scheme | None = "weight",
        full: bool = True,
        overhead: float | None = 0.05,
        optimizer: Any = None,
        out: str | Path | None = None,
        seed: int = 0,
        *,
        mode: str = "eval",
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        settings = {"every": every, "blocks": blocks, "full": full, "overhead": overhead, "out": out, "seed": seed}
        self._deferred = Deferred(data, loss, mode, batch_size, optimizer, settings)
        self._steps = 0
        self.monitor: Monitor | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the monitor."""
        self.monitor = self._deferred.monitor(pl_module, next(iter(trainer.optimizers), None))
        for logger in trainer.loggers:
            self.monitor.attach(logger)
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A point, if the optimizer has made a step."""
        if self.monitor is not None and trainer.global_step != self._steps:
            self._steps = trainer.global_step
            self.monitor.step(self._steps)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the rest of the history."""
        if self.monitor is not None:
            self.monitor.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The same where the fit was interrupted."""
        self.on_train_end(trainer, pl_module)
