"""What the ranks of tests/objective/test_failing_ranks.py do: one of them fails, somewhere between two exchanges."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import layerhess as lh
from commands import quick_report
from layerhess.analysis import example_groups, run, tasks
from layerhess.analysis.probing.shared_probes import SharedProbes
from layerhess.checks import sample
from layerhess.checks.derivatives import Derivatives
from layerhess.checks.heavy_examples import HeavyExamples
from layerhess.checks.rounding import RoundingMeter
from layerhess.checks.sample import Sampler
from layerhess.curvature.data_pass import DataPass
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.journal import Journal
from layerhess.curvature.totals import Totals
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.row_sum import RowSum
from layerhess.objective import sent_batches
from layerhess.objective.objective import Objective
from layerhess.results import store
from on_ranks import network, numbers, objective, place, share

FOLDER = "FAILING_RANKS"  # the variable with a folder for results
SAID = "the disk is gone"
ROWS: dict[str, Any] = {"path": "gram", "blocks": {"last": "2.*"}, "full": False}
ESTIMATES: dict[str, Any] = {"trace": True, "diagonal": True, "density": True, "coupling": True, "sampling": True}


def analyze(**arguments: Any) -> lh.Analysis:
    return lh.analyze(objective(), **{"path": "exact", "blocks": "module", **arguments})


def one_by_one() -> lh.Analysis:
    """Batches are not joined: where they are, what fails once is repeated apart."""
    return lh.analyze(objective().with_batch_size(100), path="exact", blocks="module")


class Refusing(nn.Module):
    """On rank 1 it takes two batches together, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        if place()[0] == 1 and len(x) > 16:
            raise ValueError(SAID)
        return self.inner(x)


def refusing() -> lh.Analysis:
    found = lh.analyze(lh.Objective(Refusing(), share(), nn.CrossEntropyLoss()), path="exact", blocks="module")
    assert any("joined batches failed" in note and SAID in note for note in found.notes), found.notes
    return found


def eigsh() -> Any:
    return lh.eigsh(lh.Hessian(objective()), 2)


def saved() -> lh.Analysis:
    return analyze(out=Path(os.environ[FOLDER], "saved"))


# name -> whose attribute fails, its name, how often it is called before, what is computed, the rank that fails
PLACES: dict[str, tuple[Any, str, int, Callable[[], Any], int]] = {
    "the arguments": (run.Run, "__init__", 0, analyze, 1),
    "the session": (Objective, "session", 0, analyze, 1),
    "the survey": (Sampler, "offer", 1, analyze, 1),
    "the survey, after its sums": (Sampler, "meet", 0, analyze, 1),
    "a batch for the others": (sent_batches, "prepare", 0, analyze, 1),
    "the self-check": (Derivatives, "check_gradient", 0, analyze, 1),
    "a graph": (HessianGraph, "__init__", 4, one_by_one, 1),
    "joined batches": (HessianGraph, "__init__", 10_000, refusing, 1),  # the model fails, nothing else
    "the first exchange of a pass": (Totals, "complete", 5, analyze, 1),
    "taking in others' sums": (Totals, "_add_others", 5, analyze, 1),
    "after the sums of a pass": (DataPass, "_check_totals", 11, analyze, 1),
    "a solver is told": (Lanczos, "tell", 3, analyze, 1),
    "a solver asks": (Lanczos, "ask", 2, analyze, 0),
    "a certificate": (tasks, "certify", 0, analyze, 1),
    "a pair's rows": (RowSum, "decompose", 0, lambda: analyze(**ROWS), 1),
    "joining rows": (RowSum, "join", 0, lambda: analyze(**ROWS), 1),
    "an estimator": (SharedProbes, "tell", 1, lambda: analyze(**ESTIMATES), 1),
    "sampling errors": (example_groups, "by_example", 0, lambda: analyze(**ESTIMATES), 1),
    "the journal": (Journal, "_append", 3, saved, 0),
    "the result": (run.Run, "result", 0, saved, 1),
    "saving": (store, "save", 0, saved, 0),
    "a product by hand": (Lanczos, "tell", 1, eigsh, 1),
}


class Gone(ValueError):
    """Fails on one rank."""


@contextmanager
def failing(owner: Any, name: str, after: int, error: BaseException, rank: int) -> Iterator[list[str]]:
    """There ``owner.name`` raises, once it was called so often."""
    real, calls = getattr(owner, name), []

    def fails(*given: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == after + 1:
            raise error
        return real(*given, **options)

    with pytest.MonkeyPatch.context() as monkeypatch:
        quick_report(monkeypatch)
        if place()[0] == rank:
            monkeypatch.setattr(owner, name, fails)
        yield calls


def said(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def everywhere() -> dict[str, str]:
    """What is raised where one rank fails at each place; last, what an analysis finds after that."""
    found = {}
    for name, (owner, attribute, after, call, rank) in PLACES.items():
        with failing(owner, attribute, after, Gone(SAID), rank):
            found[name] = said(call)
    found["a loader's worker"] = said(
        lambda: lh.analyze(lh.Objective(network(), loader(), torch.nn.CrossEntropyLoss()))
    )
    found["after"] = str(analyze().converged)
    return found


def without_memory() -> dict[str, dict[str, Any]]:
    """The numbers of analyses that go on where memory runs out on rank 1 only, and of one where it does not."""
    known, found = sample.WHOLE, {}
    for name, (owner, attribute, after, whole, arguments) in {
        "whole": (Totals, "complete", 10**6, True, ESTIMATES),
        "taking in": (Totals, "_add_others", 5, True, ESTIMATES),
        "after the sums": (DataPass, "_check_totals", 11, True, ESTIMATES),
        "a copy": (RoundingMeter, "_compare", 0, True, ESTIMATES),
        "a copy for rows": (RoundingMeter, "_other", 3, True, ESTIMATES),
        "heavy examples": (HeavyExamples, "_shares", 1, False, {}),
        "between heavy examples": (HeavyExamples, "_direction", 0, False, {}),
        "whole rows": (Totals, "complete", 10**6, True, ROWS),
        "joined rows": (RowSum, "join", 0, True, ROWS),
    }.items():
        try:
            sample.WHOLE = known if whole else 0
            with failing(owner, attribute, after, MemoryError("no room"), 1) as calls:
                found[name] = numbers(analyze(**arguments))
        finally:
            sample.WHOLE = known
        found[name]["reached"] = len(calls) > after
    return found


class Examples(Dataset):  # type: ignore[type-arg]
    """This rank's examples, the last of which cannot be read on rank 1."""

    def __init__(self) -> None:
        self.x, self.y = (torch.cat(column) for column in zip(*share(), strict=True))
        self.rank = place()[0]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, number: int) -> Any:
        if self.rank == 1 and number == len(self) - 1:
            raise Gone(SAID)
        return self.x[number], self.y[number]


def loader() -> Any:
    return DataLoader(Examples(), 8, num_workers=1)
