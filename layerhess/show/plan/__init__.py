"""A plan as people see it: a table, a page, a section of an analysis' report, figures.

What draws, and the page, is loaded when first used, as in ``layerhess.show``.
"""

from __future__ import annotations

import importlib
from types import ModuleType

DRAWN = ("figures", "page")


def __getattr__(name: str) -> ModuleType:
    if name not in DRAWN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
