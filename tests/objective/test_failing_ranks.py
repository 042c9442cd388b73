"""A rank that fails anywhere leaves nobody waiting: the others end at once, with a sentence that names it and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import failing_ranks
from failing_ranks import PLACES, SAID
from ranks import run_ranks

WAIT = 20.0  # seconds after which a rank that waits gives up


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(failing_ranks.FOLDER, str(tmp_path / "results"))
    return tmp_path / "ranks"


def returned(function: str, folder: Path) -> list[Any]:
    every = run_ranks(2, "failing_ranks", function, folder, timeout=WAIT)
    assert [one.code for one in every] == [0, 0], [one.stderr[-1500:] for one in every]
    return [one.returned for one in every]


def test_a_rank_that_raises_anywhere_is_named_with_its_error(folder: Path) -> None:
    every = returned("everywhere", folder)
    for name, (*_, rank) in {**PLACES, "a loader's worker": (1,)}.items():
        own, others = every[rank][name], every[1 - rank][name]
        if name == "joined batches":  # every batch was processed by itself, on both
            assert own == others == "nothing was raised"
            continue
        if name == "a batch for the others":  # a refusal is the same everywhere
            assert own.startswith("InputError: ") and others.startswith("InputError: ") and f"rank {rank}" in others
        else:
            assert own.startswith("Gone: ") and others.startswith(f"ProcessError: rank {rank} failed: Gone"), name
        assert SAID in own and SAID in others, (name, own, others)
        assert name != "a loader's worker" or "raised while batch " in others, others
    assert [one["after"] for one in every] == ["True", "True"], "they are still in step"


@pytest.mark.slow
def test_memory_that_runs_out_on_one_rank_between_exchanges_changes_no_number(folder: Path) -> None:
    one, two = returned("without_memory", folder)
    for name, found in one.items():
        assert two[name].pop("reached") or name.startswith("whole"), f"{name}: the place was not reached"
        whole = one["whole rows" if name in ("whole rows", "joined rows") else "whole"]
        for key in found.keys() - {"reached"}:
            least = 1e-10 * np.abs(whole[key]).max()
            np.testing.assert_allclose(found[key], whole[key], rtol=1e-10, atol=least, err_msg=f"{name}: {key}")
            assert np.array_equal(found[key], two[name][key]), (name, key)
