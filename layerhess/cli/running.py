"""Runs an analysis for a command: shows how far it is, saves it, and prints the table or the JSON."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from layerhess.analysis.analyze import analyze as analyze_now
from layerhess.cli.display import Display
from layerhess.cli.exit_codes import DONE, UNFINISHED, stdout_on_stderr
from layerhess.cli.lines import console, plain, width_of
from layerhess.errors import InputError
from layerhess.objective.group import world
from layerhess.results import store
from layerhess.results.derived import compare_learning_rate
from layerhess.show.summary import largest
from layerhess.show.table import WIDTH, as_text, renderable


def run(
    make: Any,
    arguments: dict[str, Any],
    folder: Path,
    *,
    quiet: bool,
    json: bool = False,
    offer_examples: bool = True,
    learning_rate: float | None = None,
) -> int:
    """Analyse what ``make()`` returns, save into ``folder``, and print the table or the JSON; the exit code."""
    first = world().rank == 0
    display = Display(quiet=quiet or not first, offer_examples=offer_examples)
    with ExitStack() as stack:
        if json:
            stack.enter_context(stdout_on_stderr())
        stack.enter_context(display.with_warnings())
        objective = make()
        display.heading = f"the result will be in {folder}"  # once the arguments have passed
        try:
            with display:
                analysis = analyze_now(objective, **arguments, out=folder, progress=display)
        except store.SaveError as error:
            raise _rescued(error) from error
    if not first:
        return DONE if analysis.converged else UNFINISHED
    if json:
        sys.stdout.write(store.json_text(folder))
        sys.stdout.flush()
    else:
        _print_table(analysis)
        if learning_rate is not None:
            _print_rate(analysis, learning_rate)
        plain(f"\nSaved in {folder}; the report is {folder / store.REPORT}")
    return DONE if analysis.converged else UNFINISHED


def _print_table(analysis: Any) -> None:
    """On stdout: as wide as the terminal and in colour; plain and 100 columns wide where it is not a terminal."""
    if sys.stdout.isatty():
        console(sys.stdout).print(renderable(analysis))
    else:
        print(as_text(analysis))


def checked_rate(learning_rate: float | None) -> float | None:
    """The learning rate as it was given.

    Raises:
        InputError: it is not above 0.
    """
    if learning_rate is not None and not 0.0 < learning_rate < float("inf"):
        raise InputError(
            f"the learning rate is {learning_rate}", where="--learning-rate", what_to_do="give a number above 0"
        )
    return learning_rate


def _print_rate(analysis: Any, learning_rate: float) -> None:

    spectrum = largest(analysis)
    if spectrum is not None and (spectrum.operator != "hessian" or spectrum is not analysis.full):
        plain("The learning rate was not judged: that takes the largest eigenvalue of the full Hessian.")
    elif spectrum is not None:
        sentence = compare_learning_rate(spectrum, learning_rate)
        plain(f"{sentence[0].upper()}{sentence[1:]}.")
    else:
        plain("The learning rate cannot be judged: no largest eigenvalue was asked for.")


def _rescued(error: Any) -> Exception:
    """Show numbers that could not be saved where they should, and save them elsewhere."""
    print(as_text(error.analysis, width_of(sys.stderr) or WIDTH), file=sys.stderr)
    try:
        place = error.analysis.save(Path(tempfile.mkdtemp(prefix="layerhess-")) / "analysis")
    except (InputError, OSError):
        return InputError(error.message, where=error.where, what_to_do="the numbers are above; nothing could be saved")
    return InputError(error.message, where=error.where, what_to_do=f"nothing is lost: the analysis is in {place}")


def default_folder(factory: str, kind: str = "") -> Path:
    """Where a result goes if nobody says: by the factory's name, what it is, and the time."""
    label = re.sub(r"[^\w.-]+", "-", factory.replace(".py:", ":").rpartition("/")[2].replace(":", "-")).strip("-.")
    name = "-".join(filter(None, (label or "analysis", kind)))
    return Path("layerhess-results") / time.strftime(f"{name}-%Y%m%d-%H%M%S")


def use_threads(threads: int | None) -> None:
    """Compute with so many threads; None leaves it to torch."""
    if threads is not None:
        torch.set_num_threads(threads)
