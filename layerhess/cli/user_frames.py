"""Finds out whether an exception comes from the user's code, and names the place in its traceback."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from functools import cache
from pathlib import Path

import layerhess
from layerhess.errors import InputError, notes_of

# Module that a user's file may import -> the extra that brings it.
EXTRAS = {
    "accelerate": "transformers", "lightning": "lightning", "pandas": "pandas", "sklearn": "demo",
    "tensorboard": "tensorboard", "torchao": "torchao", "transformers": "transformers",
}  # fmt: skip
OURS = str(Path(layerhess.__file__).parent)


def describe(error: BaseException) -> str:
    """The exception's type, message and notes on one line; for a syntax error the offending line as well."""
    if isinstance(error, SyntaxError):
        line = f" in the line: {error.text.strip()}" if error.text else ""
        return f"{type(error).__name__}: {error.msg}{line}"
    lines = str(error).strip().splitlines()
    if any(line.startswith("Original Traceback") for line in lines):  # of a loader's worker
        lines = [lines[0], lines[-1]]
    lines += [f"({note.rstrip('.')})" for note in notes_of(error)]
    return f"{type(error).__name__}: {' '.join(lines)}" if lines else type(error).__name__


def raised(error: BaseException, doing: str, kind: type[InputError] = InputError) -> InputError:
    """The sentence for an exception of the user's code; ``doing`` begins it."""
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.isidentifier():
        extra = EXTRAS.get(error.name)
        message = f"{doing} needs {error.name}, which is not installed"
        advice = f"install what has it, for {sys.executable}, or correct the name"
        if extra:
            advice = f"pip install 'layerhess[{extra}]'"
    else:
        message = f"{doing} raised {describe(error)}"
        advice = "correct it there; --traceback shows the whole traceback"
    return kind(message, where=innermost(error), what_to_do=advice)


def innermost(error: BaseException) -> str:
    """``file:line, in function`` of the user's own code nearest to the error, else of what is not ours."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith("<") and not _installed(f.filename)]
    others = [f for f in frames if not _within(f.filename, OURS)] or frames
    chosen = own[-1] if own else (others[-1] if others else None)
    if chosen is None:
        return ""
    inside = "" if chosen.name == "<module>" else f", in {chosen.name}"
    return f"{chosen.filename}:{chosen.lineno}{inside}"


def is_users(error: BaseException) -> bool:
    """True when an exception that came through layerhess was raised in the user's model, loss or data.

    That is so when, after the last of our own frames, the traceback goes through code that is neither ours nor the
    standard library's nor a plain function of torch or NumPy: a module's forward, a data loader, the user's files.
    """
    found = traceback.extract_tb(error.__traceback__)
    frames = [f.filename for f in found if f.name != "__torch_function__"]  # which watch the user's calls, ours too
    last = max((i for i, name in enumerate(frames) if _within(name, OURS)), default=-1)
    return any(_is_foreign(name) for name in frames[last + 1 :])


def _is_foreign(filename: str) -> bool:
    parts = Path(filename).parts
    if "torch" in parts:
        below = parts[len(parts) - 1 - parts[::-1].index("torch") :]
        return below[1:3] in (("nn", "modules"), ("utils", "data"))
    if filename.startswith("<") or _standard(filename):
        return False
    return not any(package in parts for package in ("numpy", "scipy", "safetensors", "rich", "typer", "matplotlib"))


@cache
def _folders() -> tuple[tuple[str, ...], tuple[str, ...]]:
    paths = sysconfig.get_paths()
    return (paths["stdlib"], paths["platstdlib"]), (paths["purelib"], paths["platlib"])


def _standard(filename: str) -> bool:
    standard, installed = _folders()
    return any(_within(filename, folder) for folder in standard) and not any(_within(filename, f) for f in installed)


def _installed(filename: str) -> bool:
    standard, installed = _folders()
    return _within(filename, OURS) or any(_within(filename, folder) for folder in (*standard, *installed))


def _within(filename: str, folder: str) -> bool:
    return Path(filename).is_relative_to(folder)
