"""Replaces a folder on disk as a whole or not at all, even if the program crashes; its content does not matter.

How: the new folder is written as a hidden sibling and fsynced; then the old folder is renamed to a fixed hidden name
(``.NAME.old``), the new one is renamed to the real name, and the old one is deleted. Whatever happens in between, one
complete folder stays under one of the two names. Other files that were put into the old folder are moved into the new
one; they are never deleted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

WRITING, PROBE = "writing", "probe"  # kinds of folders that are never left behind, but by a process that dies
_STALE_SECONDS = 3600.0  # such a folder older than this was left by one, where nothing else is known
# Windows renames nothing that is open, and what searches for viruses opens what is new for a moment.
_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8) if os.name == "nt" else ()
_UNFINISHED = re.compile(r"\.tmp\w+")  # what safetensors writes before it renames, from 0.8 on
_MACHINE = zlib.crc32(socket.gethostname().encode())


@contextlib.contextmanager
def replacing(folder: Path, ours: tuple[str, ...]) -> Iterator[Path]:
    """Yield an empty staging folder, which becomes ``folder`` if the body succeeds. Otherwise nothing changes.

    Args:
        folder: absolute path; missing parents are made.
        ours: the file names that the body may write, and that are deleted with an old folder.

    Raises:
        OSError: writing failed; ``folder`` is as it was.
    """
    staging = _own(folder, WRITING)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep_stale(folder, ours)
        staging.mkdir()
        yield staging
        fsync_folder(staging)
        _swap(staging, folder, ours)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def probing(folder: Path) -> Iterator[Path]:
    """Yield a folder next to where ``folder`` would be made, to test writing; it is removed afterwards.

    Raises:
        OSError: none can be made there.
    """
    parent = folder.parent
    while not parent.exists():
        parent = parent.parent
    probe = _own(parent / folder.name, PROBE)
    try:
        probe.mkdir()
        yield probe
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def tidy(folder: Path, ours: tuple[str, ...]) -> None:
    """Remove what a writer that died left beside a ``folder`` that is complete."""
    _sweep_stale(folder, ours)
    if folder.exists() and old_name(folder).exists():
        with contextlib.suppress(OSError):
            _discard(old_name(folder), folder, ours)


def old_name(folder: Path) -> Path:
    """The other name under which a folder may be found after a crash while it was being replaced."""
    return folder.parent / f".{folder.name}.old"


def write(path: Path, content: bytes) -> None:
    """Write a file and sync it to disk."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def rewrite(path: Path, content: bytes) -> None:
    """Replace one file atomically."""
    fresh = path.with_name(f".{path.name}.writing-{uuid.uuid4().hex[:12]}")
    try:
        write(fresh, content)
        os.replace(fresh, path)
        fsync_folder(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Sync the folder's entries to disk (where the system can open folders)."""
    if os.name == "nt":  # pragma: no cover
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # as on some network shares, which sync no folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _rename(source: Path, target: Path) -> None:
    for pause in _PAUSES:
        try:
            return os.rename(source, target)
        except PermissionError:
            time.sleep(pause)
    os.rename(source, target)


def _swap(staging: Path, folder: Path, ours: tuple[str, ...]) -> None:
    """Put ``staging`` where ``folder`` is; on any failure the old folder is back under its name."""
    old = old_name(folder)
    if folder.exists():
        if old.exists():  # left by a crash after the second rename: ``folder`` is the newer of the two
            _discard(old, folder, ours)
        if any(folder.iterdir()):
            _rename(folder, old)
        else:
            folder.rmdir()
    try:
        _rename(staging, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            _rename(old, folder)
        raise
    fsync_folder(folder.parent)
    if old.exists():
        with contextlib.suppress(OSError):  # the new one is in place; the next replacement tries again
            _discard(old, folder, ours)


def _discard(old: Path, into: Path, ours: tuple[str, ...]) -> None:
    """Delete our files in an old folder; move all others into the new one."""
    for entry in list(old.iterdir()):
        if entry.name in ours:
            entry.unlink()
            continue
        target = into / entry.name
        while target.exists():
            target = target.with_name(target.name + ".old")
        _rename(entry, target)
    old.rmdir()


def _sweep_stale(folder: Path, ours: tuple[str, ...]) -> None:
    """Remove what a process that died while writing left next to ``folder``, if it has only our files in it."""
    escaped = "".join(f"[{c}]" if c in "*?[" else c for c in folder.name)
    for kind in (WRITING, PROBE):
        for entry in folder.parent.glob(f".{escaped}.{kind}-*"):
            with contextlib.suppress(OSError):
                names = [inner.name for inner in entry.iterdir()]
                if _is_stale(entry) and all(name in ours or _UNFINISHED.fullmatch(name) for name in names):
                    shutil.rmtree(entry)


def _own(folder: Path, kind: str) -> Path:
    """A hidden name beside ``folder`` that no other process takes, and that says whose it is."""
    return folder.parent / f".{folder.name}.{kind}-{_MACHINE:08x}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _is_stale(entry: Path) -> bool:
    found = re.search(r"-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}$", entry.name)
    if found is not None and int(found[1], 16) == _MACHINE and os.name != "nt":
        try:
            os.kill(int(found[2]), 0)  # asks whether there is such a process
        except ProcessLookupError:
            return True
        except OSError:  # there is, and it is another user's
            pass
    return time.time() - entry.stat().st_mtime > _STALE_SECONDS
