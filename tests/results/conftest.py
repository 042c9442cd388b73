"""What the tests of saved analyses share: one that is saved, and a report that is not drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

import fabricated


@pytest.fixture(autouse=True)
def quick_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of a save; only the tests about the report draw it."""
    if "report" not in request.node.name:
        monkeypatch.setattr("layerhess.show.report.as_html", lambda analysis, plan=None: "<p>a report</p>")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return fabricated.analysis().save(tmp_path / "run")
