"""Ends a command: exit codes, error messages on stderr, a log file for bugs; keeps other output off stdout."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import layerhess
from layerhess.cli.lines import fitted, shortened, width_of
from layerhess.cli.user_frames import describe, innermost, is_users, raised
from layerhess.errors import InputError, LayerhessError, notes_of
from layerhess.objective.interrupts import STOPS, Terminated, terminable

NAME = "layerhess"
DONE, UNFINISHED, UNUSABLE, BUG, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143


def ended(command: Callable[[], int], *, show_traceback: bool = False) -> int:
    """Run ``command`` and turn any exception into an exit code and a sentence on stderr.

    Args:
        command: returns an exit code.
        show_traceback: also print the traceback of an exception in the user's code.
    """
    try:
        with terminable():
            return command()
    except STOPS as stop:
        notes = [note.rstrip(".") for note in notes_of(stop)]
        stopped = isinstance(stop, Terminated)
        what = "stopped by SIGTERM" if stopped else "interrupted"
        _say([f"{what};", f"{'; '.join(notes) or 'nothing was written'};", "the model is as it was"])
        return TERMINATED if stopped else INTERRUPTED
    except SystemExit as stop:  # of the user's code; a factory's is an InputError already
        refusal = InputError(
            f"the model, the loss or the data ended the process (sys.exit({stop.code!r}))",
            where=innermost(stop),
            what_to_do="take the call of sys.exit out of it",
        )
        _say_error(refusal, stop if show_traceback else None)
        return UNUSABLE
    except LayerhessError as error:
        _say_error(error, error if show_traceback else None)
        return UNUSABLE
    except BrokenPipeError:  # the reader of our output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if is_users(error):
            refusal = raised(error, "the model, the loss or the data")
            _say_error(refusal, error if show_traceback else None)
            return UNUSABLE
        log = _write_log(error)
        bug = f"this is a bug in layerhess, not in your input: {describe(error)}."
        _say([bug, f"The details are in {log}; please report it with that file."])
        return BUG


def refuse_command_line(error: Exception) -> int:
    """Say what is wrong with a command line, in four lines at most, and return the exit code."""
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "layerhess"
    said = str(error.format_message()).strip()  # type: ignore[attr-defined]
    said = re.sub(r"\.? Did you mean (.*)\?$", r"; perhaps you meant \1", said)
    refusal = InputError(said[:1].lower() + said[1:], what_to_do=f"{path} --help shows what there is")
    usage = context.get_usage() if context is not None else f"Usage: {path} --help"
    width = width_of(sys.stderr)
    with contextlib.suppress(OSError):
        print(fitted(lambda room: shortened([usage], room), width, 1), file=sys.stderr)
        print(fitted(lambda room: f"{NAME}: {refusal.within(room - len(NAME) - 2)}", width, 3), file=sys.stderr)
    return UNUSABLE


def _say_error(error: LayerhessError, cause: BaseException | None = None) -> None:
    notes = [f"({note.rstrip('.')})" for note in notes_of(error)]
    _say_fitted(lambda room: " ".join([error.within(max(room - len(" ".join(notes)) - 1, room // 2)), *notes]), cause)


def _say(parts: Sequence[str]) -> None:
    _say_fitted(lambda room: shortened(parts, room), None)


def _say_fitted(write: Callable[[int], str], error: BaseException | None) -> None:
    with contextlib.suppress(OSError):
        if error is not None:
            traceback.print_exception(error, file=sys.stderr)
        said = fitted(lambda room: f"{NAME}: {write(room - len(NAME) - 2)}", width_of(sys.stderr))
        print(said, file=sys.stderr, flush=True)


def _write_log(error: BaseException) -> Path | str:
    """Write a file with the traceback, the command and the versions; its path, or a note if that fails."""
    lines = [
        f"layerhess {layerhess.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.platform()}",
        "command: " + " ".join(sys.argv),
        "",
        "".join(traceback.format_exception(error)),
    ]
    path = Path(tempfile.gettempdir()) / time.strftime(f"layerhess-error-%Y%m%d-%H%M%S-{os.getpid()}.log")
    try:
        path.write_text("\n".join(lines), encoding="utf-8")
    except OSError as unwritable:
        traceback.print_exception(error, file=sys.stderr)
        return f"the traceback above (no log could be written: {unwritable})"
    return path


@contextlib.contextmanager
def stdout_on_stderr() -> Iterator[None]:
    """While the body runs, everything printed to stdout, by Python or by C code, goes to stderr."""
    sys.stdout.flush()
    try:
        descriptor: int | None = sys.stdout.fileno()
        kept = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    except (io.UnsupportedOperation, OSError, ValueError):  # no real files, as in tests
        descriptor = kept = None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if descriptor is not None and kept is not None:
            sys.stderr.flush()
            os.dup2(kept, descriptor)
            os.close(kept)
