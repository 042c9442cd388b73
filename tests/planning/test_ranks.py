"""Several processes, each with a share of the data, find the plan of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import planned_on_ranks
from ranks import Ended, run_ranks


def returned(every: list[Ended]) -> list[Any]:
    assert [one.code for one in every] == [0] * len(every), [one.stderr[-2000:] for one in every]
    return [one.returned for one in every]


def assert_same(found: Any, wanted: Any, where: str = "") -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for name in wanted:
            assert_same(found[name], wanted[name], f"{where} {name}")
    elif isinstance(wanted, str):
        assert found == wanted, where
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-12, err_msg=where)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUT", str(folder / "plan"))
        every = returned(run_ranks(2, "planned_on_ranks", "everything", folder / "ranks"))
    assert (folder / "plan" / "plan.json").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["plan", "ranks"]  # nothing is left of what was stopped
    return every


def test_the_plan_is_that_of_one_process(two: list[Any]) -> None:
    assert_same(two[1]["plans"], two[0]["plans"])
    assert_same(two[0]["plans"], planned_on_ranks.plans())


@pytest.mark.slow
def test_a_process_without_data_takes_part(tmp_path: Path) -> None:
    every = returned(run_ranks(3, "planned_on_ranks", "plans", tmp_path))
    alone = planned_on_ranks.plans()
    for own in every:
        assert_same(own, alone)


def test_a_plan_of_several_processes_goes_on(two: list[Any]) -> None:
    for own in (found["resumed"] for found in two):
        forwards = own["again"].pop("forwards"), own["whole"].pop("forwards")
        assert sum(forwards[0]) < sum(forwards[1])
        assert_same(own["again"], own["whole"])


def test_samples_of_outputs_are_of_one_share_on_all(two: list[Any]) -> None:
    one, other = (found["shares"] for found in two)
    # 900 bytes for two copies of four batches of (4, 3) and (16, 3) numbers in float64: the least is taken.
    assert one[0] == other[0] == 900.0 / (16 * 3 * 8 * 2 * 4)
    assert one[2] == other[2] == 2.0 and 0 < other[1] <= 0.5 * 21


def test_what_one_rank_finds_wrong_all_refuse_and_go_on(two: list[Any]) -> None:
    one, other = (found["refusals"] for found in two)
    assert "3 bits a weight on rank 0 and 4 bits a weight on rank 1" in one["other budgets"]
    assert one["other options"].startswith("InputError: the ranks ask for different things: options is")
    for name in ("other budgets", "other options", "after"):
        assert one[name] == other[name]
    assert "rank 1" in one["no option"] and other["no option"].startswith("InputError: no option is given")
    assert one["raises"].startswith("ProcessError: rank 1 failed: OSError: the file is gone")
    assert other["raises"] == "OSError: the file is gone"
