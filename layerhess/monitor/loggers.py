"""Where the monitor's figures go while they are made: a CSV file, TensorBoard, and loggers that were attached."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerhess.errors import InputError
from layerhess.results.point import Point

TABLE = "curvature.csv"
Log = Callable[[dict[str, float], int], object]


def log_of(logger: Any) -> Log:
    """The function (metrics, step) that logs to this logger.

    Args:
        logger: with ``log_metrics(metrics, step=)`` (Lightning's), ``add_scalar(name, value, step)`` (TensorBoard's
            SummaryWriter), ``log(metrics, step=)`` (a run of Weights & Biases); or such a function.

    Raises:
        InputError: none of these.
    """
    if hasattr(logger, "log_metrics"):
        return lambda metrics, step: logger.log_metrics(metrics, step=step)
    if hasattr(logger, "add_scalar"):
        return lambda metrics, step: [logger.add_scalar(name, value, step) for name, value in metrics.items()]
    if callable(getattr(logger, "log", None)):
        return lambda metrics, step: logger.log(metrics, step=step)
    if callable(logger):
        function: Log = logger
        return function
    raise InputError(
        f"{type(logger).__name__} is no logger that is known",
        where="attach",
        what_to_do="give one with log_metrics, add_scalar or log, or a function of (metrics, step)",
    )


class Table:
    """A CSV file with a row per point and block, longer with every point.

    Args:
        path: replaced if it is there. columns: of the rows.
    """

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self._path, self._columns = path, columns
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerow(columns)

    def add(self, point: Point) -> None:
        """Append a point's rows."""
        with self._path.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            for reading in point.readings.values():
                writer.writerow([point.step, *(getattr(reading, name) for name in self._columns[1:])])


def tensorboard(folder: Path) -> Log | None:
    """Event files for TensorBoard in the folder; None where it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def log(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log
