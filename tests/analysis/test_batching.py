"""Small batches that go through the model together: the same numbers, fewer calls, and the user's batches by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from commands import quick_report
from killed import assert_same_bits, in_pass, killed
from layerhess.analysis import batching
from layerhess.analysis.batching import joined_size
from layerhess.checks.survey import survey
from layerhess.curvature.counters import Counters
from layerhess.curvature.device import Budget
from layerhess.objective import batches
from references import dense
from resumed import EVERYTHING, Streamed, data, network
from witness import refused
from zoo_losses import cross_entropy_totals

TOGETHER, ONE_BY_ONE, FAILED = "went through the model together", "processed one by one", "joined batches failed"


class Watched(nn.Module):
    """A network that tells how many examples each call has; ``change`` may alter its output, or refuse."""

    def __init__(self, sizes: list[int], change: Callable[[Tensor, Tensor], Tensor] = lambda out, x: out) -> None:
        super().__init__()
        self.inner = network()
        self.seen: Callable[[int], None] = sizes.append  # an attribute of its own would come back as it was
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        self.seen(len(x))
        return self.change(self.inner(x), x)


def unequal() -> list[tuple[Tensor, Tensor]]:
    return [(x[:n], y[:n]) for n, (x, y) in zip([3, 1, 5, 2, 1, 4, 7, 2], data(n=8), strict=True)]


def of(model: nn.Module, given: Any, **changed: Any) -> lh.Objective:
    return lh.Objective(model, given, nn.CrossEntropyLoss(), **changed)


def said(analysis: lh.Analysis, what: str) -> bool:
    return any(what in note for note in analysis.notes)


def assert_right(found: lh.Analysis, model: Watched, given: Any) -> None:
    """All eigenvalues are within their errors of those of the dense Hessian."""
    truth = dense.reference_for(model.inner, given, cross_entropy_totals)
    assert found.converged
    for spectrum in (*found.blocks.values(), found.full):
        places = slice(None) if spectrum is found.full else truth.places[spectrum.name.removeprefix("inner.")]
        own = np.linalg.eigvalsh(truth.matrix[places][:, places])[::-1][: len(spectrum.eigenvalues)]
        assert np.all(np.abs(spectrum.eigenvalues - own) <= spectrum.error_bounds + 1e-10), spectrum.name


@pytest.mark.parametrize("stream", [list, Streamed])
@pytest.mark.parametrize("path", ["exact", "auto"])
def test_the_numbers_are_those_of_the_dense_hessian(stream: Callable[[list[Any]], Any], path: str) -> None:
    sizes: list[int] = []
    model, given = Watched(sizes), unequal()
    found = lh.analyze(of(model, stream(given)), top=3, path=path)
    assert said(found, TOGETHER) and max(sizes) == 25
    assert (found.batches, found.examples) == (8, 25)
    assert_right(found, model, given)


def test_a_pass_takes_one_call_for_all_batches() -> None:
    found, apart = (lh.analyze(of(network(), data(n=8), batch_size=size), path="exact") for size in (None, 12))
    assert said(found, TOGETHER) and not said(apart, TOGETHER), "who asks for a size gets no larger batches"
    assert 4 * found.counts.by_phase["solve"]["backwards"] < apart.counts.by_phase["solve"]["backwards"]


def sized(model: nn.Module, given: Any, saved: int, room: int = 1 << 40, **changed: Any) -> tuple[int | None, str]:
    """What is chosen where batches are small up to so many saved bytes, of which every example has 1000."""
    made = of(model, given, **changed)
    with pytest.MonkeyPatch.context() as patch, made.session():
        surveyed = survey(made, Counters())
        patch.setattr(batching, "SAVED", saved)
        patch.setattr(batching, "saved_bytes", lambda _, batch: 1000 * (batches.leading_size(batch) or 0))
        together, note = joined_size(made, surveyed, Budget(room))
        return together and together.examples, note


def test_up_to_a_size_that_follows_from_shapes_and_budget() -> None:
    given = data(n=10)  # of 12 examples each
    assert sized(network(), given, 70_000) == (64, ""), "a power of two"
    assert sized(network(), given, 127_000) == (64, "")
    assert sized(network(), given, 1 << 40) == (128, ""), "16 times the user's own at most: 192"
    assert sized(network(), given, 47_000) == (None, ""), "not even four"
    assert sized(network(), given, 70_000, room=100_000) == (None, "")


def test_what_stays_apart() -> None:
    assert sized(network(), data(n=1), 1 << 30) == (None, "")
    assert sized(network(), data(n=4), 1 << 30, batch_size=100) == (None, "")
    assert sized(nn.Sequential(network(), nn.Dropout(0.5)), data(n=4), 1 << 30) == (None, "")
    widths = [(torch.randn(4, 5, width).double(), torch.randint(3, (4, width))) for width in (1, 2, 3)]
    assert sized(nn.Conv1d(5, 3, 1).double(), widths, 1 << 30) == (None, "")


def test_batch_norm_in_train_mode_is_never_given_other_batches() -> None:
    sizes: list[int] = []
    model = Watched(sizes)
    model.inner = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double().train()
    found = lh.analyze(of(model, data(n=4)))
    assert found.converged and not said(found, TOGETHER) and max(sizes) == 12


class Flagged(nn.Module):
    """Every batch of one example has a flag, which is read off the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor, flag: Tensor) -> Tensor:
        return self.inner(x) * (3.0 if float(flag.flatten()[0]) > 0 else 1.0)


@pytest.mark.parametrize(
    ("flags", "numbers", "note"),
    [
        ([0, 1, 0, 1, 0, 1, 0], 2, ONE_BY_ONE),
        ([0, 0, 0, 0, 0, 1, 1], 2, ONE_BY_ONE),
        ([0, 0, 0, 0, 0, 1, 1], 1, TOGETHER),
    ],
    ids=["the first two tell", "only the last ones tell", "one number"],
)
def test_batches_that_their_own_flag_changes(flags: list[int], numbers: int, note: str) -> None:
    given = [
        ((x[:1], torch.full((1, numbers), float(flag))), y[:1]) for flag, (x, y) in zip(flags, data(n=7), strict=True)
    ]
    model = Flagged()
    found, apart = (lh.analyze(of(model, given, batch_size=size), path="exact") for size in (None, 1))
    assert said(found, note) and sum(said(found, one) for one in (TOGETHER, ONE_BY_ONE, FAILED)) == 1
    for name, spectrum in found.blocks.items():
        np.testing.assert_allclose(spectrum.eigenvalues, apart.blocks[name].eigenvalues, rtol=2e-3)


class Tasks(nn.Module):
    """Two heads of zeros, of which each batch takes one: at these weights its loss says nothing of which."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        for head in (self.a, self.b):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        return (self.b if task.flatten()[0] > 0 else self.a)(self.body(x).tanh())  # type: ignore[no-any-return]


def of_one_task(task: int, n: int) -> Tensor:
    return torch.full((n,), task)


def of_random_bits(task: int, n: int) -> Tensor:  # no flag, but for its first number
    return torch.cat([torch.tensor([task]), torch.arange(n - 1) % 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("tell", "note"), [(of_one_task, TOGETHER), (of_random_bits, ONE_BY_ONE)])
def test_what_is_told_beside_the_target_is_seen_behind_heads_of_zeros(
    tell: Callable[[int, int], Tensor], note: str, dtype: torch.dtype
) -> None:
    tasks = [0, 0] + [0, 1] * 7
    given = [(x[:4].to(dtype), (y[:4], tell(task, 4))) for task, (x, y) in zip(tasks, data(n=16), strict=True)]
    loss = lh.batch_loss(lambda m, b: (F.cross_entropy(m(b[0], b[1][1]), b[1][0], reduction="sum"), len(b[0])))
    model = Tasks().to(dtype)
    found, apart = (lh.analyze(lh.Objective(model, given, loss, batch_size=size)) for size in (None, 4))
    assert said(found, note) and min(found.blocks[name].top[0] for name in ("a.weight", "b.weight")) > 0.1
    assert_same(found, apart)


def assert_same(found: lh.Analysis, apart: lh.Analysis) -> None:
    """Within the errors of both."""
    for name, spectrum in (*found.blocks.items(), ("(full)", found.full)):
        other = apart.full if name == "(full)" else apart.blocks[name]
        off = np.abs(spectrum.eigenvalues - other.eigenvalues)
        assert np.all(off <= spectrum.error_bounds + other.error_bounds), name
    assert found.gradient_norm == pytest.approx(apart.gradient_norm, rel=1e-5)


def test_only_the_kind_that_was_held_is_joined() -> None:
    class Centred(Tasks):
        def forward(self, x: Tensor, task: Any = None) -> Tensor:
            seen = self.body(x).tanh()  # sets of three are centred over the batch
            return self.a((seen if x.shape[1] == 2 else seen - seen.mean(0)).mean(1))  # type: ignore[no-any-return]

    made, sizes = torch.Generator().manual_seed(1), [2, 2] + [2, 3] * 6
    given = [(torch.randn(4, n, 5, generator=made), torch.randint(3, (4,), generator=made)) for n in sizes]
    model = Centred()
    model.b.requires_grad_(False)
    found, apart = (lh.analyze(of(model, given, batch_size=size)) for size in (None, 4))
    assert said(found, TOGETHER)
    assert_same(found, apart)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_term_of_every_batch_that_only_the_curvature_has(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    anchors = [p.detach().clone() for p in model.parameters()]

    def loss(model: Any, batch: Any) -> tuple[Tensor, int]:
        far = sum(((p - anchor) ** 2).sum() for p, anchor in zip(model.parameters(), anchors, strict=True))
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum") + 1e-2 * far, len(batch[1])

    given = [(x[:4].to(dtype), y[:4]) for x, y in data(n=16)]
    found, apart = (
        lh.analyze(lh.Objective(model, given, lh.batch_loss(loss), batch_size=size), bottom=1) for size in (None, 4)
    )
    assert said(found, ONE_BY_ONE)
    assert_same(found, apart)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tells_too_little_to_join(dtype: torch.dtype) -> None:
    given = [(x[:4].to(dtype), y[:4]) for x, y in data(n=16)]
    found = lh.analyze(of(network().to(dtype), given), exclude=None, full=False, tol=0.1)
    assert not said(found, TOGETHER)


def test_a_run_that_failed_together_is_resumed_with_its_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_report(monkeypatch)

    def change(out: Tensor, x: Tensor) -> Tensor:
        if len(x) > 40:
            raise ValueError("this model takes 40 at most")
        return out

    def run(**more: Any) -> lh.Analysis:
        return lh.analyze(of(Watched([], change), data(n=8)), **EVERYTHING, **more)

    whole = run()
    killed(lambda: run(out=tmp_path / "run", resume=True), in_pass(3))
    resumed = run(out=tmp_path / "run", resume=True)
    resumed.settings.pop("identity")
    assert said(resumed, FAILED)
    assert_same_bits(whole, resumed)


def test_a_forward_pass_that_fails_with_so_many_is_repeated_apart() -> None:
    def change(out: Tensor, x: Tensor) -> Tensor:
        if len(x) > 40:
            raise ValueError("this model takes 40 at most")
        return out

    model, given = Watched([], change), data(n=8)
    found = lh.analyze(of(model, given), top=2)
    assert said(found, "joined batches failed (this model takes 40 at most)")
    assert_right(found, model, given)


def test_memory_that_runs_out_with_so_many_is_no_reason_to_cut_batches() -> None:
    def change(out: Tensor, x: Tensor) -> Tensor:
        if len(x) > 40:
            raise MemoryError("too many")
        return out

    sizes: list[int] = []
    model, given = Watched(sizes, change), data(n=8)
    found = lh.analyze(of(model, given), top=2)
    assert said(found, FAILED) and not said(found, "were cut into pieces") and max(sizes) > 40
    assert_right(found, model, given)


def test_data_that_changes_is_refused_in_its_own_name() -> None:
    class Growing:
        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            return iter(data(n=4 + (self.passes > 2)))

    model = network()
    with refused(model, "the data changed between two passes"):
        lh.analyze(of(model, Growing()))


def test_a_product_that_is_not_finite_names_the_batch_of_the_user() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3).double())

        def forward(self, x: Tensor) -> Tensor:
            return ((self.w * x).abs() ** 1.5).sum(1)

    given = [(torch.ones(40, 3).double(), torch.zeros(40).double()) for _ in range(6)]
    given[4][0][17] = 0.0  # no example of the sample
    model = Root()
    with refused(model, "batch 4"):
        lh.analyze(lh.Objective(model, given, nn.MSELoss()))


def test_sampling_errors_are_those_of_the_batches_apart() -> None:
    given = data(n=20)
    both = [lh.analyze(of(network(), given, batch_size=size), sampling=True) for size in (None, 12)]
    assert said(both[0], TOGETHER) and both[0].groups is not None and both[1].groups is not None
    np.testing.assert_array_equal(both[0].groups.counts, both[1].groups.counts)
    assert both[0].groups.fingerprint == both[1].groups.fingerprint
    for name in both[0].blocks:
        one, other = (found.blocks[name].sampling_errors for found in both)
        np.testing.assert_allclose(one, other, rtol=1e-3)


def test_a_run_that_was_killed_goes_on_with_joined_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_report(monkeypatch)

    def run(**more: Any) -> lh.Analysis:
        return lh.analyze(of(network(), unequal()), blocks="module", **EVERYTHING, **more)

    whole = run()
    killed(lambda: run(out=tmp_path / "run", resume=True), in_pass(3))
    resumed = run(out=tmp_path / "run", resume=True)
    resumed.settings.pop("identity")
    assert said(resumed, TOGETHER)
    assert_same_bits(whole, resumed)


def test_estimate_says_what_joined_batches_take() -> None:
    found = lh.estimate(of(network(), data(n=40)))
    apart = lh.estimate(of(network(), data(n=40), batch_size=12))
    assert found.seconds < apart.seconds
