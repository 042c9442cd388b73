"""Time and memory of work on one device: CUDA's events and allocator, or a process's CPU time and resident set."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from . import peak

__all__ = ["Measured", "measured", "synchronisations"]

T = TypeVar("T")


@dataclass(frozen=True)
class Measured(Generic[T]):
    """What some work gave and took.

    Attributes:
        seconds: between two CUDA events around it, or CPU time. memory: bytes at its peak above what was held before:
            of CUDA's allocator, or of the resident set (NaN where the system does not say).
    """

    value: T
    seconds: float
    memory: float


def measured(device: torch.device, work: Callable[[], T]) -> Measured[T]:
    """Do the work once; on a GPU all that was queued before and in it is waited for."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        begin.record()
        value = work()
        end.record()
        torch.cuda.synchronize(device)
        return Measured(value, begin.elapsed_time(end) / 1e3, torch.cuda.max_memory_allocated(device) - held)

    def timed() -> tuple[T, float]:
        start = time.process_time()
        return work(), time.process_time() - start

    (value, seconds), memory = peak.rise(timed) if peak.available() else (timed(), math.nan)
    return Measured(value, seconds, memory)


def synchronisations(device: torch.device, work: Callable[[], object]) -> list[str] | None:
    """Where the host waits for a GPU while the work is done, a sentence each; None where there is no GPU."""
    if device.type != "cuda":
        return None
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return [f"{c.filename}:{c.lineno}: {c.message}" for c in caught if "synchroniz" in str(c.message)]
