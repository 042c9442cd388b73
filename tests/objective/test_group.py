"""Several processes with a share of the data each get the numbers of one, and none waits for one that failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler, TensorDataset

import layerhess as lh
import on_ranks
from layerhess.errors import InputError
from ranks import run_ranks
from refusals import X, Y, mlp


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    return on_ranks.values()


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_the_numbers_are_those_of_one_process(ranks: int, alone: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    every = run_ranks(ranks, "on_ranks", "values", tmp_path)
    assert [one.code for one in every] == [0] * ranks, [one.stderr[-1500:] for one in every]
    for path, wanted in alone.items():
        for name, numbers in wanted.items():
            first = every[0].returned[path][name]
            np.testing.assert_allclose(first, numbers, rtol=1e-10, atol=1e-10 * np.abs(numbers).max(), err_msg=name)
            for other in every[1:]:
                assert np.array_equal(first, other.returned[path][name]), (path, name)


def test_what_one_rank_finds_wrong_all_refuse_and_go_on(tmp_path: Path) -> None:
    one, two = (ended.returned for ended in run_ranks(2, "on_ranks", "refusals", tmp_path))
    for name, said in {
        "same data": "ranks 0 and 1 were given the same data",
        "other weights": "the ranks have different models: 2.bias of rank 1",
        "NaN": "batch 1 of rank 1",
    }.items():
        assert said in one[name] and said in two[name], (one[name], two[name])
    assert one["raised"].startswith("ProcessError: rank 1 failed: OSError: the file is gone")
    assert two["raised"] == "OSError: the file is gone"
    assert one["broken"].startswith("ProcessError: rank 1 failed: RuntimeError: no such kernel")
    assert two["broken"] == "RuntimeError: no such kernel"
    assert one["no room"].startswith("ProcessError: rank 1 failed: MemoryError: no room")
    assert one["no copy"] == two["no copy"] == "nothing was raised"
    assert two["no room"] == "MemoryError: no room"
    assert one["no room for rows"] == two["no room for rows"]
    assert "its rows do not fit into memory" in one["no room for rows"]
    assert "rank 1" in one["between"] and "InputError: " in two["between"]
    assert (
        one["other question"] == two["other question"] and "top is 1 on rank 0 and 2 on rank 1" in one["other question"]
    )
    for name in ("other vector", "other seed", "other number"):
        assert one[name] == two[name] and "the ranks ask for products of different vectors" in one[name], one[name]
    assert "the number of threads is 1 on rank 0 and 2 on rank 1" in one["other threads"]
    assert one["interrupt"].startswith("KeyboardInterrupt") and two["interrupt"].startswith("KeyboardInterrupt")
    assert one["buffers"] == two["buffers"] and "] True (" in one["buffers"]
    assert "1.running_mean): those of rank 0 are used" in one["buffers"]
    whole = one["starved nowhere"].removesuffix("[]")
    for where in ("in the survey", "in the self-check"):
        assert one[f"starved {where}"] == two[f"starved {where}"]
        assert one[f"starved {where}"].startswith(whole) and "pieces of 4 examples" in one[f"starved {where}"]
    assert one["after"] == two["after"] == "True"


@pytest.mark.parametrize("how", ["lost", pytest.param("stuck", marks=pytest.mark.slow)])
def test_a_rank_that_is_lost_is_named(how: str, tmp_path: Path) -> None:
    zero, one, two = run_ranks(3, "on_ranks", how, tmp_path, timeout=10.0 if how == "stuck" else 60.0)
    for survivor in (zero, two):
        assert survivor.code == 1 and "ProcessError: rank 1 failed: it died, left or did not" in survivor.stderr
    assert one.code != 0 and (how == "lost" or "rank 1 came too late" in one.stderr)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_subset_is_the_same_on_any_number_of_ranks(ranks: int, tmp_path: Path) -> None:
    every = [ended.returned for ended in run_ranks(ranks, "on_ranks", "subsets", tmp_path)]
    alone = on_ranks.subsets()
    assert len(alone[0]) == 70 and len(set(alone[0])) < 70 and sorted(alone[0]) != sorted(alone[1])
    for seed, rows in enumerate(alone):
        joined = sorted(row for one in every for row in one[seed])
        np.testing.assert_allclose(joined, sorted(rows), rtol=1e-14)


@pytest.mark.parametrize(
    ("how", "ranks"),
    [("killed", 2), ("raises", 2), *(pytest.param("killed", n, marks=pytest.mark.slow) for n in (1, 3))],
)
def test_passes_are_kept_when_a_rank_fails(
    how: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "run"))
    monkeypatch.setenv("HOW", how)
    survivor, failed = run_ranks(2, "on_ranks", "dies_late", tmp_path / "first")
    told = "ValueError: worker broke" if how == "raises" else "it died, left or did not answer in time"
    assert survivor.code == 1 and f"ProcessError: rank 1 failed: {told}" in survivor.stderr
    assert "5 passes are kept, and resume goes on from there" in survivor.stderr and failed.code != 0
    one, *others = (ended.returned for ended in run_ranks(ranks, "on_ranks", "resumed", tmp_path / "second"))
    assert any("5 passes are known" in note for note in one["notes"]), one["notes"]
    whole = on_ranks.numbers(lh.analyze(on_ranks.objective(), full=True))
    for name, numbers in whole.items():
        np.testing.assert_allclose(one[name], numbers, rtol=1e-10, atol=1e-10 * np.abs(numbers).max(), err_msg=name)
        assert all(np.array_equal(one[name], other[name]) for other in others)
    assert not list(tmp_path.glob(".run*"))


def test_a_share_of_the_data_set_is_refused_in_one_process() -> None:
    data = TensorDataset(X, Y)
    with pytest.raises(InputError, match="one of 2 shares") as caught:
        lh.Objective(mlp(), DataLoader(data, 4, sampler=DistributedSampler(data, 2, 0)), nn.CrossEntropyLoss())
    assert caught.value.where == "its DistributedSampler"
    lh.Objective(mlp(), DataLoader(data, 4, sampler=DistributedSampler(data, 1, 0)), nn.CrossEntropyLoss())
    part = BatchSampler(SequentialSampler(data), 4, False)
    part.num_processes = 3  # type: ignore[attr-defined]  # as accelerate's
    with pytest.raises(InputError, match="one of 3 shares"):
        lh.Objective(mlp(), DataLoader(data, batch_sampler=part), nn.CrossEntropyLoss())
