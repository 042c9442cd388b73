"""Peak memory of an analysis over that of a training step, each in a process of its own.

`python -m benchmarks.peak analysis CASE [BUDGET]` and `... step CASE` print the bytes by which the resident set rose at
its peak above what the process held with its imports, model and data (Linux only). Each does the same on a few examples
first, so that lazy imports and first kernels count for nothing. The peak so far is then forgotten: `ru_maxrss` will not
do, as a process inherits that of the one that started it.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts its pool

import dataclasses
import gc
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from .ours import analyse
from .workloads import Problem, load, prepare

__all__ = ["CASES", "Case", "Refused", "available", "grown", "rise"]

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """What is analysed: so many batches of a workload, a training step taking one; or these joined into one."""

    workload: str
    batches: int
    joined: bool = False


# With all their graphs kept, the first two hold many times what a step holds. The last one's step takes gigabytes.
CASES = {
    "resnet32, 4 batches": Case("resnet32-8", 4),
    "gpt, 8 batches": Case("gpt", 8),
    "resnet32, one batch of 2,048": Case("resnet32-8", 8, joined=True),
}
PART = 32  # of the first batch's examples: one in so many, for the unmeasured run

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Refused(Exception):
    """The budget is too small for the analysis; with its own sentence."""


def available() -> bool:
    """Whether this system lets a process forget its peak."""
    return _STATUS.exists() and _FORGET.exists()


def grown(kind: str, name: str, budget: int | None = None) -> int:
    """Bytes that "analysis" or "step" takes at its peak, measured in a fresh process; ``budget`` for the analysis."""
    command = [sys.executable, "-m", "benchmarks.peak", kind, name, *([] if budget is None else [str(budget)])]
    root = Path(__file__).parents[1]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if ran.returncode:
        raise Refused(ran.stderr.strip().splitlines()[-1])
    return int(ran.stdout.split()[-1])


def rise(work: Callable[[], T]) -> tuple[T, int]:
    """What the work gives, and the bytes by which this process's resident set rose at its peak meanwhile."""
    gc.collect()
    _FORGET.write_text("5")  # the peak so far
    before = _bytes("VmRSS")
    found = work()
    return found, _bytes("VmHWM") - before


def _bytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _training_step(problem: Problem) -> None:
    """Two steps on the first batch, so that the optimiser's state is there in one of them."""
    model = problem.model.train()
    kind = torch.optim.AdamW if problem.tokens else torch.optim.SGD
    settings = {"lr": 1e-6} if problem.tokens else {"lr": 1e-6, "momentum": 0.9}
    optimiser = kind(model.parameters(), **settings)
    x, y = problem.batches[0]
    for _ in range(2):
        optimiser.zero_grad()
        problem.loss(model(x), y).backward()
        optimiser.step()


def main(kind: str, name: str, budget: str = "") -> int:
    """Print the growth in bytes."""
    torch.set_num_threads(1)
    case = CASES[name]
    prepare(case.workload, lambda text: None)
    memory = int(budget) if budget else None
    work = {"analysis": lambda problem: analyse(problem, memory=memory), "step": _training_step}[kind]
    problem = load(case.workload)
    chosen = problem.batches[: case.batches]
    if case.joined:
        chosen = [(torch.cat([x for x, _ in chosen]), torch.cat([y for _, y in chosen]))]
    problem = dataclasses.replace(problem, batches=chosen)
    del chosen
    x, y = problem.batches[0]
    size = max(1, len(x) // PART)
    few = dataclasses.replace(load(case.workload), batches=[(x[:size], y[:size])])
    work(few)
    del few
    _, most = rise(lambda: work(problem))
    print(most)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
