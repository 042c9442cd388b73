"""What the ranks of tests/monitor/test_monitor_on_ranks.py train and monitor; alone, the same gives the reference."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from torch import nn

import layerhess as lh
from layerhess.monitor.deferred import Deferred
from on_ranks import examples, objective, place

STEPS = 12


def train(monitor_of: Any, seconds: float = 0.0) -> tuple[lh.Monitor, list[str]]:
    """The same gradient descent on every rank; each rank's monitor has a share of the data."""
    torch.manual_seed(0)
    mine = objective()
    optimizer = torch.optim.SGD(mine.model.parameters(), lr=0.1, momentum=0.5)
    monitor = monitor_of(mine, optimizer)
    x, y = examples()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(STEPS):
            time.sleep(seconds * (1 + place()[0]))
            optimizer.zero_grad()
            nn.functional.cross_entropy(mine.model(x), y).backward()
            optimizer.step()
            monitor.step()
    return monitor, [str(one.message) for one in caught if issubclass(one.category, lh.LayerhessWarning)]


def values() -> dict[str, Any]:
    monitor, _ = train(lambda mine, optimizer: lh.Monitor(mine, every=3, overhead=None, optimizer=optimizer))
    frame = monitor.to_frame()
    return {name: frame[name].dropna().tolist() for name in ("step", "lambda_max", "bound", "ratio")}


def spaced() -> list[int]:
    """Ranks that take different times agree on when there is time for a point."""
    monitor, _ = train(lambda mine, optimizer: lh.Monitor(mine, every=1, overhead=0.5), seconds=0.05)
    return [point.step for point in monitor.points]


def failing() -> dict[str, Any]:
    """The second rank fails at the second point."""

    class Failing(lh.Monitor):
        def _point(self) -> Any:
            if place()[0] == 1 and len(self.points) == 1:
                with self._session():
                    raise OSError("the file is gone")
            return super()._point()

    monitor, said = train(lambda mine, optimizer: Failing(mine, every=3, overhead=None))
    return {"points": len(monitor.points), "said": said, "failure": monitor.failure}


def deferred() -> dict[str, Any]:
    """All ranks of a trainer give the same data: a batch, or a list of them."""
    x, y = examples()
    lists = [(x, y), list(zip(x.split(8), y.split(8), strict=True))]
    found = {}
    for number, data in enumerate(lists):
        settings = {"every": 3, "overhead": None}
        given = Deferred(data, nn.CrossEntropyLoss(), "eval", None, True, settings)
        monitor, said = train(lambda mine, optimizer, given=given: given.monitor(mine.model, optimizer))
        found[str(number)] = [said, monitor.to_frame().lambda_max.tolist()]
    return found


def logger_fails() -> dict[str, Any]:
    """Only the first rank logs."""

    def log(metrics: dict[str, float], step: int) -> None:
        raise OSError("the tracker is gone")

    def monitor_of(mine: lh.Objective, optimizer: Any) -> lh.Monitor:
        monitor = lh.Monitor(mine, every=3, overhead=None)
        monitor.attach(log)
        return monitor

    monitor, said = train(monitor_of)
    return {"said": said, "failure": monitor.failure}


def together() -> dict[str, Any]:
    """All of these in one group of processes, which take long to begin."""
    return {"values": values(), "spaced": spaced(), "deferred": deferred(), "logger": logger_fails(),
            "failing": failing()}  # fmt: skip
