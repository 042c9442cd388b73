"""Points are spaced so that their own time is within what is allowed: on a clock that the tests move."""

from __future__ import annotations

import pytest

from layerhess.monitor.spacing import Spacing


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def simulate(
    overhead: float | None, cost, every: int = 20, steps: int = 20_000, expected: tuple[float, float] = (0.0, 0.0)
) -> tuple[Spacing, list[int], list[float]]:
    """Train for so many steps of 1 s; a point of number i takes cost(i)."""
    clock = Clock()
    spacing = Spacing(every, overhead, clock)
    spacing.expect(*expected)
    made, shares = [], []
    for step in range(1, steps + 1):
        clock.now += 1.0
        spacing.begin()
        if spacing.passes(step - 1, step) and spacing.affords(checked=not made):
            before = spacing.own
            with spacing.working():
                clock.now += cost(len(made))
            spacing.note(spacing.own - before, 0.0)
            made.append(step)
            shares.append(spacing.share)
    return spacing, made, shares


@pytest.mark.parametrize("cost", [0.5, 3.0, 40.0])
def test_the_share_never_exceeds_what_was_allowed(cost: float) -> None:
    spacing, made, shares = simulate(0.05, lambda i: cost, expected=(cost, 0.0))
    assert max(shares) <= 0.0501
    assert spacing.share > 0.04 or cost / 20 < 0.05  # and it is used, where a point every 20 steps is too much
    assert all(step % 20 == 0 for step in made)


def test_cheap_points_come_at_every_multiple_and_never_more_often() -> None:
    _, made, _ = simulate(0.05, lambda i: 0.001, steps=400)
    assert made == list(range(20, 401, 20))


def test_without_a_limit_a_point_comes_at_every_multiple_whatever_it_costs() -> None:
    spacing, made, _ = simulate(None, lambda i: 1000.0, steps=200)
    assert made == list(range(20, 201, 20))
    assert spacing.share > 1.0


def test_the_first_point_waits_until_there_is_time_for_it_and_its_checks() -> None:
    _, made, shares = simulate(0.05, lambda i: 30.0 if i == 0 else 5.0, expected=(10.0, 20.0))
    assert made[0] == 620  # 5 % of 601 s and more (the first step is before the clock starts)
    assert shares[0] <= 0.05


def test_points_that_become_dearer_are_spaced_farther_apart() -> None:
    _, made, _ = simulate(0.05, lambda i: 2.0 if i < 10 else 20.0)
    assert made[-1] - made[-2] >= 9 * (made[9] - made[8])


def test_points_that_take_twice_as_long_now_and_then_do_not_break_the_limit() -> None:
    _, made, shares = simulate(0.05, lambda i: 6.0 if i % 4 == 3 else 3.0, expected=(3.0, 0.0))
    assert max(shares) <= 0.06 and len(made) > 100


def test_a_wrong_forecast_is_paid_back() -> None:
    spacing, made, shares = simulate(0.05, lambda i: 100.0 if i == 0 else 1.0, expected=(1.0, 0.0), steps=10_000)
    assert shares[0] > 0.05
    assert made[1] >= 2000
    assert spacing.share <= 0.0501


def test_steps_that_are_counted_elsewhere_may_jump_over_a_multiple() -> None:
    spacing = Spacing(100, None, Clock())
    assert spacing.passes(95, 105) and not spacing.passes(105, 199) and spacing.passes(0, 250)


def test_there_is_no_share_before_there_was_any_training() -> None:
    assert Spacing(1, 0.05, Clock()).share == 0.0
