"""How the benchmarks measure time: CPU time of the process, in turns, in units of one gradient over the same data."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from .workloads import Problem

__all__ = ["Entry", "gradient", "say", "take_turns", "warm_up"]

T = TypeVar("T")


@dataclass
class Entry(Generic[T]):
    """One contestant in one column: what to run, and what the runs gave."""

    title: str
    column: str  # "ours", "A" or "B"; anything else where there are no columns
    answer: Callable[[], T]
    note: str = ""
    kept: bool = False  # a peer on kept graphs
    seconds: list[float] = field(default_factory=list)  # wall clock
    processor: list[float] = field(default_factory=list)  # this process's own CPU time
    values: T | None = None

    def run(self) -> None:
        """Once more."""
        gc.collect()
        wall, processor = time.perf_counter(), time.process_time()
        self.values = self.answer()
        self.seconds.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)

    @property
    def median(self) -> float:
        """CPU seconds."""
        return statistics.median(self.processor)


def take_turns(entries: list[Entry], turns: int) -> None:
    """Run all of them one after the other, as often as asked, the first round unmeasured."""
    for turn in range(turns + 1):
        for entry in entries:
            entry.run()
            if not turn:
                entry.seconds.clear()
                entry.processor.clear()


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)


def gradient(problem: Problem) -> None:
    """One pass of plain gradients over the workload's data: the unit, timed without set-up."""
    parameters = list(problem.model.parameters())
    for x, y in problem.batches:
        torch.autograd.grad(problem.loss(problem.model(x), y), parameters)


def warm_up(problem: Problem) -> None:
    """One product of the smallest kind, so that nobody pays for PyTorch's lazy imports (a second) and first kernels."""
    parameter = list(problem.model.parameters())[-1]
    x, y = problem.batches[0]
    (slope,) = torch.autograd.grad(problem.loss(problem.model(x), y), parameter, create_graph=True)
    torch.autograd.grad(slope, parameter, torch.ones_like(slope))
    gradient(problem)
