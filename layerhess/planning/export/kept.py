"""A file that is written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from layerhess.errors import InputError


def file_at(path: str | os.PathLike[str], name: str) -> Path:
    """The file that is meant: ``name`` in a folder that is there, or the path itself.

    Raises:
        InputError: its folder cannot be made.
    """
    file = Path(path)
    file = file / name if file.is_dir() else file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder of {file} cannot be made: {error}", where="path") from error
    return file


def write(file: Path, text: str) -> None:
    """Write beside it, then rename.

    Raises:
        InputError: it cannot be written.
    """
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, file)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InputError(f"{file} cannot be written: {error}", where="path") from error


def as_text(content: dict[str, Any]) -> str:
    """JSON as a file holds it."""
    return json.dumps(content, indent=2) + "\n"
