"""A file of records that only grows: after a crash each record is whole or not there. Nothing in it can execute code.

Layout: :data:`MAGIC`, then for each record its number of bytes (8, little endian), its body, and the BLAKE2b-128 digest
of both. The body is the number of bytes of a JSON header (4), the header, and the bytes of tensors one after the other,
as the header describes them. Reading ends at the first record that is not whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from layerhess.objective.containers import bytes_of
from layerhess.results.atomic_folder import fsync_folder

MAGIC = b"layerhess journal 1\n"
SYNCED = 2.0  # seconds after which what was written is synced to disk
_NUMBERS = struct.Struct("<QI")  # bytes of the body, and of its header
_DIGEST = 16
_CHUNK = 1 << 20
_DTYPES = {str(dtype): dtype for dtype in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One record: where in the file its header and its tensors begin and it ends, and its kind."""

    header: int
    tensors: int
    end: int
    kind: str


class RecordFile:
    """Records in a file; made by :meth:`create` or :meth:`open`. Their headers are JSON types with a "kind".

    Args:
        clock: returns seconds.

    Attributes:
        entries: the whole records that were there when it was opened. ignored: bytes after them.
    """

    def __init__(self, path: Path, stream: BinaryIO, entries: list[Entry], clock: Callable[[], float]) -> None:
        self.path = path
        self.entries = entries
        self._stream = stream
        self._clock = clock
        self._synced = clock()
        self._end = entries[-1].end if entries else len(MAGIC)
        self.ignored = max(0, stream.seek(0, os.SEEK_END) - self._end)

    @classmethod
    def create(cls, path: Path, header: dict[str, Any], clock: Callable[[], float]) -> RecordFile:
        """A new file with one record, in the place of what ``path`` is; that stays if anything fails.

        Raises:
            OSError: it cannot be written.
        """
        fresh = fresh_name(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = open(fresh, "w+b", buffering=0)  # noqa: SIM115 (held)
        try:
            _write(stream, MAGIC)
            made = cls(path, stream, [], clock)
            made.append(header)
            made.sync()
            stream.close()  # Windows renames no file that is open
            os.replace(fresh, path)
            fsync_folder(path.parent)
            made._stream = open(path, "r+b", buffering=0)  # noqa: SIM115 (held)
        except BaseException:
            stream.close()
            fresh.unlink(missing_ok=True)
            raise
        return made

    @classmethod
    def open(cls, path: Path, clock: Callable[[], float]) -> RecordFile:
        """The file as it is; every record's digest is checked.

        Raises:
            ValueError: not such a file, or not even its first record is whole. OSError: it cannot be read.
        """
        stream = open(path, "r+b", buffering=0)  # noqa: SIM115 (held)
        try:
            if stream.read(len(MAGIC)) != MAGIC:
                raise ValueError("it does not begin as a journal does")
            size = os.fstat(stream.fileno()).st_size
            entries: list[Entry] = []
            while (entry := _checked(stream, size)) is not None:
                entries.append(entry)
            if not entries:
                raise ValueError("its first record is not whole")
        except BaseException:
            stream.close()
            raise
        return cls(path, stream, entries, clock)

    def append(self, header: dict[str, Any], tensors: Sequence[Tensor] = ()) -> None:
        """Write a record at the end of the whole ones. If that fails, the file is as it was.

        Raises:
            OSError: such as a full disk.
        """
        described = [[str(t.dtype), list(t.shape)] for t in tensors]
        text = json.dumps({**header, "tensors": described}).encode()
        size = 4 + len(text) + sum(t.numel() * t.element_size() for t in tensors)
        digest = hashlib.blake2b(digest_size=_DIGEST)
        self._stream.seek(self._end)
        try:
            for piece in (_NUMBERS.pack(size, len(text)) + text, *map(bytes_of, tensors)):
                digest.update(piece)
                _write(self._stream, piece)
            _write(self._stream, digest.digest())
            self._stream.truncate()  # what a torn record left
        except OSError:
            with contextlib.suppress(OSError):
                self._stream.truncate(self._end)
            raise
        self._end += 8 + size + _DIGEST
        if self._clock() - self._synced > SYNCED:
            self.sync()

    def header(self, entry: Entry) -> dict[str, Any]:
        """The header of a record.

        Raises:
            OSError, ValueError: it cannot be read.
        """
        self._stream.seek(entry.header)
        found: dict[str, Any] = json.loads(self._stream.read(entry.tensors - entry.header))
        return found

    def tensors(self, entry: Entry) -> list[Tensor]:
        """The tensors of a record, on the CPU.

        Raises:
            OSError, ValueError: they cannot be read.
        """
        described = self.header(entry)["tensors"]
        made = []
        for name, shape in described:
            tensor = torch.empty(shape, dtype=_DTYPES[name])
            view = memoryview(bytes_of(tensor)).cast("B")
            while view.nbytes:
                if not (count := self._stream.readinto(view)):  # type: ignore[attr-defined]
                    raise ValueError("it ends too early")
                view = view[count:]
            made.append(tensor)
        return made

    def sync(self) -> None:
        """Make sure that what was written survives a power failure."""
        os.fsync(self._stream.fileno())
        self._synced = self._clock()

    def close(self) -> None:
        """Sync and close."""
        with contextlib.suppress(OSError):
            self.sync()
        self._stream.close()


def fresh_name(path: Path) -> Path:
    """Where a file is written before it is renamed to ``path``."""
    return path.with_name(path.name + ".writing")


def digest_of(parts: Iterable[Any]) -> str:
    """The digest of texts and tensors, with the tensors' shapes and dtypes."""
    digest = hashlib.blake2b(digest_size=_DIGEST)
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}\0".encode())
            digest.update(bytes_of(part))
        else:
            digest.update(f"{part}\0".encode())
    return digest.hexdigest()


def _write(stream: BinaryIO, content: Any) -> None:
    view = memoryview(content).cast("B")
    while view.nbytes:  # the system may write less than it was given
        view = view[stream.write(view) :]


def _checked(stream: BinaryIO, size: int) -> Entry | None:
    """The record that begins here; None if none does, or none that is whole."""
    begin = stream.tell()
    head = stream.read(_NUMBERS.size)
    if len(head) < _NUMBERS.size:
        return None
    length, text = _NUMBERS.unpack(head)
    end = begin + 8 + length + _DIGEST
    if end > size or text + 4 > length:
        return None
    content = stream.read(text)
    digest = hashlib.blake2b(head + content, digest_size=_DIGEST)
    left = length - 4 - text
    while left:
        piece = stream.read(min(_CHUNK, left))
        if not piece:
            return None
        digest.update(piece)
        left -= len(piece)
    if stream.read(_DIGEST) != digest.digest():
        return None
    start = begin + _NUMBERS.size
    return Entry(start, start + text, end, json.loads(content)["kind"])
