"""Several processes, each with its share of the data: the only module that talks to torch.distributed.

Every process (rank) runs the same analysis. They exchange in lockstep: what one tells, all hear at the same place, and
an error of one is raised by all. So a rank that fails leaves nobody waiting, and all take the same way.
"""

from __future__ import annotations

import os
import re
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from layerhess.errors import CheckError, InputError, LayerhessError, ProcessError, notes_of
from layerhess.objective.interrupts import STOPS

Value = TypeVar("Value")
LEAVING, AGREED, GATHERED, TRIED = "leaving", "agreed", "gathered", "tried"  # kinds of exchanges
ADDED, JOINED = "added", "joined"  # before numbers are sent: nobody waits for a rank that failed meanwhile
PATIENCE = 15.0  # seconds in which survivors of a failed exchange find out who else is there
REST = 0.3  # seconds in which gloo's threads let go of sums: where the interpreter ends before that, torch 2.13 aborts
OURS = (InputError, CheckError, ProcessError)
HEARD = "_heard_by_all_ranks"  # attribute of an error that came out of an exchange
KEY = "layerhess"  # of what is written into the store of the process group


@dataclass(frozen=True)
class Failure:
    """An exception of one rank, as the others hear of it.

    Attributes:
        rank: whose. kind: the type that others raise. message, where, what_to_do: as in
            :class:`layerhess.errors.LayerhessError`; where it is none of ours, only a message.
    """

    rank: int
    kind: type[BaseException]
    message: str
    where: str = ""
    what_to_do: str = ""

    @classmethod
    def of(cls, error: BaseException, rank: int) -> Failure:
        """What to tell of an exception."""
        if isinstance(error, LayerhessError):
            ours = next(own for own in OURS if isinstance(error, own))
            return cls(rank, ours, error.message, error.where, error.what_to_do)
        lines = str(error).strip().splitlines() or [""]
        text = lines[0][:200]
        if "DataLoader worker" in text and len(lines) > 1:  # its own error stands below its traceback
            text = f"{text} {lines[-1][:200]}"
        text = "; ".join(filter(None, (text, *notes_of(error))))
        kinds: tuple[type[BaseException], ...] = (MemoryError, RuntimeError, *STOPS)
        kind = next((own for own in kinds if isinstance(error, own)), Exception)
        return cls(rank, kind, f"{type(error).__name__}{': ' if text else ''}{text}")

    def exception(self) -> BaseException:
        """What another rank raises: of the same kind, so that all ranks go on in the same way."""
        own = f"rank {self.rank}"
        if self.kind in STOPS:
            return self.kind(own)
        if self.kind in (RuntimeError, MemoryError):  # what these say decides whether another way is tried
            return OthersError(self)
        if self.kind not in OURS:
            return self.final()
        named = own in self.where or own in self.message or self.where.startswith("ranks ")
        where = self.where if named else ", ".join(filter(None, (own, self.where)))
        return self.kind(self.message, where=where, what_to_do=self.what_to_do)

    def final(self) -> ProcessError:
        """What another rank ends with."""
        own = f"rank {self.rank}"
        return ProcessError(f"{own} failed: {self.message}", where=own, what_to_do="see what that process printed")


class OthersError(RuntimeError):
    """A RuntimeError of another rank, whose text it has; or that it is out of memory."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        memory = "out of memory: " if failure.kind is MemoryError else ""
        super().__init__(f"{memory}{failure.message} (rank {failure.rank})")


@dataclass(frozen=True)
class _Said:
    """What one rank says in an exchange; with ``last`` it leaves afterwards."""

    kind: str
    value: Any = None
    failure: Failure | None = None
    last: bool = False


class Group:
    """The processes of one analysis. A group of one exchanges nothing.

    Args:
        processes: torch's group; None for a process alone.

    Attributes:
        rank: this process's number. size: how many there are.
    """

    def __init__(self, processes: Any = None) -> None:
        # Not to be held: a group that outlives destroy_process_group ends the process at its exit.
        self._processes = None if processes is None else weakref.ref(processes)
        self.rank = 0 if processes is None else dist.get_rank(processes)
        self.size = 1 if processes is None else dist.get_world_size(processes)
        self._on_gpus = self.size > 1 and "nccl" in dist.get_backend_config(processes)
        self._messages: weakref.ref[Any] | None = None  # the group for what lies in main memory
        self._inside = False
        self._over = False  # another rank has left the body
        self._broken: BaseException | None = None  # one cannot be reached
        self._number = 0

    # -- telling --------------------------------------------------------------------------------------------------

    def gathered(self, value: Value, kind: str = GATHERED, failure: BaseException | None = None) -> list[Value]:
        """What every rank told, in their order, on every rank. It is pickled: tensors must lie in main memory.

        Args:
            kind: of the exchange, the same on all ranks. failure: an exception of this rank, told instead.

        Raises:
            BaseException: where ranks failed, the error of the first of them, on all ranks. An interrupt comes first.
        """
        if self.size == 1:
            if failure is not None:
                raise failure
            return [value]
        return self._exchange(_Said(kind, value, None if failure is None else Failure.of(failure, self.rank)), failure)

    def agreed(self, value: Value) -> Value:
        """Rank 0's value, on every rank: for all that ranks could decide differently."""
        return self.gathered(value if self.rank == 0 else None, AGREED)[0]  # type: ignore[return-value]

    def tried(self, call: Callable[[], Value]) -> Value:
        """What ``call`` returns on this rank. Where it fails on one rank, all raise.

        Raises:
            BaseException: see :meth:`gathered`.
        """
        if self.size == 1:
            return call()
        failure: BaseException | None = None
        try:
            made = call()
        except BaseException as error:
            if getattr(error, HEARD, False):
                raise
            failure = error
        try:
            self.gathered(None, TRIED, failure)
        finally:
            del failure  # it holds what this frame does
        return made

    def add_up(self, sums: Tensor) -> Tensor:
        """The sum of the ranks' tensors of one shape, bit by bit the same on all; ``sums`` may be overwritten.

        Raises:
            BaseException: see :meth:`gathered`.
        """
        if self.size == 1:
            return sums
        total, processes = self._sent(sums)
        self.gathered(None, ADDED)

        def added() -> None:  # an all_reduce may round differently from rank to rank
            dist.reduce(total, dst=0, group=processes)
            dist.broadcast(total, src=0, group=processes)

        self._collective(added)
        return total.to(sums.device)

    def here(self, n: int, rank: int | None = None) -> slice:
        """The components of a vector of length n that this rank, or another, holds where it is in slices."""
        rank = self.rank if rank is None else rank
        return slice(n * rank // self.size, n * (rank + 1) // self.size)

    def joined(self, part: Tensor, n: int) -> Tensor:
        """Rows (s, n), whole, of which each rank has its slice (s, k) of the columns; see :meth:`here`.

        Raises:
            BaseException: see :meth:`gathered`.
        """
        if self.size == 1:
            return part
        own, processes = self._sent(part)
        columns = [range(n)[self.here(n, rank)] for rank in range(self.size)]
        parts = [own if rank == self.rank else own.new_empty((len(own), len(c))) for rank, c in enumerate(columns)]
        self.gathered(None, JOINED)

        def sent() -> None:
            for rank, piece in enumerate(parts):
                dist.broadcast(piece, src=rank, group=processes)

        self._collective(sent)
        return torch.cat(parts, dim=1).to(part.device)

    def room(self, free: int, device: torch.device) -> int:
        """The least that a rank may take of the free memory it sees, which those on one machine share."""
        place = (socket.gethostname(), str(device))
        seen = self.gathered((place, free))
        return min(own // sum(other == there for other, _ in seen) for there, own in seen)

    def place(self, number: int) -> str:
        """A batch's number, in words: "3", or "3 of rank 1"."""
        return str(number) if self.size == 1 else f"{number} of rank {self.rank}"

    # -- coming and going -------------------------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[Group]:
        """All ranks enter the body, and leave it together; a rank that fails in it tells the others. Re-entrant.

        Raises:
            ProcessError: another rank failed, died or does not answer; it is named. KeyboardInterrupt: on another rank.
        """
        if self.size == 1 or self._inside:
            yield self
            return
        self._inside = True
        try:
            try:
                yield self
            except BaseException as error:
                if not self._over:
                    with suppress(Exception):  # the others' errors: this rank has its own
                        self._exchange(_Said(LEAVING, None, Failure.of(error, self.rank), last=True), error)
                if isinstance(error, OthersError):
                    raise error.failure.final() from error
                raise
            self._exchange(_Said(LEAVING, last=True), None)
        finally:
            self._inside, self._over = False, self._broken is not None

    def announce(self, error: BaseException) -> None:
        """Write an error where the others look once they miss this rank: it may have failed before they began."""
        if self.size > 1:
            with suppress(Exception):
                _store().set(f"{KEY}/failed/{self.rank}", f"{type(error).__name__}: {error}"[:300])

    # -- parts ------------------------------------------------------------------------------------------------------

    def _exchange(self, said: _Said, own: BaseException | None) -> list[Any]:
        heard: list[_Said] = [said] * self.size
        self._collective(lambda: dist.all_gather_object(heard, said, group=self._in_main_memory()))
        self._over = self._over or any(one.last for one in heard)
        failures = sorted(
            (one.failure for one in heard if one.failure is not None),
            key=lambda failure: (failure.kind not in STOPS, failure.rank),
        )
        if failures:
            mine = own is not None and (said.last or failures[0].rank == self.rank)
            others = failures[0].exception()
            if isinstance(others, OthersError) and heard[failures[0].rank].last:
                others = failures[0].final()  # no other way can be tried without that rank
            error = own if own is not None and mine else others
            with suppress(AttributeError):
                setattr(error, HEARD, True)
            raise error from (None if mine else own)
        if len({one.kind for one in heard}) > 1:
            self._over = True
            raise ProcessError(
                "the processes do not do the same: " + ", ".join(sorted({one.kind for one in heard})),
                where=f"rank {self.rank} of {self.size}",
                what_to_do="call the same functions with the same arguments on all ranks",
            )
        return [one.value for one in heard]

    def _collective(self, call: Callable[[], None]) -> None:
        if self._broken is not None:
            raise self._broken
        if self._over:
            raise ProcessError("another process has left the group", what_to_do="see what it printed")
        self._number += 1
        with suppress(Exception):  # without a store nobody can be named, and nothing else is amiss
            _store().set(f"{KEY}/at/{self.rank}", str(self._number))
        try:
            call()
        except (RuntimeError, ValueError) as error:  # torch.distributed's
            self._over, self._broken = True, self._lost(error)
            raise self._broken from error
        except BaseException as error:  # interrupted in the middle of it
            self._over, self._broken = True, error
            raise

    def _sent(self, numbers: Tensor) -> tuple[Tensor, Any]:
        """Where numbers can be sent from, and the group that sends them."""
        direct = numbers.device.type == "cpu" or (self._on_gpus and numbers.is_cuda)
        placed = (numbers if direct else numbers.cpu()).contiguous()
        return placed, self._alive(self._processes) if placed.is_cuda else self._in_main_memory()

    @staticmethod
    def _seen(store: Any, key: str) -> int:
        return int(store.get(key)) if store.check([key]) else 0

    def _in_main_memory(self) -> Any:
        """The group for messages and sums on the CPU."""
        if self._messages is None:
            own = self._alive(self._processes)
            gloo = "gloo" in dist.get_backend_config(own)
            self._messages = weakref.ref(own if gloo else dist.new_group(backend="gloo"))
        return self._alive(self._messages)

    @staticmethod
    def _alive(processes: weakref.ref[Any] | None) -> Any:
        if processes is None or (found := processes()) is None:
            raise ProcessError("the process group was destroyed", what_to_do="destroy it after the last call")
        return found

    def _lost(self, error: BaseException) -> ProcessError:
        """Who is missing after an exchange that failed: those who do not say so too, or came to it too late."""
        missing, told, late = set(range(self.size)) - {self.rank}, "", set()
        try:
            store = _store()
            if all(store.check([f"{KEY}/lost/{rank}"]) for rank in missing):
                own = f"rank {self.rank}"
                said = f"{own} came too late: the other ranks had given up waiting for it"
                return ProcessError(said, where=own, what_to_do="give the process group a longer timeout")
            late = {rank for rank in missing if self._seen(store, f"{KEY}/at/{rank}") < self._number}
            store.set(f"{KEY}/lost/{self.rank}", "1")
            end, found = time.monotonic() + PATIENCE, 0.0
            while time.monotonic() < end:
                if failed := [rank for rank in sorted(missing) if store.check([f"{KEY}/failed/{rank}"])]:
                    missing, told = {failed[0]}, store.get(f"{KEY}/failed/{failed[0]}").decode()
                    break
                missing = {rank for rank in missing if not store.check([f"{KEY}/lost/{rank}"])}
                if len(missing) <= 1:  # a moment for what it may have to tell
                    found = found or time.monotonic()
                    if time.monotonic() - found > 1.0:
                        break
                time.sleep(0.1)
        except Exception:  # the store lives in rank 0, unless torchrun keeps it
            missing = {0} - {self.rank} or missing
        missing = missing or late
        names = "rank " + ", ".join(map(str, sorted(missing))) if missing else "the connection between the ranks"
        line = (str(error).splitlines() or [""])[0]
        text = re.sub(r"^\[\S+\] ", "", line)[:200].strip()  # without the place in gloo's source
        why = told or f"it died, left or did not answer in time ({text})"
        return ProcessError(f"{names} failed: {why}", where=names, what_to_do="see what that process printed")


ALONE = Group()
_world: list[Group] = []


def world() -> Group:
    """The group of all processes that torch.distributed was initialised with; :data:`ALONE` without any."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return ALONE
    processes = dist.group.WORLD
    known = _world[0]._processes if _world else None
    if known is None or known() is not processes:
        _world[:] = [Group(processes)]
    return _world[0]


@contextmanager
def launched() -> Iterator[Group]:
    """The processes that torchrun, or another launcher that sets its variables, has started; the body is all's.

    A process group is made of them, unless there is one, and destroyed at the end; each rank uses its own GPU.

    Raises:
        BaseException: as in :meth:`Group.together`.
    """
    made = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if made:
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        if gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    group = world()
    try:
        with group.together():
            yield group
    except BaseException as error:
        group.announce(error)
        raise
    finally:
        if made:
            with suppress(Exception):  # of ranks that are gone
                dist.destroy_process_group()
            time.sleep(REST)


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
