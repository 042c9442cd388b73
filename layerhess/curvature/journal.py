"""The journal of a run: the sums of every pass over the data are written down as they are made, and told again.

A run is a sequence of questions (which products?) and answers (sums over the data); everything else follows from them
and from the arguments. So the journal holds the answers, and what memory or clocks decided. A run that is resumed asks
the same questions again: each is answered from the journal, without a batch, for as long as it has answers. What the
resumed run asks is compared by digest, bit by bit, so that an answer never meets another question.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerhess.curvature.counters import Counters
from layerhess.curvature.record_file import Entry, RecordFile, fresh_name
from layerhess.curvature.totals import Totals
from layerhess.errors import InputError
from layerhess.objective.group import ALONE, Group

BEGIN, SETTLED, PASS = "begin", "settled", "pass"  # kinds of records


class Journal:
    """Answers to what was asked before; writes down what is asked now. Without a path it does neither.

    Of several ranks the first one writes and reads, and tells the others.

    Args:
        path: of the file; None for no journal, and on all ranks but the first. resume: go on from it, where it exists;
            else it is replaced when the first pass begins. counters: what a pass took is written down with its sums,
            and counted again.

    Attributes:
        known: identity of the run that is resumed, None if there is none. replayed: passes told again so far.
        passes: how many are written down. failure: why nothing more is written, in a sentence, or "".

    Raises:
        InputError: the journal cannot be read, not even its first record.
    """

    def __init__(self, path: Path | None, counters: Counters, *, resume: bool = False, group: Group = ALONE) -> None:
        self.path = path
        self._group = group
        self.replayed, self.passes, self._known = 0, 0, 0
        self.failure = ""
        self.known: dict[str, Any] | None = None
        self._counters = counters
        self._settled: dict[str, Any] = {}
        self._watched: list[tuple[set[str], Callable[[str], None]]] = []
        self._file: RecordFile | None = None
        self._answers: list[Entry] = []  # that were there when the file was opened
        self._room = 0  # bytes that must stay free on the disk
        self.active = False
        if resume:
            group.tried(lambda: self._open(path) if path is not None and path.exists() else None)
            self.known, self._settled, self.passes = group.agreed((self.known, self._settled, self.passes))
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
        if self.known is not None:
            return
        if self.path is not None:
            header = {"kind": BEGIN, "identity": identity, "settled": self._settled}
            try:
                self._file = RecordFile.create(self.path, header, self._counters.clock)
            except OSError as error:
                self._fail(error)
        self.active = self._group.agreed(self._file is not None)

    def settled(self, key: str, value: Any) -> Any:
        """The value (JSON types), or what it was when the run got here for the first time.

        For what memory or clocks decide, and what numbers depend on. Ranks give the same value. False is not written
        down: it is what holds where nothing else is known.
        """
        if key in self._settled:
            return self._settled[key]
        if value is not False:
            self._settled[key] = value
            self._append({"kind": SETTLED, "key": key, "value": value})
        return value

    # -- passes --------------------------------------------------------------------------------------------------------

    @property
    def replaying(self) -> bool:
        """Whether the next pass is told from the journal."""
        return self.replayed < self._known

    def once(
        self,
        asked: str,
        make: Callable[[], Totals],
        device: torch.device | None = None,
        state: Callable[[], dict[str, Any]] = dict,
    ) -> tuple[Totals, dict[str, Any] | None]:
        """The sums of one pass over the data: from the journal if they are there, else made and written down.

        Args:
            asked: digest of the question, see :func:`layerhess.curvature.record_file.digest_of`. make: makes the pass.
            device: of sums that are told again. state: what the pass left behind (JSON types).

        Returns:
            The sums; and the ``state`` of a pass that was told again, None of one that was made.

        Raises:
            InputError: the journal's next answer is to another question, or cannot be read.
        """
        if self.replaying:
            return self._tell(asked, device)
        before = self._counters.reading()
        totals = make()
        if self.active:
            totals.lay_out()
            watched = [sorted(found) for found, _ in self._watched]
            own = {"state": state(), "spent": self._counters.spent(before), "watched": watched}
            ranks = self._group.gathered(own)
            if self._file is not None:
                kept, tensors = totals.content()
                self._append({"kind": PASS, "asked": asked, "totals": kept, "ranks": ranks}, tensors)
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
            first = self._file.header(self._file.entries[0])
            self.known, self._settled = first["identity"], first["settled"]
            for entry in self._file.entries:
                if entry.kind == SETTLED:
                    header = self._file.header(entry)
                    self._settled[header["key"]] = header["value"]
            self._answers = [entry for entry in self._file.entries if entry.kind == PASS]
            self.passes = len(self._answers)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(path, error) from error

    def _tell(self, asked: str, device: torch.device | None) -> tuple[Totals, dict[str, Any]]:
        header, tensors = self._group.agreed(self._group.tried(lambda: self._answer(asked)))
        totals = Totals.of(header["totals"], tensors, device)
        own = header["ranks"][self._group.rank]
        self._counters.spend(own["spent"])
        for names, (_, find) in zip(own["watched"], self._watched, strict=True):
            for name in names:
                find(name)
        self.replayed += 1
        state: dict[str, Any] = own["state"]
        return totals, state

    def _answer(self, asked: str) -> tuple[dict[str, Any], list[Tensor]]:
        """The next answer, on the rank that has the file."""
        if self._file is None or self.path is None:
            return {}, []
        entry = self._answers[self.replayed]
        try:
            header = self._file.header(entry)
            tensors = self._file.tensors(entry)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(self.path, error) from error
        if header["asked"] != asked:
            raise InputError(
                f"pass {self.replayed + 1} of the run that stopped asked something else than this one: this machine or "
                "library computes other last digits, or the program has changed",
                where=str(self.path),
                what_to_do="resume where the run began, or begin anew without resume",
            )
        return header, tensors

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
