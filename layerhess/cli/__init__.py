"""The command line: ``layerhess analyze | estimate | plan | compare | report | demo | template | doctor``.

Exit codes: 0 done; 1 a result was written but something did not converge or was refused; 2 unusable input or a failed
check (a sentence on stderr); 3 a bug of ours (the log file is named); 130 Ctrl-C.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import typer

from layerhess.cli import app
from layerhess.cli.exit_codes import INTERRUPTED, NAME, refuse_command_line

# The parent of all that can be wrong with a command line, wherever Typer has it.
COMMAND_LINE = next(kind for kind in reversed(typer.BadParameter.__mro__) if hasattr(kind, "format_message"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``arguments`` are those of the process when None."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # into a file, Windows' own encodings have no λ and no ≤
    try:
        code = app.app(args=None if arguments is None else list(arguments), prog_name=NAME, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SystemExit as stop:  # of a shell that asks how a line goes on
        return stop.code if isinstance(stop.code, int) else 0
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        if not isinstance(error, COMMAND_LINE):
            raise
        return refuse_command_line(error)


__all__ = ["main"]
