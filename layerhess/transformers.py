"""A callback for the Trainer of Hugging Face transformers that follows the curvature while it trains."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import CallbackHandler
except ImportError as error:
    raise ImportError("layerhess.transformers needs transformers: pip install 'layerhess[transformers]'") from error

from layerhess.monitor.deferred import Deferred
from layerhess.monitor.monitor import Monitor
from layerhess.objective.blocks import Scheme


class CurvatureCallback(TrainerCallback):
    """Follows the largest eigenvalues of every block and the whole model, logged as the Trainer's own figures are.

    They are in ``trainer.state.log_history`` and go to every integration (``report_to``). Training is not changed; see
    :class:`layerhess.Monitor`, whose arguments these are.

    Args:
        data: batches as mappings (model(**batch)), as for :class:`layerhess.Objective`; not the loader that trains.
            loss: None for the model's own ``.loss``. optimizer: True compares with the stability threshold of the
            Trainer's. mode: "eval" by default, since these models have dropout; batch_size: as for the Objective.

    Attributes:
        monitor: the :class:`layerhess.Monitor`, from the beginning of the training on.

    Raises:
        InputError: at the beginning of the training: data, loss or another argument cannot be used.
    """

    def __init__(
        self,
        data: Any,
        every: int = 100,
        blocks: Scheme | None = "weight",
        full: bool = True,
        overhead: float | None = 0.05,
        optimizer: Any = None,
        out: str | Path | None = None,
        seed: int = 0,
        *,
        loss: Any = None,
        mode: str = "eval",
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        settings = {"every": every, "blocks": blocks, "full": full, "overhead": overhead, "out": out, "seed": seed}
        self._deferred = Deferred(data, loss, mode, batch_size, optimizer, settings)
        self.monitor: Monitor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the monitor."""
        self.monitor = self._deferred.monitor(kwargs["model"], kwargs.get("optimizer"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A point after an optimizer step, told to the Trainer's other callbacks as its own figures are."""
        if self.monitor is None or (point := self.monitor.step(state.global_step)) is None:
            return
        metrics = point.metrics()
        epoch = {} if state.epoch is None else {"epoch": state.epoch}
        state.log_history.append({**metrics, **epoch, "step": state.global_step})
        if (handler := _handler()) is not None:
            handler.call_event("on_log", args, state, control, logs={**metrics, **epoch})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the rest of the history."""
        if self.monitor is not None:
            self.monitor.close()


def _handler() -> Any:
    """The handler that calls this callback, or None: it alone knows the others, and is not among the arguments."""
    frame = sys._getframe(1)
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        caller = frame.f_locals.get("self")
        if isinstance(caller, CallbackHandler):
            return caller
    return None
