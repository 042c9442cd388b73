"""What every test runs under: one thread, fixed seeds, and no deadlines."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("commands", "complete_spectra", "tanh_network", "witness")  # their assertions explain

settings.register_profile(
    "layerhess", deadline=None, max_examples=20, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "layerhess"))


@pytest.fixture(autouse=True)
def fixed_surroundings() -> Iterator[None]:
    """One thread and seeded global generators for each test.

    The thread count is put back, and so is what libraries change in passing: Typer the hook for exceptions, torch's
    compiler the environment, a notebook's client the meaning of Ctrl-C.
    """
    threads, hook, environment = torch.get_num_threads(), sys.excepthook, dict(os.environ)
    ctrl_c = signal.getsignal(signal.SIGINT)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    yield
    torch.set_num_threads(threads)
    sys.excepthook = hook
    signal.signal(signal.SIGINT, ctrl_c)
    for name in set(os.environ) - set(environment) - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]


@pytest.fixture
def no_graph_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every pass evaluates the loss."""
    monkeypatch.setattr("layerhess.curvature.data_pass.used_bytes", _Growing())


class _Growing:
    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, *devices: torch.device) -> int:
        self.bytes += 1 << 50
        return self.bytes


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    """Python's own meaning of Ctrl-C, which a test runner's worker processes may have switched off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
