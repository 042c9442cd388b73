"""Under several processes every rank's monitor has the numbers of one process, and none waits for one that failed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import monitored_on_ranks
from ranks import run_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    every = run_ranks(2, "monitored_on_ranks", "together", tmp_path_factory.mktemp("ranks"))
    assert [one.code for one in every] == [0, 0], [one.stderr[-1500:] for one in every]
    return [one.returned for one in every]


def test_the_points_are_those_of_one_process(ranks: list[dict[str, Any]]) -> None:
    alone, (one, two) = monitored_on_ranks.values(), (each["values"] for each in ranks)
    assert one == two
    assert one["step"] == alone["step"] and max(alone["step"]) == 12 and len(alone["ratio"]) == 4
    for name in ("lambda_max", "ratio"):
        np.testing.assert_allclose(one[name], alone[name], rtol=1e-9)


def test_ranks_agree_on_when_there_is_time(ranks: list[dict[str, Any]]) -> None:
    one, two = (each["spaced"] for each in ranks)
    assert one == two


def test_where_one_rank_fails_all_are_silent(ranks: list[dict[str, Any]]) -> None:
    one, two = (each["failing"] for each in ranks)
    assert one["points"] == two["points"] == 1
    assert len(one["said"]) == len(two["said"]) == 1
    assert "the file is gone" in two["failure"] and "rank 1" in one["failure"]


def test_a_logger_that_fails_on_one_rank_ends_the_monitor_on_all(ranks: list[dict[str, Any]]) -> None:
    one, two = (each["logger"] for each in ranks)
    assert "the tracker is gone" in one["failure"] and "rank 0" in two["failure"]
    assert len(one["said"]) == len(two["said"]) == 1


def test_a_trainers_ranks_share_the_data_that_all_were_given(ranks: list[dict[str, Any]]) -> None:
    alone, (one, two) = monitored_on_ranks.deferred(), (each["deferred"] for each in ranks)
    assert one == two
    for number, (said, values) in alone.items():
        assert one[number][0] == said == []
        np.testing.assert_allclose(one[number][1], values, rtol=1e-9)
