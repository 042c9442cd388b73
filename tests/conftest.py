"""What every test runs under: one thread, fixed seeds, no deadlines, and slow tests only where they are asked for."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # so that `zoo` and `references` import under every import mode

settings.register_profile(
    "layerhess", deadline=None, max_examples=20, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "layerhess"))


def pytest_configure(config: pytest.Config) -> None:
    """Registers the one marker of the suite."""
    config.addinivalue_line("markers", "slow: takes more than a minute; runs with -m slow, or with any other -m")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the slow tests out, visibly as deselected, unless a marker expression or a test's name asks for them."""
    if config.getoption("-m") or any("::" in argument for argument in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture(autouse=True)
def fixed_surroundings() -> Iterator[None]:
    """One thread and seeded global generators for each test; the thread count is put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    yield
    torch.set_num_threads(threads)
