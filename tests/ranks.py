"""Starts processes that form a group, each of which calls the same function and gives back what it returns."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPT = """
import importlib, os, pickle, sys, datetime, traceback
import torch, torch.distributed as dist
torch.set_num_threads(1)
module, function, rank, size, store, out, seconds = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(size),
                        timeout=datetime.timedelta(seconds=float(seconds)))
code = 1
try:
    made = getattr(importlib.import_module(module), function)()
    with open(out, "wb") as file:
        pickle.dump(made, file)
    dist.barrier()  # who is first to go must not find the others in the middle of it
    code = 0
except BaseException:
    traceback.print_exc()
sys.stderr.flush()
os._exit(code)  # gloo's threads now and then abort a process whose interpreter ends
"""


@dataclass(frozen=True)
class Ended:
    """How a rank ended: exit code, what it printed on stderr, what the function returned (None if it did not)."""

    code: int
    stderr: str
    returned: Any


def run_ranks(size: int, module: str, function: str, folder: Path, timeout: float = 60.0) -> list[Ended]:
    """Call ``module.function()`` on ``size`` ranks of a gloo group; ``folder`` must be empty."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(
        [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, module, function, str(rank), str(size), str(folder / "store"),
             str(folder / f"out{rank}"), str(timeout)],
            stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(size)
    ]  # fmt: skip
    return ended(started, folder)


def ended(started: Sequence[subprocess.Popen[str]], folder: Path) -> list[Ended]:
    """Wait for the ranks."""
    found = []
    for rank, process in enumerate(started):
        _, stderr = process.communicate(timeout=300)
        out = folder / f"out{rank}"
        returned = pickle.loads(out.read_bytes()) if process.returncode == 0 and out.exists() else None
        found.append(Ended(process.returncode, stderr, returned))
    return found
