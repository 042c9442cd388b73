"""The journal of a run: the sums of every pass over the data are written down as they are made, and told again.

A run is a sequence of questions (which products?) and answers (sums over the data); everything else follows from them
and from the arguments. So the journal holds the answers, and what memory or clocks decided. A run that is resumed asks
the same questions again: those that the journal knows are answered from it, without a batch. What the resumed run asks
is compared by digest, bit by bit, so that an answer never meets another question.

Other processes, another number of threads or another CPU may go on with a run. A sum over the data is theirs too, of
vectors that agree up to their last digits; how batches are cut and kept is not, nor what has entries of batches.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from layerhess.curvature.counters import Counters
from layerhess.curvature.question import Question
from layerhess.curvature.record_file import Entry, RecordFile, fresh_name
from layerhess.curvature.totals import Totals
from layerhess.errors import InputError
from layerhess.objective.group import ALONE, Group

BEGIN, RESUMED, SETTLED, PASS = "begin", "resumed", "settled", "pass"  # kinds of records


@dataclass(frozen=True)
class _Answer:
    """A pass that was written down: where, what it was asked, and whether these processes on this machine made it."""

    entry: Entry
    asked: Question
    here: bool

    def answers(self, asked: Question) -> bool:
        """Whether it may be told: here what was asked bit by bit, elsewhere what is not of single batches."""
        if self.here:
            return (self.asked.exact, self.asked.by_batch) == (asked.exact, asked.by_batch)
        return not asked.by_batch and self.asked.is_close(asked)


class Journal:
    """Answers to what was asked before; writes down what is asked now. Without a path it does neither.

    Of several ranks the first one writes and reads, and tells the others.

    Args:
        path: of the file; None for no journal, and on all ranks but the first. resume: go on from it, where it exists;
            else it is replaced when the first pass begins. counters: what a pass took is written down with its sums,
            and counted again. machine: what last digits, and shares of the data, depend on (JSON types).

    Attributes:
        known: identity of the run that is resumed, None if there is none. replayed: passes told again so far.
        passes: how many are written down. spoilt: the data is no longer what it was when they were.
        failure: why nothing more is written, in a sentence, or "".

    Raises:
        InputError: the journal cannot be read, not even its first record.
    """

    def __init__(
        self,
        path: Path | None,
        counters: Counters,
        *,
        resume: bool = False,
        group: Group = ALONE,
        machine: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.path = path
        self._group = group
        self._machine = dict(machine)
        self.replayed, self.passes, self._known = 0, 0, 0
        self._missed = False  # something was asked that the journal does not know
        self.failure, self.spoilt = "", False
        self.known: dict[str, Any] | None = None
        self._counters = counters
        self._settled: dict[str, Any] = {}
        self._here: dict[str, Any] = {}  # the same, of what holds for this machine and its processes
        self._same = True  # they are those that wrote last
        self._watched: list[tuple[set[str], Callable[[str], None]]] = []
        self._file: RecordFile | None = None
        self._answers: list[_Answer] = []  # that were there when the file was opened, and were not told yet
        self._room = 0  # bytes that must stay free on the disk
        self.active = False
        if resume:
            group.tried(lambda: self._open(path) if path is not None and path.exists() else None)
            self.known, self._settled, self._here, self._same, self.passes = group.agreed(
                (self.known, self._settled, self._here, self._same, self.passes)
            )
            self._known = self.passes
            self.active = self.known is not None

    # -- a run begins ------------------------------------------------------------------------------------------------

    def watch(self, found: set[str], find: Callable[[str], None]) -> None:
        """Names that passes find: written down after each, and found again when it is told again."""
        self._watched.append((found, find))

    def begin(self, identity: dict[str, Any], room: int = 0) -> None:
        """Go on with the run whose journal was opened, or begin to write one.

        Args:
            identity: of this run. room: bytes on the disk to leave free, for the result.
        """
        self._room = room
        own = {"settled": self._settled, "here": self._here, "machine": self._machine}
        if self.known is not None:
            same, self._same = self._same, True
            if not same:
                self._append({"kind": RESUMED, **own})
            return
        if self.path is not None:
            header = {"kind": BEGIN, "identity": identity, **own}
            try:
                self._file = RecordFile.create(self.path, header, self._counters.clock)
            except OSError as error:
                self._fail(error)
        self.active = self._group.agreed(self._file is not None)

    def settled(self, key: str, value: Any, *, here: bool = False) -> Any:
        """The value (JSON types), or what it was when the run got here for the first time.

        For what memory or clocks decide, and what numbers depend on. Ranks give the same value. False is not written
        down: it is what holds where nothing else is known.

        Args:
            here: it holds for this machine and number of processes; others decide anew.
        """
        known = self._here if here else self._settled
        if key in known:
            return known[key]
        if value is not False:
            known[key] = value
            if self._same:  # else with all the others, once the run goes on
                self._append({"kind": SETTLED, "key": key, "value": value, "here": here})
        return value

    # -- passes --------------------------------------------------------------------------------------------------------

    @property
    def replaying(self) -> bool:
        """Whether the next pass is told from the journal, as far as one knows."""
        return self.replayed < self._known and not self._missed

    @property
    def notes(self) -> list[str]:
        """What a result should say of its journal, in sentences."""
        found = [self.failure] if self.failure else []
        if self._missed:
            found.append(
                f"resumed: {self.replayed} of the {self._known} passes of the run that stopped were told again; the "
                "others were made anew: with other processes, threads or another CPU it asks something else"
            )
        return found

    def once(
        self,
        asked: Question | None,
        make: Callable[[], Totals],
        device: torch.device | None = None,
        state: Callable[[], dict[str, Any]] = dict,
    ) -> tuple[Totals, dict[str, Any] | None]:
        """The sums of one pass over the data: from the journal if they are there, else made and written down.

        Args:
            asked: the question; not needed where nothing is told or written down. make: makes the pass.
            device: of sums that are told again. state: what the pass left behind (JSON types).

        Returns:
            The sums; and the ``state`` of a pass that was told again (empty where others made it), None of one that was
            made.

        Raises:
            InputError: the journal's answer cannot be read.
        """
        if self.replayed < self._known and asked is not None:
            if (told := self._group.agreed(self._group.tried(lambda: self._answer(asked)))) is not None:
                return self._tell(*told, device)
            self._missed = True
        before = self._counters.reading()
        totals = make()
        found = self._find_all()
        if self.active and asked is not None:
            totals.lay_out()
            ranks = self._group.gathered({"state": state(), "spent": self._counters.spent(before)})
            if self._file is not None:
                kept, tensors = totals.content()
                self._append(
                    {"kind": PASS, "asked": asked.written(), "totals": kept, "ranks": ranks, "found": found}, tensors
                )
                self.passes += not self.failure
        return totals, None

    def close(self) -> None:
        """Leave the file where it is, for another run to go on from."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self.active = False

    def remove(self) -> None:
        """Close the file and delete it: the result is there."""
        self.close()
        if self.path is not None:
            for path in (self.path, fresh_name(self.path)):
                path.unlink(missing_ok=True)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _open(self, path: Path) -> None:
        try:
            self._file = RecordFile.open(path, self._counters.clock)
            for entry in self._file.entries:
                header = self._file.header(entry)
                if entry.kind in (BEGIN, RESUMED):
                    self._same = header["machine"] == self._machine
                    self._settled |= header["settled"]
                    self._here |= header["here"] if self._same else {}
                    self.known = header["identity"] if entry.kind == BEGIN else self.known
                elif entry.kind == SETTLED and (self._same or not header["here"]):
                    (self._here if header["here"] else self._settled)[header["key"]] = header["value"]
                elif entry.kind == PASS:
                    self._answers.append(_Answer(entry, Question.read(header["asked"]), self._same))
            self.passes = len(self._answers)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(path, error) from error

    def _find_all(self) -> list[list[str]]:
        """What any rank has found, found on all of them."""
        every = self._group.gathered([sorted(found) for found, _ in self._watched]) if self._watched else []
        union = [sorted({name for own in names for name in own}) for names in zip(*every, strict=True)]
        self._find(union)
        return union

    def _find(self, found: Sequence[Sequence[str]]) -> None:
        for names, (_, find) in zip(found, self._watched, strict=True):
            for name in names:
                find(name)

    def _tell(
        self, header: dict[str, Any], tensors: list[Tensor], here: bool, device: torch.device | None
    ) -> tuple[Totals, dict[str, Any]]:
        own = header["ranks"][self._group.rank if here else 0]
        self._counters.spend(own["spent"])
        self._find(header["found"])
        self.replayed += 1
        state: dict[str, Any] = own["state"] if here else {}
        return Totals.of(header["totals"], tensors, device), state

    def _answer(self, asked: Question) -> tuple[dict[str, Any], list[Tensor], bool] | None:
        """The next answer to this question, on the rank that has the file; None where there is none."""
        answer = next((own for own in self._answers if own.answers(asked)), None)
        if answer is None:
            return None
        assert self._file is not None and self.path is not None
        self._answers.remove(answer)
        try:
            return self._file.header(answer.entry), self._file.tensors(answer.entry), answer.here
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(self.path, error) from error

    def _append(self, header: dict[str, Any], tensors: Sequence[Tensor] = ()) -> None:
        if self._file is None or self.failure:
            return
        try:
            size = sum(t.numel() * t.element_size() for t in tensors)
            if size + self._room > shutil.disk_usage(self._file.path.parent).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._file.append(header, tensors)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        kept = "" if self._file is None else f"; resume would go on after pass {self.passes}"
        self.failure = (
            f"the journal {self.path} could not be written ({error.strerror or error}), so that passes from here on "
            f"would have to be made again after a crash{kept}"
        )


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(
        f"the journal of the run that is to be resumed cannot be read: {reason}",
        where=str(path),
        what_to_do="restore the file from a copy, or begin anew without resume",
    )
