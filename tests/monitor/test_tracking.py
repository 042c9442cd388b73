"""Largest eigenvalues of matrices that drift: bounds that hold, and directions that overtake."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from layerhess.monitor.tracking import LEAST, MOST, TOL, Largest, Tracked, Tracker

CPU = torch.device("cpu")


def rotated(values: np.ndarray, seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))
    return (q * values) @ q.T


def look(tracker: Tracker, matrix: np.ndarray, number: int, go_on: bool = True, dtype: torch.dtype = torch.float64
         ) -> Largest:  # fmt: skip
    a = torch.from_numpy(matrix)
    solvers = tracker.follow(
        {"A": Tracked(len(matrix), CPU, dtype)}, number, lambda rows: {"A": rows["A"] @ a}, lambda: go_on
    )
    return tracker.certified(solvers, "A", rounding=1e-14 * float(np.abs(matrix).max()))


def bulk(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 1.0, n)


@pytest.mark.parametrize("seed", range(6))
def test_bounds_hold_at_every_point_while_the_matrix_drifts(seed: int) -> None:
    n, rng, tracker = 120, np.random.default_rng(seed), Tracker(seed)
    values = np.concatenate([[4.0, 3.5, 2.0], bulk(n - 3, seed)])
    matrix = rotated(values, seed)
    for number in range(12):
        noise = rng.standard_normal((n, n)) * 0.05 / math.sqrt(n)
        matrix = matrix + (noise + noise.T) / 2
        found, truth = look(tracker, matrix, number), np.linalg.eigvalsh(matrix)
        assert np.abs(truth - found.value).min() <= found.bound  # an eigenvalue is as near as stated
        assert found.value <= truth[-1] + 1e-12
        assert truth[-1] <= found.missed_factor * found.value
        assert truth[-1] - found.value <= 0.02 * truth[-1]  # and it was the largest one


def test_the_last_eigenvector_makes_two_passes_enough_where_nothing_has_moved() -> None:
    matrix, tracker = rotated(np.concatenate([[3.0], bulk(200, 0) * 0.3]), 0), Tracker(0)
    first, second = (look(tracker, matrix, number) for number in range(2))
    assert second.products == 2 * LEAST
    assert second.bound < 0.1 * first.bound


def test_a_direction_that_overtakes_is_found_by_the_random_vector() -> None:
    n, found = 150, []
    for seed in range(20):
        values = np.concatenate([[2.0, 1.0], bulk(n - 2, seed) * 0.5])
        tracker = Tracker(seed)
        look(tracker, rotated(values, seed), 0)
        values[1] = 6.0  # in a direction that the last eigenvector is orthogonal to
        found.append(look(tracker, rotated(values, seed), 1))
    assert all(one.missed_factor * one.value >= 6.0 for one in found)
    assert sum(abs(one.value - 6.0) <= one.bound for one in found) >= 19


def test_what_is_said_to_be_excluded_covers_a_hidden_eigenvalue() -> None:
    """With no time to go on, many searches stop short; at most a few of them may exclude what is there."""
    wrong, n = 0, 400
    for seed in range(60):
        values = np.concatenate([[2.0, 1.5], np.random.default_rng(seed).uniform(0.0, 1.0, n - 2)])
        tracker = Tracker(seed)
        look(tracker, rotated(values, seed), 0, go_on=False)
        values[1] = 3.0
        found = look(tracker, rotated(values, seed), 1, go_on=False)
        wrong += found.missed_factor * found.value < 3.0
    assert wrong <= 3  # one in a hundred each


def test_no_more_passes_are_made_than_there_is_time_for() -> None:
    matrix = rotated(np.linspace(0.0, 1.0, 300), 0)
    short, long = (look(Tracker(0), matrix, 0, go_on) for go_on in (False, True))
    assert short.products == 2 * LEAST
    assert 2 * LEAST < long.products <= 2 * MOST
    assert long.bound < short.bound


def test_small_matrices_are_read_whole() -> None:
    for n in (1, 2, 3, 5):
        matrix = rotated(np.arange(1.0, n + 1.0), n)
        for number in range(2):
            found = look((tracker := Tracker(0)), matrix, number)
        assert found.value == pytest.approx(n, abs=1e-12)
        assert found.missed_factor == pytest.approx(1.0)
        del tracker


def test_a_matrix_of_zeros_has_the_largest_eigenvalue_zero() -> None:
    found = look(Tracker(0), np.zeros((40, 40)), 0)
    assert found.value == 0.0 and found.bound < 1e-12
    assert math.isnan(found.missed_factor)


def test_a_negative_definite_matrix_has_no_factor() -> None:
    matrix = rotated(-np.linspace(1.0, 2.0, 30), 0)
    found = look(Tracker(0), matrix, 0)
    assert abs(found.value + 1.0) <= found.bound + 1e-12 or found.value <= -1.0
    assert math.isnan(found.missed_factor)


def test_blocks_that_are_done_drop_out_of_the_passes() -> None:
    easy = torch.from_numpy(rotated(np.concatenate([[100.0], np.zeros(99)]), 0))
    hard = torch.from_numpy(rotated(np.linspace(0.0, 1.0, 300), 1))
    asked: list[set[str]] = []

    def products(rows):
        asked.append(set(rows))
        return {key: own @ {"easy": easy, "hard": hard}[key] for key, own in rows.items()}

    Tracker(0).follow({"easy": Tracked(100, CPU), "hard": Tracked(300, CPU)}, 0, products)
    assert asked[0] == {"easy", "hard"} and asked[-1] == {"hard"}
    assert LEAST < len(asked) <= MOST


def test_the_same_seed_gives_the_same_figures() -> None:
    matrix = rotated(bulk(80, 0), 0)
    once, again = (look(Tracker(3), matrix, 0) for _ in range(2))
    assert once == again != look(Tracker(4), matrix, 0)
    assert once.bound <= TOL * max(once.value, 0.1) or once.products == 2 * MOST
