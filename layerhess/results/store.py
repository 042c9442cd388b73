"""Saves an analysis to a folder, as analysis.json, vectors.safetensors and report.html, and loads it.

The folder is replaced as a whole or not at all (:mod:`layerhess.results.atomic_folder`); after a crash during
replacement the complete analysis is found under its other name. :mod:`layerhess.results.json_format` describes the
files; nothing in them can execute code.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from layerhess.errors import InputError
from layerhess.results import atomic_folder, json_format, result_folder
from layerhess.results.result_folder import ANALYSIS
from layerhess.results.spectrum import AnalysisRecord

OURS = ANALYSIS.files
NUMBERS, VECTORS, REPORT = OURS
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
        folder = result_folder.usable(path, ANALYSIS)
        try:
            with atomic_folder.replacing(folder, OURS) as staging:
                _write_files(analysis, report(analysis), staging)
        except OSError as error:
            raise result_folder.cannot_write(folder, error, ANALYSIS) from error
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
    folder = result_folder.absolute(path)
    found = result_folder.present(folder, ANALYSIS)
    try:
        numbers, vectors = _contents(folder)
    except OSError as error:
        raise result_folder.cannot_read(found, error, ANALYSIS) from error
    return _analysis(found, numbers, vectors)


def check_writable(path: str | Path, expected_bytes: int = 0) -> Path:
    """Check, before any work, that an analysis can be saved as ``path``: see :func:`result_folder.check_writable`."""
    return result_folder.check_writable(path, ANALYSIS, expected_bytes)


def journal_path(path: str | Path) -> Path:
    """Where the journal of a run lies whose result goes into the folder ``path``: a hidden file beside it."""
    folder = result_folder.absolute(path)
    return folder.parent / f".{folder.name}.journal"


def tidy(path: str | Path) -> None:
    """Remove what a process that died while it saved left beside a saved analysis."""
    atomic_folder.tidy(result_folder.absolute(path), OURS)


def settings_of(path: str | Path) -> dict[str, Any]:
    """The settings of a saved analysis; empty where none is there.

    Raises:
        InputError: it is damaged.
    """
    folder = result_folder.absolute(path)
    if not any((place / NUMBERS).is_file() for place in (folder, atomic_folder.old_name(folder))):
        return {}
    found = result_folder.present(folder, ANALYSIS)
    with result_folder.damage(found, NUMBERS, ANALYSIS):
        settings = json_format.loads((found / NUMBERS).read_bytes()).get("settings")
        if not isinstance(settings, dict):
            raise ValueError("settings is missing")
        return settings


def replace_report(path: str | Path, page: str) -> Path:
    """Put another report.html into the folder of an analysis: see :func:`result_folder.replace_report`."""
    return result_folder.replace_report(path, page, ANALYSIS)


def save_comparison(path: str | Path, numbers: str, page: str) -> Path:
    """Write comparison.json and comparison.html into the folder ``path``, which is replaced as a whole.

    Returns:
        The folder's absolute path.

    Raises:
        InputError: it cannot be written, or holds something else.
    """
    folder = result_folder.absolute(path)
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
        raise result_folder.cannot_write(folder, error, ANALYSIS) from error
    return folder


def json_text(path: str | Path) -> str:
    """The text of a saved analysis.json: see :func:`result_folder.text_of`."""
    return result_folder.text_of(path, ANALYSIS)


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
    """An OSError where the library reports one, such as a full disk, only as text."""
    found = re.search(r"\(os error (\d+)\)|Os \{ code: (\d+)", str(error))  # the second is safetensors 0.4
    if found is None:
        return error
    code = int(found[1] or found[2])
    return OSError(code, os.strerror(code), None, code)  # Windows, which counts otherwise, reads the last


# -- reading ----------------------------------------------------------------------------------------------------------


def _contents(folder: Path) -> tuple[bytes, bytes]:
    """The bytes of both files, of the same analysis even while a writer replaces it."""
    for attempt in range(_TRIES):
        found = result_folder.present(folder, ANALYSIS)
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
    with result_folder.damage(folder, NUMBERS, ANALYSIS):
        document = json_format.loads(numbers)
        json_format.check_schema(document)
        digest = json_format.vectors_digest(document)
    with result_folder.damage(folder, VECTORS, ANALYSIS):
        if hashlib.sha256(vectors).hexdigest() != digest:
            raise ValueError("its contents are not those that were saved with analysis.json (checksum)")
        tensors = safetensors.torch.load(vectors)
    with result_folder.damage(folder, NUMBERS, ANALYSIS):
        return json_format.decode(document, tensors)
