"""How much memory there is, how much is in use, and what an analysis may take of it."""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from layerhess.errors import InputError, LayerhessError
from layerhess.objective.blocks import Block
from layerhess.objective.group import ALONE, Group

try:
    import resource
except ImportError:  # Windows has no such module
    HAS_RESOURCE = False
else:
    HAS_RESOURCE = True

_STATM = Path("/proc/self/statm")
_CGROUPS = (  # a container's limit, its use, and how much of that is file cache, which can be freed
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
PIECE_SHARE = 0.15  # of a budget, for the graph of one batch that is not kept
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")
UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
         "tib": 1 << 40}  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """What an analysis may take beyond the memory that was in use when it began.

    Attributes:
        free: bytes that were free then; it is not measured again. limit: bytes that it may take of them; None for all.
        asked: the limit was given by the user; plans then stay further below it.
    """

    free: int
    limit: int | None = None
    asked: bool = True

    @property
    def room(self) -> int:
        """Bytes that plans may use."""
        return self.free if self.limit is None else min(self.free, self.limit)


def budget(devices: Sequence[torch.device], limit: int | None = None, group: Group = ALONE) -> Budget:
    """The budget of an analysis that begins now on these devices, the same on all ranks of the group.

    Plans count everything as if it lay on one device: on the one that has least.
    """
    free = [free_bytes(device) for device in devices]
    return Budget(group.room(min(free), devices[free.index(min(free))]), limit)


def memory_limit(memory: Any, name: str = "memory") -> int | None:
    """The bytes behind ``memory="8GiB"``, a number of bytes, or None; ``name`` is the argument's.

    Raises:
        InputError: neither, or less than a megabyte.

    >>> memory_limit("1.5 GiB"), memory_limit("200MB"), memory_limit(None)
    (1610612736, 200000000, None)
    """
    if memory is None:
        return None
    size: float | None = None
    if isinstance(memory, (int, float)) and not isinstance(memory, bool):
        size = float(memory)
    elif isinstance(memory, str) and (found := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", memory)):
        factor = UNITS.get(found[2].lower())
        size = None if factor is None else float(found[1]) * factor
    if size is None or not 1e6 <= size < 2.0**62:
        raise InputError(
            f"{name} is {memory!r}",
            where=name,
            what_to_do="give a size such as '8GiB' or '500MB', bytes as a number (a megabyte or more), or None",
        )
    return int(size)


def free_bytes(device: torch.device) -> int:
    """Memory that is still available on ``device``; a cautious 2 GiB where the system does not say."""
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


def solver_device(device: torch.device) -> torch.device:
    """Where solver vectors live: with the model, unless the device has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def beside(block: Block, parameters: Mapping[str, torch.Tensor]) -> torch.device:
    """Where a block's vectors live: with its parameters; of several devices, with its first one."""
    return solver_device(parameters[block.parameters[0]].device)


def places(block: Block, parameters: Mapping[str, torch.Tensor]) -> tuple[tuple[int, torch.device], ...]:
    """Of a block on several devices, how many successive components of a vector lie beside each; () on one device."""
    own = [(parameters[name].numel(), solver_device(parameters[name].device)) for name in block.parameters]
    runs = [(sum(n for n, _ in run), place) for place, run in itertools.groupby(own, lambda one: one[1])]
    return tuple(runs) if len(runs) > 1 else ()


def used_bytes(*devices: torch.device) -> int:
    """Memory this process holds on these devices now (resident set on the CPU; 0 where the system does not say)."""
    return sum(map(_used_bytes, _memories(devices)))


def restart_peak(*devices: torch.device) -> None:
    """Forget the most that was held so far, where the system allows that; see :func:`peak_bytes`."""
    for device in _memories(devices):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):  # another system, or one that forbids it: the peak of the whole process
                Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(*devices: torch.device) -> int:
    """The most that this process has held since :func:`restart_peak`, on each of these devices, added up."""
    return sum(map(_peak_bytes, _memories(devices)))


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Address -> bytes of the storages of the tensors, each once; of a sparse or nested one, that of its values."""
    found = {}
    for tensor in tensors:
        try:
            if tensor.layout != torch.strided:
                tensor = tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()
            held = tensor.untyped_storage()
            found[held.data_ptr()] = held.nbytes()
        except (NotImplementedError, RuntimeError):  # a kind of tensor that has none, as in transforms of torch.func
            continue
    return found


def synchronise(*devices: torch.device) -> None:
    """Wait until the devices have finished their work, so that time can be measured."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def _memories(devices: Iterable[torch.device]) -> dict[torch.device, None]:
    """Each GPU's own memory, and the process's for all other devices."""
    return dict.fromkeys(device if device.type == "cuda" else torch.device("cpu") for device in devices)


def _used_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    return _peak_bytes(device) if HAS_RESOURCE else 0


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if HAS_RESOURCE else 0
    return peak if sys.platform == "darwin" else peak * 1024


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
    """True for torch's and the system's out-of-memory errors, on any device.

    Those of other ranks in the same step are meant too (:class:`layerhess.objective.group.OthersError`); refusals, and
    that another rank has failed, are not, whatever they say.
    """
    if isinstance(error, LayerhessError):
        return False
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in text for sign in OUT_OF_MEMORY)
