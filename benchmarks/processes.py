"""How much faster two processes are than one, with one thread each: python -m benchmarks.processes [examples].

Prints, for 1 and 2 processes, the seconds of the solve phase and of all, on the wall and of the busiest process's CPU;
on a machine that does other work only the latter says something.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import torch
import torch.distributed as dist
from torch import nn

import layerhess as lh


def problem(examples: int) -> lh.Objective:
    """A small convolutional network in float32 on this process's share of random images."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.Tanh(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(32 * 64, 10),
    )  # fmt: skip
    x, y = torch.randn(examples, 3, 32, 32), torch.randint(10, (examples,))
    batches = list(zip(x.split(32), y.split(32), strict=True))
    return lh.Objective(model, batches[rank::ranks], nn.CrossEntropyLoss())


def one(examples: int) -> None:
    """One process's part, or all of it."""
    torch.set_num_threads(1)
    ranks = int(os.environ["WORLD_SIZE"])
    if ranks > 1:
        dist.init_process_group("gloo")
    objective = problem(examples)
    wall, busy = time.perf_counter(), time.process_time()
    found = lh.analyze(objective, blocks="weight", path="exact", top=1)
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    solve = found.seconds["solve"]
    every = [(solve, wall, busy)]
    if ranks > 1:
        every = [every[0]] * ranks
        dist.all_gather_object(every, (solve, wall, busy))
    if int(os.environ["RANK"]) == 0:
        top = found.full.eigenvalues[0] if found.full is not None else float("nan")
        solve, wall, busy = (max(column) for column in zip(*every, strict=True))
        print(
            f"{ranks} processes: solve {solve:.1f} s, all {wall:.1f} s, CPU {busy:.1f} s; "
            f"{found.counts.passes} passes, top {top:.9g}",
            flush=True,
        )
    if ranks > 1:
        dist.destroy_process_group()


def main(examples: str = "512") -> None:
    """Run both, one after the other."""
    for ranks in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        started = [
            subprocess.Popen(
                [sys.executable, "-c", f"from benchmarks.processes import one; one({int(examples)})"],
                env={**os.environ, **common, "RANK": str(rank)},
            )
            for rank in range(ranks)
        ]
        for process in started:
            if process.wait():
                raise SystemExit("a process failed")


if __name__ == "__main__":
    main(*sys.argv[1:])
