"""What is counted and timed: passes, products, and the seconds of each phase once."""

from __future__ import annotations

import time

import pytest

from layerhess.curvature.counters import Counters


def test_time_inside_another_phase_counts_once() -> None:
    counters = Counters()
    start = time.perf_counter()
    with counters.during("outer"):
        time.sleep(0.02)
        with counters.during("inner"):
            time.sleep(0.03)
            with counters.during("outer"):
                time.sleep(0.01)
        with counters.during("inner"):
            time.sleep(0.01)
    assert sum(counters.seconds.values()) == pytest.approx(time.perf_counter() - start, abs=2e-3)
    assert counters.seconds["inner"] >= 0.04 and counters.seconds["outer"] >= 0.03
