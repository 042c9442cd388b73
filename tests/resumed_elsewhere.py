"""Runs that one number of processes begins and another one ends, see tests/analysis/test_resume_elsewhere.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import layerhess as lh
from commands import quick_report
from layerhess.curvature.journal import Journal
from on_ranks import numbers, objective, place
from resumed import EVERYTHING

FOLDER = "RESUMED_ELSEWHERE"  # the variable with the folder of the runs
STOP = 3  # passes after which the first part stops
KINDS: dict[str, dict[str, Any]] = {
    "estimates": {"path": "exact", "blocks": "module", "top": 2, "bottom": 1, **EVERYTHING},
    "rows": {"path": "gram", "blocks": {"last": "2.*"}, "top": 2, "trace": True},
}


def ran(kind: str, **arguments: Any) -> lh.Analysis:
    return lh.analyze(objective(20 if place()[1] == 1 else 8), **{**KINDS[kind], **arguments})


def begin() -> list[str]:
    """The first part of every run, and why it ended."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick_report(monkeypatch)
        return [ran(kind, out=Path(os.environ[FOLDER], kind), max_passes=STOP).partial for kind in KINDS]


def end() -> dict[str, tuple[dict[str, Any], int, tuple[str, ...]]]:
    """The numbers of every run, resumed; how many passes it was told, and its notes."""
    told: list[int] = []
    real = Journal.close

    def close(self: Journal) -> None:
        told.append(self.replayed)
        real(self)

    found = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick_report(monkeypatch)
        monkeypatch.setattr(Journal, "close", close)
        for kind in KINDS:
            analysis = ran(kind, out=Path(os.environ[FOLDER], kind), resume=True)
            found[kind] = numbers(analysis), told[-1], analysis.notes
    return found
