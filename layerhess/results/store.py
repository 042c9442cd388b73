"""Saves an analysis to a folder, as analysis.json, vectors.safetensors and report.html, and loads it.

The folder is replaced as a whole or not at all (:mod:`layerhess.results.atomic_folder`); after a crash during
replacement the complete analysis is found under its other name. :mod:`layerhess.results.json_format` describes the
files; nothing in them can execute code.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from layerhess.errors import InputError
from layerhess.results import atomic_folder, json_format
from layerhess.results.spectrum import AnalysisRecord

NUMBERS, VECTORS, REPORT = "analysis.json", "vectors.safetensors", "report.html"
OURS = (NUMBERS, VECTORS, REPORT)
COMPARED = ("comparison.json", "comparison.html")
_TRIES = 3  # attempts at reading while a writer replaces the folder


class SaveError(InputError):
    """An analysis could not be written; it is still available as the attribute ``analysis``."""

    analysis: AnalysisRecord


def save(analysis: AnalysisRecord, path: str | Path, report: Callable[[AnalysisRecord], str]) -> Path:
    """Write an analysis into the folder ``path``, atomically as a whole; an analysis already there is replaced.

    Args:
        analysis: what to write, complete or partial.
        path: the folder; missing parents are made. report: makes the page for report.html.

    Returns:
        The folder's absolute path.

    Raises:
        SaveError: an InputError; the folder cannot be written, the disk is full, or ``path`` is something that is not
            an analysis. The previous result, if there was one, is untouched.
    """
    try:
        folder = _usable(path)
        try:
            with atomic_folder.replacing(folder, OURS) as staging:
                _write_files(analysis, report(analysis), staging)
        except OSError as error:
            raise _cannot_write(folder, error) from error
    except InputError as refusal:
        lost = SaveError(refusal.message, where=refusal.where, what_to_do=refusal.what_to_do)
        lost.analysis = analysis
        raise lost from refusal
    return folder


def load(path: str | Path) -> AnalysisRecord:
    """Read an analysis that :func:`save` wrote; after a crash while it was being replaced, the complete one.

    Args:
        path: the folder.

    Returns:
        The analysis, every float64 and every eigenvector component as it was saved.

    Raises:
        InputError: no analysis there, damaged or altered files, or a schema of a newer version.
    """
    folder = _absolute(path)
    found = _present(folder)
    try:
        numbers, vectors = _contents(folder)
    except OSError as error:
        raise _cannot_read(found, error) from error
    return _analysis(found, numbers, vectors)


def check_writable(path: str | Path, expected_bytes: int = 0) -> Path:
    """Check, before any work, that an analysis can be saved as ``path``; leaves nothing behind.

    Args:
        path: the folder that :func:`save` will be given.
        expected_bytes: size of the result to expect; refused when the disk has less free.

    Returns:
        The folder's absolute path.

    Raises:
        InputError: ``path`` is a file or holds something else, its parent cannot be written, or the disk is full.
    """
    folder = _usable(path)
    try:
        with atomic_folder.probing(folder) as probe:
            atomic_folder.write(probe / NUMBERS, b"{}\n")
            free = shutil.disk_usage(probe).free
    except OSError as error:
        raise _cannot_write(folder, error) from error
    if free < expected_bytes:
        raise InputError(
            f"the disk has {free / 1e6:,.0f} MB free and the result will take about {expected_bytes / 1e6:,.0f} MB",
            where=str(folder),
            what_to_do="free some space, choose a folder on another disk, or ask for fewer eigenvectors (top, bottom)",
        )
    return folder


def journal_path(path: str | Path) -> Path:
    """Where the journal of a run lies whose result goes into the folder ``path``: a hidden file beside it."""
    folder = _absolute(path)
    return folder.parent / f".{folder.name}.journal"


def tidy(path: str | Path) -> None:
    """Remove what a process that died while it saved left beside a saved analysis."""
    atomic_folder.tidy(_absolute(path), OURS)


def settings_of(path: str | Path) -> dict[str, Any]:
    """The settings of a saved analysis; empty where none is there.

    Raises:
        InputError: it is damaged.
    """
    folder = _absolute(path)
    if not any((place / NUMBERS).is_file() for place in (folder, atomic_folder.old_name(folder))):
        return {}
    found = _present(folder)
    with _damage(found, NUMBERS):
        settings = json_format.loads((found / NUMBERS).read_bytes()).get("settings")
        if not isinstance(settings, dict):
            raise ValueError("settings is missing")
        return settings


def replace_report(path: str | Path, page: str) -> Path:
    """Put another report.html into the folder of an analysis; the rest is untouched.

    Returns:
        The report's absolute path.

    Raises:
        InputError: no analysis there, or the folder cannot be written.
    """
    folder = _present(_absolute(path))
    try:
        atomic_folder.rewrite(folder / REPORT, page.encode("utf-8"))
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return folder / REPORT


def save_comparison(path: str | Path, numbers: str, page: str) -> Path:
    """Write comparison.json and comparison.html into the folder ``path``, which is replaced as a whole.

    Returns:
        The folder's absolute path.

    Raises:
        InputError: it cannot be written, or holds something else.
    """
    folder = _absolute(path)
    if folder.exists() and not folder.is_dir():
        raise InputError("the output is a file, and a folder is needed", where=str(folder), what_to_do="choose another")
    try:
        if folder.is_dir() and {entry.name for entry in folder.iterdir()} - set(COMPARED):
            raise InputError(
                "the output folder holds something else than a comparison; nothing in it was touched",
                where=str(folder),
                what_to_do="choose a new folder",
            )
        with atomic_folder.replacing(folder, COMPARED) as staging:
            atomic_folder.write(staging / COMPARED[0], numbers.encode("ascii"))
            atomic_folder.write(staging / COMPARED[1], page.encode("utf-8"))
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return folder


def json_text(path: str | Path) -> str:
    """The text of a saved analysis.json, strict JSON with a final newline.

    Raises:
        InputError: no analysis there.
    """
    folder = _present(_absolute(path))
    try:
        return (folder / NUMBERS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _cannot_read(folder, error) from error


# -- writing ----------------------------------------------------------------------------------------------------------


def _write_files(analysis: AnalysisRecord, page: str, folder: Path) -> None:
    document, tensors = json_format.encode(analysis)
    vectors = folder / VECTORS
    _write_tensors(tensors, vectors)
    document["vectors"] = {"file": VECTORS, "sha256": _digest(vectors)}
    atomic_folder.write(folder / NUMBERS, json_format.dumps(document).encode("ascii"))
    atomic_folder.write(folder / REPORT, page.encode("utf-8"))


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        safetensors.torch.save_file(tensors, path)
    except safetensors.SafetensorError as error:
        raise _as_os_error(error) from error
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _as_os_error(error: safetensors.SafetensorError) -> Exception:
    """An OSError where the library reports one, such as a full disk, only as text ("... (os error 28)")."""
    _, found, after = str(error).partition("(os error ")
    code = after.split(")")[0]
    return OSError(int(code), os.strerror(int(code))) if found and code.isdigit() else error


# -- reading ----------------------------------------------------------------------------------------------------------


def _contents(folder: Path) -> tuple[bytes, bytes]:
    """The bytes of both files, of the same analysis even while a writer replaces it."""
    for attempt in range(_TRIES):
        found = _present(folder)
        try:
            numbers = (found / NUMBERS).read_bytes()
            vectors = (found / VECTORS).read_bytes()
            if (found / NUMBERS).read_bytes() == numbers:
                return numbers, vectors
        except FileNotFoundError:
            if attempt == _TRIES - 1:
                raise
    return numbers, vectors


def _analysis(folder: Path, numbers: bytes, vectors: bytes) -> AnalysisRecord:
    with _damage(folder, NUMBERS):
        document = json_format.loads(numbers)
        json_format.check_schema(document)
        digest = json_format.vectors_digest(document)
    with _damage(folder, VECTORS):
        if hashlib.sha256(vectors).hexdigest() != digest:
            raise ValueError("its contents are not those that were saved with analysis.json (checksum)")
        tensors = safetensors.torch.load(vectors)
    with _damage(folder, NUMBERS):
        return json_format.decode(document, tensors)


@contextlib.contextmanager
def _damage(folder: Path, name: str) -> Iterator[None]:
    try:
        yield
    except json_format.NewerSchemaError as error:
        raise InputError(
            str(error), where=str(folder / name), what_to_do="update layerhess: pip install --upgrade layerhess"
        ) from error
    except (ValueError, RecursionError, OverflowError, safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise InputError(
            f"this saved analysis cannot be read: {error}",
            where=str(folder / name),
            what_to_do="restore the file from a copy, or run the analysis again",
        ) from error


def _present(folder: Path) -> Path:
    """The folder that holds the analysis: under its own name or, after a crash, under the other."""
    for candidate in (folder, atomic_folder.old_name(folder)):
        if (candidate / NUMBERS).is_file():
            return candidate
    if folder.is_file():
        raise InputError(
            "this is a file, not the folder of an analysis", where=str(folder), what_to_do=f"give {folder.parent}"
        )
    what = "this folder holds no analysis.json" if folder.is_dir() else "there is no such folder"
    raise InputError(what, where=str(folder), what_to_do="give the folder that save() or --out was given")


# -- names and refusals -----------------------------------------------------------------------------------------------


def _absolute(path: str | Path) -> Path:
    return Path(path).expanduser().resolve()


def _usable(path: str | Path) -> Path:
    """The absolute path of a folder that may be replaced: missing, empty, or an analysis."""
    if not str(path).strip():
        raise InputError("the output folder has no name", where="out", what_to_do="give a folder, such as results/run1")
    folder = _absolute(path)
    choose = f"choose a new folder, such as {folder.parent / (folder.name + '-analysis')}"
    if folder == folder.parent or folder == Path.cwd():
        name = "the root folder" if folder == folder.parent else "the current folder"
        raise InputError(
            f"{name} cannot be replaced by an analysis", where=str(folder), what_to_do=f"choose {folder / 'analysis'}"
        )
    for above in folder.parents:
        if above.exists() and not above.is_dir():
            raise InputError(f"{above} is a file, not a folder", where=str(folder), what_to_do="choose another folder")
    if not folder.exists():
        return folder
    if not folder.is_dir():
        raise InputError("the output is a file, and a folder is needed", where=str(folder), what_to_do=choose)
    if os.path.ismount(folder):
        raise InputError(
            "the output folder is a mount point, which cannot be replaced as a whole",
            where=str(folder),
            what_to_do=f"choose a folder inside it, such as {folder / 'analysis'}",
        )
    try:
        filled = any(folder.iterdir())
        if filled and not _is_analysis(folder):
            raise InputError(
                "the output folder is not empty and holds no analysis; nothing in it was touched",
                where=str(folder),
                what_to_do=choose,
            )
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return folder


def _is_analysis(folder: Path) -> bool:
    numbers = folder / NUMBERS
    if not numbers.is_file():
        return False
    try:
        return json_format.is_ours(json_format.loads(numbers.read_bytes()))
    except (ValueError, RecursionError):
        return False


def _cannot_write(folder: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        message, advice = f"the disk is full ({reason})", "free some space or choose a folder on another disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        message, advice = f"the folder cannot be written ({reason})", "choose a folder you may write to"
    else:
        message, advice = f"the analysis could not be written ({reason})", "choose another folder"
    return InputError(
        f"{message}; what was there before is untouched", where=str(folder), what_to_do=advice + ", with out= or --out"
    )


def _cannot_read(folder: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(
        f"this saved analysis cannot be read ({reason})",
        where=str(folder),
        what_to_do="check that the folder is complete and that you may read it",
    )
