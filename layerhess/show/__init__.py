"""What people see of a result: tables, frames, figures, notebooks and the report.

They read a record and change nothing.
``show.figures`` and ``show.report`` are loaded when the first picture or page is asked for: matplotlib and Jinja2 take
their time, and most programs that import layerhess draw nothing.
"""

from __future__ import annotations

import importlib
from types import ModuleType

DRAWN = ("figures", "report")


def __getattr__(name: str) -> ModuleType:
    if name not in DRAWN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
