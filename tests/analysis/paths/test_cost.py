"""What each way to a block's eigenvalues costs, by its sizes, and which is cheaper."""

from __future__ import annotations

import pytest

from layerhess.analysis.paths import cost
from layerhess.curvature.factors.work import Work
from layerhess.linalg.eigen.process import Wanted


def work(items: int, directions: int, numel: int, places: int = 1, channels: int = 10) -> Work:
    """Of one layer with so many parameters, at so many places of its output."""
    each = items * numel * places
    return Work(items, directions, each, items * places * channels, 20 * each, entries=1, has_rows=True)


@pytest.mark.parametrize("directions", [1, 9, 32])
@pytest.mark.parametrize("wanted", [Wanted(top=1), Wanted(top=5, bottom=5), Wanted(top=50, bottom=10)])
def test_the_choice_is_never_a_large_matrix_with_many_rows(wanted: Wanted, directions: int) -> None:
    for numel in (20_000, 200_000):
        for rows in (20_000, 1_000_000):
            assert not cost.is_cheaper(numel, work(rows // directions, directions, numel), wanted, 4)


@pytest.mark.parametrize("numel", [100, 2000, 30_000])
def test_the_choice_is_the_gram_matrix_of_few_rows_where_many_pairs_are_wanted(numel: int) -> None:
    assert cost.is_cheaper(numel, work(8, 9, numel), Wanted(top=10, bottom=5), 4)
    assert not cost.is_cheaper(numel, Work(8, 9, 8 * numel, 80, 160 * numel, 1, False), Wanted(top=10, bottom=5), 4)


def test_costs_grow_with_what_is_done() -> None:
    less, more = (cost.predicted(1000, work(n, 9, 1000), Wanted(top=1), 4) for n in (10, 100))
    assert set(less) == {"gram", "lanczos on factors", "exact"}
    assert all(0.0 < less[way] < more[way] for way in less)
    one, many = (cost.predicted(1000, work(10, 9, 1000), wanted, 4) for wanted in (Wanted(top=1), Wanted(top=20)))
    assert many["lanczos on factors"] / one["lanczos on factors"] > 3.0 * many["gram"] / one["gram"]
