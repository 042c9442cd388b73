"""The command line: ``layerhess analyze | estimate | compare | report | demo | template``.

Exit codes: 0 done; 1 a result was written but something did not converge or was refused; 2 unusable input or a failed
check (a sentence on stderr); 3 a bug of ours (the log file is named); 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from layerhess.cli import app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``arguments`` are those of the process when None."""
    try:
        app.app(args=None if arguments is None else list(arguments), prog_name="layerhess")
    except SystemExit as stop:
        if isinstance(stop.code, int):
            return stop.code
        if stop.code is not None:
            print(stop.code, file=sys.stderr)
            return 1
    return 0


__all__ = ["main"]
