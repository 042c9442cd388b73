"""Counts of the work done, by phase, and how much memory kept graphs may take."""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from layerhess.results import Cost, Counts

try:
    import resource
except ImportError:  # Windows has no such module
    HAS_RESOURCE = False
else:
    HAS_RESOURCE = True

_STATM = Path("/proc/self/statm")
_CGROUPS = (  # a container's limit, its use, and how much of that is file cache, which gives way
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", ("inactive_file", "active_file")),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)
# Of the memory that is free when the first graph is made; nothing is kept where its size could not be measured.
KEPT_SHARE = 0.5 if HAS_RESOURCE or _STATM.exists() else 0.0
# Gradients that one exact product costs on a graph made for it alone: 0.9 to 1.3 for a block and 2.5 to 4.2 for the
# full model on the networks of benchmarks/.
BLOCK_ALONE, FULL_ALONE = 1.1, 3.2
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")


class Ledger:
    """Counts forwards, first backwards and Hessian-vector products of one batch each, by phase.

    Attributes:
        seconds: by phase. gradient_seconds: what one plain gradient over the data takes, timed on one batch.
    """

    def __init__(self) -> None:
        self.phase = "solve"
        self.passes = 0
        self.full_products = 0
        self.seconds: dict[str, float] = defaultdict(float)
        self.gradient_seconds = math.nan
        self._inner: list[float] = []  # for each phase under way, what phases inside it took
        self._by_phase: dict[str, dict[str, int]] = {}

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count and time the body under ``phase``; what a phase inside it takes is not part of its time."""
        before, start = self.phase, time.perf_counter()
        self.phase = phase
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[phase] += spent - self._inner.pop()
            self.phase = before
            if self._inner:
                self._inner[-1] += spent

    def count(self, kind: str, number: int = 1) -> None:
        """Add to "forwards", "backwards" or "products"."""
        phase = self._by_phase.setdefault(self.phase, {"forwards": 0, "backwards": 0, "products": 0})
        phase[kind] += number

    def cost(self, block_steps: int, full_steps: int) -> Cost | None:
        """What was spent, in gradients; None before one was timed.

        Args:
            block_steps, full_steps: products that solvers asked for, of blocks and of the full model.
        """
        if not self.gradient_seconds > 0.0:
            return None
        return Cost(
            gradient_seconds=self.gradient_seconds,
            gradients={phase: seconds / self.gradient_seconds for phase, seconds in self.seconds.items()},
            one_by_one=BLOCK_ALONE * block_steps + FULL_ALONE * full_steps,
        )

    def total(self, kind: str) -> int:
        """Sum over all phases."""
        return sum(phase[kind] for phase in self._by_phase.values())

    def counts(self) -> Counts:
        """An immutable copy for the result."""
        return Counts(
            passes=self.passes,
            forwards=self.total("forwards"),
            backwards=self.total("backwards"),
            products=self.total("products"),
            full_products=self.full_products,
            by_phase={name: dict(phase) for name, phase in self._by_phase.items()},
        )


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on ``device``; a cautious 2 GiB where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reusable
    free = 2 << 30
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    if HAS_RESOURCE:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            free = min(free, max(0, limit - _address_space()))
    return min(free, *(_free_in_cgroup(*group) for group in _CGROUPS))


def used_bytes(device: torch.device) -> int:
    """Memory this process holds on ``device`` now (resident set on the CPU; 0 where the system does not say)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    if not HAS_RESOURCE:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def synchronise(device: torch.device) -> None:
    """Wait for what a device has been given to do, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _address_space() -> int:
    return int(_STATM.read_text().split()[0]) * resource.getpagesize() if _STATM.exists() else 0


def _free_in_cgroup(folder: Path, limit: str, used: str, cached: tuple[str, ...]) -> int:
    """What a container may still take; no limit counts as a very large one."""
    try:
        ceiling = int((folder / limit).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        taken = int((folder / used).read_text()) - sum(int(statistics.get(name, 0)) for name in cached)
    except (OSError, ValueError):  # no such group, or the word "max"
        return sys.maxsize
    return max(0, ceiling - taken)


def is_out_of_memory(error: BaseException) -> bool:
    """True for torch's and the system's out-of-memory errors, on any device."""
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in text for sign in OUT_OF_MEMORY)
