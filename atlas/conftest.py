"""An option of these tests alone."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--kept`: judge what an earlier run left in atlas/results, without measuring again."""
    parser.addoption("--kept", action="store_true", help="judge the results in atlas/results as they are")
