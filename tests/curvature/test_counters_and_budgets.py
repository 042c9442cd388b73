"""Counts, times and memory: small things, each against numbers put in by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from layerhess.curvature import device as memory
from layerhess.curvature.counters import Counters
from layerhess.curvature.device import (
    Budget,
    budget,
    free_bytes,
    is_out_of_memory,
    memory_limit,
    peak_bytes,
    restart_peak,
    solver_device,
    storages,
    synchronise,
    used_bytes,
)
from layerhess.curvature.factors.work import Work, sum_of_works
from layerhess.errors import CheckError, InputError, ProcessError
from layerhess.objective.group import Failure

CPU = torch.device("cpu")
GIB = 1 << 30


# -- counters ----------------------------------------------------------------------------------------------------------


def test_work_is_counted_under_its_phase_and_in_all() -> None:
    counters = Counters()
    counters.count("forwards")
    with counters.during("check"):
        counters.count("products", 3)
        with counters.during("inner"):
            counters.count("products")
            counters.count("backwards", 2)
        counters.count("products", 4)
    counters.count("forwards", 5)
    counters.passes, counters.full_products = 7, 8
    found = counters.counts()
    assert found.by_phase == {
        "solve": {"forwards": 6, "backwards": 0, "products": 0},
        "check": {"forwards": 0, "backwards": 0, "products": 7},
        "inner": {"forwards": 0, "backwards": 2, "products": 1},
    }
    assert (found.passes, found.full_products) == (7, 8)
    assert (found.forwards, found.backwards, found.products) == (6, 2, 8)
    counters.count("forwards")
    assert found.by_phase["solve"]["forwards"] == 6  # a copy


def test_a_phase_is_over_after_an_exception_too() -> None:
    counters = Counters()
    with pytest.raises(ZeroDivisionError), counters.during("check"):
        raise ZeroDivisionError
    assert counters.phase == "solve" and "check" in counters.seconds


def test_time_of_phases_inside_is_taken_off() -> None:
    ticks = iter([0.0, 1.0, 3.0, 4.0, 9.0, 20.0, 30.0, 31.0])
    counters = Counters(clock=lambda: next(ticks))
    with counters.during("outer"):  # 0 to 20
        with counters.during("first"):  # 1 to 3
            pass
        with counters.during("second"):  # 4 to 9
            pass
    with counters.during("outer"):  # 30 to 31
        pass
    assert counters.seconds == {"first": 2.0, "second": 5.0, "outer": 20.0 - 7.0 + 1.0}


def test_cost_is_in_gradients_and_known_once_one_was_timed() -> None:
    counters = Counters()
    assert counters.cost(1, 1) is None
    counters.gradient_seconds = 0.0
    assert counters.cost(1, 1) is None
    counters.gradient_seconds, counters.seconds["solve"], counters.seconds["check"] = 0.5, 3.0, 0.25
    cost = counters.cost(10, 5)
    assert cost is not None and cost.gradient_seconds == 0.5 and cost.gradients == {"solve": 6.0, "check": 0.5}
    assert cost.one_by_one == pytest.approx(1.1 * 10 + 3.2 * 5)


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "size"),
    [("8GiB", 8 * GIB), ("500MB", 500_000_000), ("1.5 gb", 1_500_000_000), (" 2048 kib ", 2 << 20), ("2TiB", 2 << 40),
     ("1tb", 10**12), ("2000kB", 2_000_000), ("12 MiB", 12 << 20), ("1000000", 1_000_000), (1e6, 1_000_000),
     (123456789, 123456789)],
)  # fmt: skip
def test_sizes_are_read_in_all_their_units(given: Any, size: int) -> None:
    assert memory_limit(given) == size and memory_limit(None) is None


@pytest.mark.parametrize("given", ["8 XB", "GiB", "-1GB", "1e9", "", 999_999, "999kB", True, [1], math.nan, 2.0**62])
def test_what_is_no_size_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match="memory is"):
        memory_limit(given)


def test_a_budget_is_never_more_than_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 100)
    assert [budget([CPU], limit).room for limit in (None, 70, 130)] == [100, 70, 100]
    assert budget([CPU]) == Budget(100, None, True)


def test_vectors_live_where_float64_does() -> None:
    assert solver_device(torch.device("mps")).type == "cpu" and solver_device(torch.device("cuda", 1)).index == 1


class Files:
    """A folder that stands for /proc and /sys."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setattr(memory, "Path", lambda path: folder / str(path).strip("/").replace("/", "_"))
        monkeypatch.setattr(memory, "_STATM", folder / "statm")
        monkeypatch.setattr(memory, "_CGROUPS", ((folder, "max", "current", ("inactive", "active")),))
        self.write("proc_meminfo", "MemTotal: 900 kB\nMemAvailable: 500 kB\nOther: 1 kB\n")
        self.write("statm", "30 20 1")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    unlimited = SimpleNamespace(
        getrlimit=lambda kind: (-1, -1), RLIM_INFINITY=-1, RLIMIT_AS=9, getpagesize=lambda: 4096, RUSAGE_SELF=0,
        getrusage=lambda who: SimpleNamespace(ru_maxrss=77),
    )  # fmt: skip
    monkeypatch.setattr(memory, "resource", unlimited)
    monkeypatch.setattr(memory, "HAS_RESOURCE", True)
    return Files(tmp_path, monkeypatch)


def test_free_memory_is_the_least_of_what_the_system_the_process_and_the_container_allow(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert free_bytes(CPU) == 500 * 1024
    files.write("max", "600000")
    files.write("current", "300000")
    files.write("memory.stat", "inactive 10000\nactive 20000\nother 5\n")
    assert free_bytes(CPU) == 600_000 - (300_000 - 30_000)
    files.write("current", "700000")
    assert free_bytes(CPU) == 0  # never below nothing
    files.write("max", "max")
    assert free_bytes(CPU) == 500 * 1024
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (30 * 4096 + 1234, 0))
    assert free_bytes(CPU) == 1234
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (5, 0))
    assert free_bytes(CPU) == 0
    (files.folder / "statm").unlink()
    assert free_bytes(CPU) == 5
    monkeypatch.setattr(memory, "HAS_RESOURCE", False)
    (files.folder / "proc_meminfo").unlink()
    assert free_bytes(CPU) == 2 * GIB


def test_used_memory_is_the_resident_set_or_its_peak(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    assert used_bytes(CPU) == 20 * 4096
    (files.folder / "statm").unlink()
    assert used_bytes(CPU) == 77 * 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert used_bytes(CPU) == 77
    monkeypatch.setattr(memory, "HAS_RESOURCE", False)
    assert used_bytes(CPU) == 0


def test_on_a_gpu_its_own_counters_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9999))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 120)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    gpu = torch.device("cuda")
    assert free_bytes(gpu) == 1000 + 300 - 120 and used_bytes(gpu) == 120
    synchronise(CPU)
    assert not waited
    synchronise(gpu)
    assert waited == [gpu]


def test_of_several_devices_what_is_held_adds_up_and_the_least_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    began: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: [120, 7][device.index])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: [200, 30][device.index])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", began.append)
    monkeypatch.setattr(memory, "free_bytes", lambda device: [500, 400][device.index])
    assert used_bytes(first, second) == 127 and peak_bytes(first, second, first) == 230
    assert used_bytes(CPU, torch.device("mps")) < 2 * used_bytes(CPU), "the process's own memory counts once"
    restart_peak(first, second)
    assert began == [first, second]
    assert budget([first, second]).free == 400


@pytest.mark.parametrize(
    ("error", "out"),
    [(MemoryError(), True), (torch.OutOfMemoryError("x"), True), (RuntimeError("CUDA out of memory."), True),
     (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True), (RuntimeError("std::bad_alloc"), True),
     (RuntimeError("not enough memory: you"), True), (RuntimeError("shapes differ"), False), (ValueError(), False),
     (Failure.of(MemoryError("no room"), 1).exception(), True),
     (Failure.of(torch.OutOfMemoryError("CUDA out of memory"), 1).exception(), True),
     (ProcessError("rank 1 failed: RuntimeError: CUDA out of memory"), False),
     (CheckError("out of memory"), False), (InputError("out of memory"), False)],
)  # fmt: skip
def test_which_errors_are_a_lack_of_memory(error: BaseException, out: bool) -> None:
    assert is_out_of_memory(error) is out


def test_what_holds_tensors_counts_once() -> None:
    one, other = torch.zeros(10), torch.zeros(3, dtype=torch.float64)
    held = storages([one, one[2:4], one.view(2, 5), other])
    assert sorted(held.values()) == [24, 40]
    sparse = torch.eye(4).to_sparse()
    assert list(storages([sparse]).values()) == [16]
    assert storages([]) == {}


# -- work --------------------------------------------------------------------------------------------------------------


def test_works_add_up_and_scale() -> None:
    one = Work(items=3, directions=2, multiplications=10, outputs=20, network=30, entries=1, has_rows=True)
    other = Work(items=5, directions=4, multiplications=1, outputs=2, network=3, entries=2, has_rows=False)
    assert one.rows == 6
    assert sum_of_works([one, other]) == Work(8, 4, 11, 22, 33, 2, False)
    assert sum_of_works([one]) == one and sum_of_works([one, one]).has_rows
    assert one.times(2.5) == Work(8, 2, 25, 50, 75, 1, True)
