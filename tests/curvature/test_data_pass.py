"""One pass serves every block; graphs are kept while they fit; whoever converged drops out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

import layerhess as lh
from layerhess.curvature import data_pass as data_pass_module
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import DataPass, Request
from layerhess.curvature.factors.mixed_graph import MixedGraphs
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.objective.blocks import Block, make_block
from layerhess.objective.objective import Objective
from refusals import PAIRS, Table, X, Y, analysis
from three_batches import batches, examples, net

GROWTH = 10**7  # bytes that the process seems to grow by at a look: more than a graph says it holds


def request(objective: Objective) -> dict[str, Request]:
    block: Block = make_block("(full)", objective.parameters)
    return {"(full)": Request(block, torch.ones(2, block.numel, dtype=torch.float64))}


def test_kept_graphs_give_the_products_of_fresh_ones_without_another_forward() -> None:
    objective = Objective(net(), batches(), nn.CrossEntropyLoss())
    with objective.session():
        counters = Counters()
        kept = DataPass(objective, list(objective.parameters), counters, keep=1e9)
        fresh = DataPass(objective, list(objective.parameters), Counters())
        first, again, other = (s.run(request(objective))["(full)"] for s in (kept, kept, fresh))
    assert torch.equal(first, again)
    torch.testing.assert_close(first, other, rtol=1e-13, atol=1e-16)
    assert counters.total("forwards") == 3 and kept.kept == 3 and fresh.kept == 0


@pytest.mark.parametrize("fits", [0, 1, 2, 3])
def test_as_many_graphs_are_kept_as_fit_the_budget(monkeypatch: pytest.MonkeyPatch, fits: int) -> None:
    used = iter(range(0, 100 * GROWTH, GROWTH))
    monkeypatch.setattr(data_pass_module, "used_bytes", lambda device: next(used))
    objective = Objective(net(), batches(), nn.CrossEntropyLoss())
    counters = Counters()
    with objective.session():
        data_pass = DataPass(objective, list(objective.parameters), counters, keep=GROWTH * fits + GROWTH // 2)
        first = data_pass.run(request(objective))["(full)"]
        assert data_pass.kept == fits
        again = data_pass.run(request(objective))["(full)"]
    torch.testing.assert_close(first, again, rtol=1e-13, atol=1e-16)
    assert counters.total("forwards") == 3 + (3 - fits)


@pytest.mark.parametrize("fits", [1, 3])
def test_batches_that_may_change_places_are_kept_all_or_not_at_all(monkeypatch: pytest.MonkeyPatch, fits: int) -> None:
    used = iter(range(0, 100 * GROWTH, GROWTH))
    monkeypatch.setattr(data_pass_module, "used_bytes", lambda device: next(used))
    loader = DataLoader(TensorDataset(*examples()), batch_size=30, shuffle=True)
    objective = Objective(net(), loader, nn.CrossEntropyLoss())
    reference = lh.Hessian(Objective(net(), examples(), nn.CrossEntropyLoss()))
    with objective.session():
        data_pass = DataPass(objective, list(objective.parameters), Counters(), keep=GROWTH * fits + GROWTH // 2)
        for _ in range(3):
            found = data_pass.run(request(objective))["(full)"][0]
            assert data_pass.kept == (3 if fits == 3 else 0)
    expected = reference.matvec(torch.ones(objective.numel, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_all_blocks_share_each_pass_and_leave_it_when_they_are_done() -> None:
    result = lh.analyze(Objective(net(), batches(), nn.CrossEntropyLoss()), blocks="weight", tol=1e-6, path="exact")
    steps = [s.steps for s in result.spectra()]
    assert len(set(steps)) > 1, "a test where all blocks need the same number of steps shows nothing"
    assert result.counts.passes == max(steps)
    assert result.counts.by_phase["solve"] == {"forwards": 1, "backwards": 1, "products": sum(steps)}, "joined"
    assert result.full is not None and result.counts.full_products == result.full.steps


def test_data_that_runs_dry_or_changes_is_refused_at_its_second_pass() -> None:
    class Shrinking:
        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            self.passes += 1
            return iter(batches()[: 4 - self.passes])

    with pytest.raises(lh.InputError, match="data changed between two passes"):
        lh.analyze(Objective(net(), Shrinking(), nn.CrossEntropyLoss()))


def test_out_of_memory_drops_kept_graphs_first_and_then_names_a_size_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective = Objective(net(), examples(64), nn.CrossEntropyLoss())

    def limited(objective: Objective, batch: tuple[torch.Tensor, torch.Tensor], *rest: object) -> object:
        if len(batch[0]) > 20:
            raise torch.OutOfMemoryError("out of memory")
        return HessianGraph(objective, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(lh.Hessian, "curvature", dataclasses.replace(lh.Hessian.curvature, make_graph=limited))
    with pytest.raises(lh.InputError, match="batch_size=16, which fits"):
        lh.Hessian(objective).matvec(torch.ones(objective.numel).double())
    fits = Objective(net(), examples(64), nn.CrossEntropyLoss(), batch_size=16)
    assert torch.isfinite(lh.Hessian(fits).matvec(torch.ones(objective.numel).double())).all()


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_pass_that_failed_half_way_leaves_nothing_behind(shuffle: bool) -> None:
    class Flaky:
        """Fails once, at its third batch."""

        def __init__(self) -> None:
            self.loader = DataLoader(TensorDataset(*examples()), batch_size=15, shuffle=shuffle)
            self.failed = False

        def __iter__(self):  # type: ignore[no-untyped-def]
            for i, batch in enumerate(self.loader):
                if i == 2 and not self.failed:
                    self.failed = True
                    raise OSError("the disk went away")
                yield batch

    hessian = lh.Hessian(Objective(net(), Flaky(), nn.CrossEntropyLoss()), check=False)
    v = torch.ones(hessian.shape[0]).double()
    with hessian.session():
        with pytest.raises(OSError, match="went away"):
            hessian.matvec(v)
        found = hessian.matvec(v)
    expected = lh.Hessian(Objective(net(), examples(), nn.CrossEntropyLoss())).matvec(v)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_a_gradient_is_timed_on_one_batch_and_scaled_by_its_share() -> None:
    counters = Counters()
    objective = Objective(net(), batches(), nn.CrossEntropyLoss())
    with objective.session():
        data_pass = DataPass(objective, list(objective.parameters), counters, time_unit=True)
        data_pass.run({})
        assert counters.gradient_seconds == pytest.approx(
            counters.seconds["unit"] * data_pass.count / data_pass.counts[0], rel=0.3
        )
        before = counters.gradient_seconds
        data_pass.run({})
    assert counters.gradient_seconds == before


class _Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: numbers read back, and shapes that depend on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(function) for word in ("_local_scalar_dense", "nonzero", "equal.default", "unique")):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", ["exact", "factors"])
@pytest.mark.parametrize("kind", ["convolutions", "attention"])
def test_a_pass_over_kept_graphs_reads_nothing_back(kind: str, way: str) -> None:
    torch.manual_seed(0)
    model: nn.Module
    if kind == "convolutions":
        layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)]
        model, x = nn.Sequential(*layers), torch.randn(20, 1, 6, 6)
    else:
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
        model, x = nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)), torch.randn(20, 5, 8)
    objective = Objective(model, [(x, torch.randint(0, 3, (20,)))] * 2, nn.CrossEntropyLoss(), mode="eval")
    names = [name for name, parameter in objective.parameters.items() if parameter.ndim > 1]
    make = HessianGraph if way == "exact" else MixedGraphs({n: (n,) for n in names[-1:]}, HessianGraph, linear=True)
    with objective.session():
        data_pass = DataPass(objective, list(objective.parameters), Counters(), make_graph=make, keep=1e9)
        blocks = {name: make_block(name, {name: objective.parameters[name]}) for name in names}
        requests = {n: Request(b, torch.randn(2, b.numel, dtype=torch.float64)) for n, b in blocks.items()}
        data_pass.run(requests)
        assert data_pass.kept == 2
        with _Reads() as reads:
            data_pass.run(requests)
        assert not reads.found
        with _Reads() as control:
            float(x.sum())
        assert control.found


# -- refused in words --------------------------------------------------------------------------------------------------

TABLE = Table()
case = TABLE.case


class Changing:
    """Other batches at every pass."""

    def __init__(self, *passes: Any) -> None:
        self.passes, self.number = passes, -1

    def __iter__(self) -> Iterator[Any]:
        self.number += 1
        return iter(self.passes[min(self.number, len(self.passes) - 1)])


class OneIterator:
    """Looks re-iterable, and hands out the same iterator each time."""

    def __init__(self) -> None:
        self.iterator = iter(PAIRS)

    def __iter__(self) -> Iterator[Any]:
        return self.iterator


case("second pass: empty", "changed between two passes", "empty")(analysis(lambda: Changing(PAIRS, [])))
case("second pass: the same iterator, used up", "changed between two passes", "empty")(analysis(OneIterator))
case("second pass: fewer batches", "changed between two passes", "7 where it was 12")(
    analysis(lambda: Changing(PAIRS, PAIRS[:1]))
)
case("second pass: more batches", "changed between two passes")(analysis(lambda: Changing(PAIRS[:1], PAIRS)))
case("second pass: other values", "changes from pass to pass")(analysis(lambda: Changing(PAIRS, [(X + 1.0, Y)])))


class Augmented(Dataset[Any]):
    """Every look at an example shows it differently."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        return X[i] + 0.1 * torch.randn(4), Y[i]


case("second pass: random augmentation", "changes from pass to pass", "without randomness")(
    analysis(DataLoader(Augmented(), batch_size=4))
)
case("second pass: another draw of examples", "changes from pass to pass")(
    analysis(DataLoader(TensorDataset(X, Y), batch_size=4, sampler=WeightedRandomSampler([1.0] * 12, 12)))
)
case("second pass: another batch dropped", "drop_last=False")(
    analysis(DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True, drop_last=True))
)


@pytest.mark.parametrize("name", TABLE)
def test_bad_data_and_losses_are_refused_in_words(name: str) -> None:
    TABLE.check(name)
