"""Displays results: tables, data frames, figures, notebook cells and the HTML report.

These modules read a record and change nothing. Those that draw, and the report, are loaded when first used:
matplotlib and Jinja2 are slow to import, and most programs that import layerhess draw nothing.
"""

from __future__ import annotations

import importlib
from types import ModuleType

DRAWN = ("drawings", "estimate_drawings", "figures", "history_page", "report", "slice_figures")


def __getattr__(name: str) -> ModuleType:
    if name not in DRAWN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
