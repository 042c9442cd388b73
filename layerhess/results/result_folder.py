"""Folders of results, an analysis or a plan: which may be written, which is there, and what is said where it fails."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors

from layerhess.errors import InputError
from layerhess.results import atomic_folder, json_format

REPORT = "report.html"


@dataclass(frozen=True)
class Kind:
    """What a folder holds.

    Attributes:
        noun: "analysis", "plan". numbers: its file of numbers. format: by which that file is known.
        files: all files that are written, and deleted with an old folder. smaller: what makes the result smaller.
    """

    noun: str
    numbers: str
    format: str
    files: tuple[str, ...]
    smaller: str = "choose a folder on another disk"

    @property
    def article(self) -> str:
        """Before the noun."""
        return "an" if self.noun[0] in "aeiou" else "a"


ANALYSIS = Kind(
    "analysis",
    "analysis.json",
    json_format.FORMAT,
    ("analysis.json", "vectors.safetensors", REPORT),
    "choose a folder on another disk, or ask for fewer eigenvectors (top, bottom)",
)
PLAN = Kind("plan", "plan.json", "layerhess plan", ("plan.json", "table.csv", REPORT))


def absolute(path: str | Path) -> Path:
    """With the home folder and links resolved."""
    return Path(path).expanduser().resolve()


def kind_of(folder: Path) -> Kind | None:
    """What is saved in a folder, by its file of numbers; None for anything else."""
    for kind in (ANALYSIS, PLAN):
        numbers = folder / kind.numbers
        with contextlib.suppress(ValueError, RecursionError):
            if numbers.is_file() and json_format.is_ours(json_format.loads(numbers.read_bytes()), kind.format):
                return kind
    return None


def usable(path: str | Path, kind: Kind) -> Path:
    """The absolute path of a folder that may be replaced: missing, empty, or of the same kind.

    Raises:
        InputError: it is something else.
    """
    if not str(path).strip():
        raise InputError("the output folder has no name", where="out", what_to_do="give a folder, such as results/run1")
    folder = absolute(path)
    choose = f"choose a new folder, such as {folder.parent / f'{folder.name}-{kind.noun}'}"
    if folder == folder.parent or folder == Path.cwd():
        name = "the root folder" if folder == folder.parent else "the current folder"
        raise InputError(
            f"{name} cannot be replaced by {kind.article} {kind.noun}",
            where=str(folder),
            what_to_do=f"choose {folder / kind.noun}",
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
            what_to_do=f"choose a folder inside it, such as {folder / kind.noun}",
        )
    try:
        found = kind_of(folder) if any(folder.iterdir()) else kind
    except OSError as error:
        raise cannot_write(folder, error, kind) from error
    if found is not kind:
        other = f"the output folder holds {found.article} {found.noun}, not {kind.article} {kind.noun}" if found else ""
        what = other or f"the output folder is not empty and holds no {kind.noun}"
        raise InputError(f"{what}; nothing in it was touched", where=str(folder), what_to_do=choose)
    return folder


def check_writable(path: str | Path, kind: Kind, expected_bytes: int = 0) -> Path:
    """Check, before any work, that a result can be saved as ``path``; leaves nothing behind.

    Args:
        path: the folder that it will be saved as.
        expected_bytes: size of the result to expect; refused when the disk has less free.

    Returns:
        The folder's absolute path.

    Raises:
        InputError: ``path`` is a file or holds something else, its parent cannot be written, or the disk is full.
    """
    folder = usable(path, kind)
    try:
        with atomic_folder.probing(folder) as probe:
            atomic_folder.write(probe / kind.numbers, b"{}\n")
            free = shutil.disk_usage(probe).free
    except OSError as error:
        raise cannot_write(folder, error, kind) from error
    if free < expected_bytes:
        raise InputError(
            f"the disk has {free / 1e6:,.0f} MB free and the result will take about {expected_bytes / 1e6:,.0f} MB",
            where=str(folder),
            what_to_do=f"free some space, {kind.smaller}",
        )
    return folder


def present(folder: Path, kind: Kind) -> Path:
    """The folder that holds a result: under its own name or, after a crash, under the other.

    Raises:
        InputError: there is none, or something else.
    """
    for candidate in (folder, atomic_folder.old_name(folder)):
        if (candidate / kind.numbers).is_file():
            return candidate
    if folder.is_file():
        raise InputError(
            f"this is a file, not the folder of {kind.article} {kind.noun}",
            where=str(folder),
            what_to_do=f"give {folder.parent}",
        )
    other = kind_of(folder) if folder.is_dir() else None
    if other is not None:
        raise InputError(
            f"this folder holds {other.article} {other.noun}, not {kind.article} {kind.noun}",
            where=str(folder),
            what_to_do=f"give the folder of {kind.article} {kind.noun}, or load it with {LOADED_WITH[other.noun]}",
        )
    what = f"this folder holds no {kind.numbers}" if folder.is_dir() else "there is no such folder"
    raise InputError(what, where=str(folder), what_to_do="give the folder that save() or --out was given")


LOADED_WITH = {"analysis": "lh.load(folder)", "plan": "lh.load_plan(folder)"}


def text_of(path: str | Path, kind: Kind) -> str:
    """The text of a saved file of numbers, strict JSON with a final newline.

    Raises:
        InputError: there is none.
    """
    folder = present(absolute(path), kind)
    try:
        return (folder / kind.numbers).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise cannot_read(folder, error, kind) from error


def replace_report(path: str | Path, page: str, kind: Kind) -> Path:
    """Put another report.html into a saved folder; the rest is untouched.

    Returns:
        The report's absolute path.

    Raises:
        InputError: nothing of the kind there, or the folder cannot be written.
    """
    folder = present(absolute(path), kind)
    try:
        atomic_folder.rewrite(folder / REPORT, page.encode("utf-8"))
    except OSError as error:
        raise cannot_write(folder, error, kind) from error
    return folder / REPORT


@contextlib.contextmanager
def damage(folder: Path, name: str, kind: Kind) -> Iterator[None]:
    """Whatever is wrong with a file's content is said in a sentence that names it."""
    try:
        yield
    except json_format.NewerSchemaError as error:
        raise InputError(
            str(error), where=str(folder / name), what_to_do="update layerhess: pip install --upgrade layerhess"
        ) from error
    except (ValueError, RecursionError, OverflowError, safetensors.SafetensorError, json.JSONDecodeError) as error:
        again = "run the analysis again" if kind is ANALYSIS else "make the plan again"
        raise InputError(
            f"this saved {kind.noun} cannot be read: {error}",
            where=str(folder / name),
            what_to_do=f"restore the file from a copy, or {again}",
        ) from error


def cannot_write(folder: Path, error: OSError, kind: Kind) -> InputError:
    """The refusal for a failed write."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        message, advice = f"the disk is full ({reason})", "free some space or choose a folder on another disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        message, advice = f"the folder cannot be written ({reason})", "choose a folder you may write to"
    else:
        message, advice = f"the {kind.noun} could not be written ({reason})", "choose another folder"
    return InputError(
        f"{message}; what was there before is untouched", where=str(folder), what_to_do=advice + ", with out= or --out"
    )


def cannot_read(folder: Path, error: Exception, kind: Kind) -> InputError:
    """The refusal for a failed read."""
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(
        f"this saved {kind.noun} cannot be read ({reason})",
        where=str(folder),
        what_to_do="check that the folder is complete and that you may read it",
    )
