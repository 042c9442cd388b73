"""A run is resumed only with the derivative that it had: a loss of the same value may have another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from changed_derivatives import ASKED, OUT, made
from commands import quick_report
from killed import in_pass, killed
from layerhess.analysis.identity import Content, other_derivative
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.objective.batches import pieces
from layerhess.results import store
from ranks import run_ranks
from resumed import Streamed, analyze, data, objective

OTHER = "the loss is the same, and its derivative .* is another"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_report(monkeypatch)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def in_another_order(batches: list[Any]) -> list[Any]:
    """The same examples, as many batches, none of which is the same."""
    columns = [torch.cat(column) for column in zip(*batches, strict=True)]
    order = torch.randperm(len(columns[0]), generator=torch.Generator().manual_seed(5))
    size = len(columns[0]) // len(batches)
    return [tuple(column[part] for column in columns) for part in order.split(size)]


@pytest.mark.parametrize("order", ["the same", "another"])
@pytest.mark.parametrize("kind", ["detach", "hook", "custom"])
def test_a_changed_derivative_is_refused(kind: str, order: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    killed(lambda: analyze(made(kind, False), out=out, **ASKED), in_pass(2))
    before = store.journal_path(out).read_bytes()
    batches = data() if order == "the same" else in_another_order(data())
    with pytest.raises(lh.InputError, match=OTHER):
        analyze(made(kind, True, batches), out=out, resume=True, **ASKED)
    assert store.journal_path(out).read_bytes() == before
    assert len(analyze(made(kind, False, batches), out=out, resume=True, **ASKED).blocks)


def test_a_changed_derivative_is_refused_with_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    monkeypatch.setenv(OUT, str(out))
    killed(lambda: analyze(made("detach", False), out=out, **ASKED), in_pass(2))
    for one in run_ranks(2, "changed_derivatives", "elsewhere", tmp_path / "ranks"):
        assert one.code == 0, one.stderr[-1500:]
        assert OTHER.split(" .* ")[0] in one.returned["True"] and one.returned["False"] == "True", one.returned


def test_a_hook_of_a_module_is_set_aside_and_no_difference(tmp_path: Path) -> None:
    def run(changed: bool) -> lh.Analysis:
        return analyze(made("hook of the module", changed), out=tmp_path / "run", resume=True, **ASKED)

    killed(lambda: run(False), in_pass(2))
    assert run(True).converged


# -- honest runs -------------------------------------------------------------------------------------------------------


def images(dtype: torch.dtype) -> list[Any]:
    """Most pixels are zero, as digits have them, so that pools see many equal numbers."""
    drawn = torch.Generator().manual_seed(2)
    x = torch.randn(24, 1, 8, 8, generator=drawn).clamp(min=1.0) - 1.0
    return list(zip(x.to(dtype).split(12), torch.randint(3, (24,), generator=drawn).split(12), strict=True))


def convolutions(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)).to(
        dtype
    )


@pytest.mark.filterwarnings("ignore:the weights are")
@pytest.mark.parametrize(
    ("dtype", "first", "then"),
    [(torch.float64, 1, 2), (torch.float32, 1, 2), (torch.float32, 2, 1),
     pytest.param(torch.float16, 1, 2, marks=pytest.mark.slow),
     pytest.param(torch.bfloat16, 1, 2, marks=pytest.mark.slow)],
)  # fmt: skip
def test_other_threads_are_no_other_derivative(
    dtype: torch.dtype, first: int, then: int, tmp_path: Path, threads: Callable[[int], None]
) -> None:
    def run(passes: int) -> lh.Analysis:  # not killed: a process with several threads cannot be forked
        made = objective(model=convolutions(dtype), data=images(dtype))
        asked: Any = {"blocks": {"all": "*"}, "full": False, "path": "exact", "method": "power", "skip_failed": True}
        return lh.analyze(made, out=tmp_path / "run", resume=True, max_passes=passes, **asked)

    threads(first)
    assert run(2).partial
    threads(then)
    assert run(3).blocks


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pieces_that_memory_asks_for_are_no_other_derivative(
    dtype: torch.dtype, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = HessianGraph.__init__, []

    def run() -> lh.Analysis:
        made = objective(model=convolutions(dtype), data=images(dtype))
        return analyze(made, out=tmp_path / "run", resume=True, path="exact", full=False)

    def init(self: HessianGraph, objective: Any, batch: Any, *others: Any) -> None:
        if len(batch[0]) > size:
            raise torch.OutOfMemoryError("CUDA out of memory, in this test")
        seen.append(len(batch[0]))
        real(self, objective, batch, *others)

    killed(run, in_pass(2))
    monkeypatch.setattr(HessianGraph, "__init__", init)
    assert run().converged and max(seen) == size


class OfTwelve(nn.Linear):
    """A layer for batches of twelve."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != 12:
            raise ValueError("twelve examples are needed")
        return super().forward(x)


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()


def of_twelve() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OfTwelve(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize("model", [normed, of_twelve])
def test_what_takes_whole_batches_only_is_resumed(model: Callable[[], nn.Module], tmp_path: Path) -> None:
    def run() -> lh.Analysis:
        return analyze(objective(model=model(), data=Streamed(data())), out=tmp_path / "run", resume=True, full=False)

    killed(run, in_pass(2))
    assert run().converged


# -- the examples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 7, 61])
def test_the_few_examples_are_the_same_in_any_order_and_batches(cut: int) -> None:
    drawn = torch.Generator().manual_seed(3)
    x, y = torch.randn(61, 3, generator=drawn), torch.arange(61)
    x[30:], y[30:] = x[:31].clone(), y[:31].clone()  # each twice
    whole, split = Content(), Content()
    whole.see((x, y))
    order = torch.randperm(61, generator=drawn)
    for batch in pieces((x[order], y[order]), cut):
        split.see(batch)
    for one, other in zip(whole.few.halves, split.few.halves, strict=True):
        (a,), (b,) = one, other
        assert len(a[0]) == 4 and torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert whole.few.digest == split.few.digest


def test_examples_of_several_lengths_and_batches_that_cannot_be_cut() -> None:
    lengths, whole = Content(), Content()
    for length in range(2, 9):
        lengths.see((torch.randn(3, length), torch.arange(3)))
        whole.see((torch.randn(3, length), torch.arange(4)))
    assert [len(half) for half in lengths.few.halves] in ([4, 4], [4, 1], [1, 4], [1, 1])
    assert [[len(batch[0]) for batch in half] for half in whole.few.halves] == [[3], [3]]


def test_a_kink_that_is_crossed_on_one_half_is_no_other_derivative() -> None:
    def of(*sums: float) -> dict[str, Any]:
        return {"examples": "a", "apart": 1e-2, "eps": 1e-7, "products": [{"w": [1.0, own]} for own in sums]}

    assert not other_derivative(of(0.5, 0.5), of(0.6, 0.5)) and not other_derivative(of(0.5, 0.5), of(0.5, 0.6))
    assert "'w'" in other_derivative(of(0.5, 0.5), of(0.6, 0.6))
    assert "'w'" in other_derivative(of(0.5, 0.5), of(float("nan"), 0.6))
    assert not other_derivative(of(), of()) and not other_derivative(of(0.5), of())
