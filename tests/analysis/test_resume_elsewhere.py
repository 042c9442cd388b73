"""A run may go on with another number of processes or threads: the numbers are those of one that was never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import layerhess as lh
import resumed_elsewhere
from commands import quick_report
from killed import in_pass, killed
from layerhess.analysis import identity
from layerhess.curvature.journal import Journal
from layerhess.objective.group import ALONE
from layerhess.results import store
from ranks import run_ranks
from resumed import analyze, objective
from resumed_elsewhere import FOLDER, KINDS, STOP, ran


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_report(monkeypatch)


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, Any]]:
    return {kind: resumed_elsewhere.numbers(ran(kind)) for kind in KINDS}


def called(ranks: int, function: str, folder: Path) -> list[Any]:
    """What every rank returns."""
    if ranks == 1:
        return [getattr(resumed_elsewhere, function)()]
    ended = run_ranks(ranks, "resumed_elsewhere", function, folder / "ranks")
    assert [one.code for one in ended] == [0] * ranks, [one.stderr[-1500:] for one in ended]
    return [one.returned for one in ended]


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on(
    first: int, then: int, whole: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "runs"))
    stopped, *_ = called(first, "begin", tmp_path)
    assert all(stopped)
    for found in called(then, "end", tmp_path):
        for kind, (numbers, told, notes) in found.items():
            assert told >= STOP and not any("anew" in note for note in notes), (kind, told, notes)
            for name, wanted in whole[kind].items():
                np.testing.assert_allclose(
                    numbers[name], wanted, rtol=1e-10, atol=1e-10 * np.abs(wanted).max(), err_msg=f"{kind} {name}"
                )
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted(KINDS), "nothing is left beside them"


def test_other_threads_and_another_cpu_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    killed(lambda: analyze(objective(), top=2, out=out), in_pass(4))
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "another")
    resumed, wanted = analyze(objective(), top=2, out=out, resume=True), analyze(objective(), top=2)
    for one, other in zip(resumed.spectra(), wanted.spectra(), strict=True):
        np.testing.assert_allclose(one.eigenvalues, other.eigenvalues, rtol=1e-10)


def test_where_questions_part_passes_are_made_anew(tmp_path: Path) -> None:
    """Other last digits that grew, as after many steps: no answer is given to another question."""
    out = tmp_path / "run"
    killed(lambda: analyze(objective(), top=2, path="exact", out=out), in_pass(4))
    content = store.journal_path(out)
    wanted = analyze(objective(), top=2, path="exact")
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick_report(monkeypatch)
        real, asked = Journal._answer, []

        def answer(self: Journal, question: Any) -> Any:
            asked.append(question)
            return real(self, question) if len(asked) == 1 else None

        monkeypatch.setattr(Journal, "_answer", answer)
        resumed = analyze(objective(), top=2, path="exact", out=out, resume=True)
    assert not content.exists() and any("1 of the 3 passes" in note for note in resumed.notes)
    for one, other in zip(resumed.spectra(), wanted.spectra(), strict=True):
        np.testing.assert_allclose(one.eigenvalues, other.eigenvalues, rtol=1e-10)


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_examples_are_the_same_however_they_are_split(cut: int) -> None:
    x, y = torch.randn(61, 3)[::2], torch.arange(31)
    whole, split = identity.Content(), identity.Content()
    whole.see((x, y))
    for batch in reversed(list(zip(x.split(cut), y.split(cut), strict=True))):
        split.see(batch)
    assert split.with_others(ALONE) == whole.with_others(ALONE)


def test_another_kind_of_device_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    killed(lambda: analyze(objective(), out=out), in_pass(2))
    real = identity.machine
    monkeypatch.setattr(identity, "machine", lambda of: {**real(of), "device": "some GPU"})
    with pytest.raises(lh.InputError, match="device was 'cpu' and is 'some GPU'"):
        analyze(objective(), out=out, resume=True)
