"""Examples that are dealt into groups: what is found is what the groups' own dense matrices say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from grouped_batches import dealt, jackknifed, whole_batches
from layerhess.analysis import example_groups, sampling_errors
from references import dense

X = torch.randn(70, 4, generator=torch.Generator().manual_seed(0)).double()
Y = torch.arange(70) % 3


def model(activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3)).double()


def totals(call: Any, batch: Any) -> tuple[Tensor, Tensor]:
    x, y = batch
    return nn.functional.cross_entropy(call(x), y, reduction="sum"), torch.tensor(float(len(y)))


def groups(net: nn.Module, names: tuple[str, ...]) -> tuple[list[np.ndarray], np.ndarray]:
    """Every group's own dense block, times its count; and the counts."""
    cuts = dealt(X, Y)
    counts = np.array([float(len(y)) for _, y in cuts])
    matrices = [dense.reference_for(net, [cut], totals).block(list(names)) for cut in cuts]
    return [count * np.asarray(matrix) for count, matrix in zip(counts, matrices, strict=True)], counts


@pytest.mark.parametrize("path", ["exact", "auto"])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_sampling_errors_of_a_cut_batch_are_those_of_its_groups(activation: Callable[[], nn.Module], path: str) -> None:
    net = model(activation)
    analysis = lh.analyze(lh.Objective(net, (X, Y), nn.CrossEntropyLoss()), top=2, trace=True, sampling=True, path=path)
    assert analysis.full is not None and len(analysis.blocks) == 4
    for spectrum in analysis.spectra():
        matrices, counts = groups(net, spectrum.parameters)
        for index in range(2):
            v = torch.cat([part.reshape(-1) for part in spectrum.eigenvectors[index].values()]).numpy()
            truth = jackknifed(np.array([v @ matrix @ v for matrix in matrices]), counts)
            assert spectrum.sampling_errors[index] == pytest.approx(truth, rel=1e-6, abs=1e-12), spectrum.name
        small = spectrum.numel <= sampling_errors.EXACT
        if small or (path == "auto" and activation is nn.ReLU):  # the others' traces come from random vectors
            truth = jackknifed(np.array([np.trace(matrix) for matrix in matrices]), counts)
            assert spectrum.trace is not None
            assert spectrum.trace.sampling_error == pytest.approx(truth, rel=1e-6, abs=1e-12), spectrum.name


def test_forms_of_licensed_blocks_take_no_products_of_the_pieces() -> None:
    objective = lh.Objective(model(nn.ReLU), (X, Y), nn.CrossEntropyLoss())
    found, exact = (
        lh.analyze(objective, full=False, sampling=True, path=path).counts.by_phase["sampling"]
        for path in ("auto", "exact")
    )
    assert found["products"] == 4  # one for every block's vector
    assert exact["products"] == 16 * 4  # pieces times vectors


def test_factors_whose_items_are_not_the_examples_leave_the_groups_to_the_pieces() -> None:
    """Two outputs of every example: groups of items would not be groups of examples."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model(nn.ReLU)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(torch.stack([x, x + 1.0], dim=1)).flatten(0, 1)  # type: ignore[no-any-return]

    def doubled(call: Any, batch: Any) -> tuple[Tensor, Tensor]:
        x, y = batch
        target = y.repeat_interleave(2)
        return nn.functional.cross_entropy(call(x), target, reduction="sum"), torch.tensor(2.0 * len(y))

    def loss(output: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        return doubled(lambda x: output, batch)

    net = Twice()
    judged = lh.batch_loss(loss, output=lambda net, batch: net(batch[0]))
    analysis = lh.analyze(lh.Objective(net, (X, Y), judged), sampling=True)
    for spectrum in analysis.blocks.values():
        forms, counts = [], []
        v = torch.cat([part.reshape(-1) for part in spectrum.eigenvectors[0].values()]).numpy()
        for cut in dealt(X, Y):
            matrix = np.asarray(dense.reference_for(net, [cut], doubled).block(list(spectrum.parameters)))
            counts.append(2.0 * len(cut[1]))
            forms.append(counts[-1] * float(v @ matrix @ v))
        truth = jackknifed(np.array(forms), np.array(counts))
        assert spectrum.sampling_errors[0] == pytest.approx(truth, rel=1e-6, abs=1e-12), spectrum.name


@pytest.mark.parametrize("top", [1, 3])
def test_traces_of_small_blocks_whose_factors_know_no_rows_are_whole(top: int) -> None:
    """An embedding's factors have forms of its eigenvectors, and no share of the trace for every example."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(4, 3), nn.Flatten(), nn.Linear(6, 3)).double()
    x = torch.randint(0, 4, (70, 2), generator=torch.Generator().manual_seed(1))
    analysis = lh.analyze(lh.Objective(net, (x, Y), nn.CrossEntropyLoss()), top=top, trace=True, sampling=True)
    block = analysis.blocks["0.weight"]
    assert block.path.endswith("on factors") and block.trace is not None
    cuts = dealt(x, Y)
    counts = np.array([float(len(y)) for _, y in cuts])
    matrices = [np.asarray(dense.reference_for(net, [cut], totals).block(["0.weight"])) for cut in cuts]
    forms = counts * np.array([np.trace(matrix) for matrix in matrices])
    assert block.trace.sampling_error == pytest.approx(jackknifed(forms, counts), rel=1e-6)


def test_no_batch_is_factored_where_no_trace_is_asked_for_and_none_is_cut() -> None:
    data = list(zip(X.repeat(5, 1).split(17), Y.repeat(5).split(17), strict=True))
    with whole_batches():
        analysis = lh.analyze(lh.Objective(model(nn.ReLU), data, nn.CrossEntropyLoss()), full=False, sampling=True)
    assert len(data) >= example_groups.GROUPS
    assert analysis.counts.by_phase["sampling"]["forwards"] == len(data)


@pytest.mark.parametrize("kind", [nn.Tanh, nn.ReLU])
def test_batches_beyond_so_many_are_joined(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty batches in twenty groups give the errors of twenty batches, each of two of them."""
    monkeypatch.setattr(example_groups, "MOST_GROUPS", 20)
    monkeypatch.setattr(example_groups, "DEALT", 0)
    x, y = X.repeat(5, 1)[:80], Y.repeat(5)[:80]
    found = [
        lh.analyze(lh.Objective(model(kind), list(zip(x.split(n), y.split(n), strict=True)), nn.CrossEntropyLoss()),
                   full=False, trace=True, sampling=True, blocks="module")
        for n in (2, 4)
    ]  # fmt: skip
    for one, other in zip(found[0].spectra(), found[1].spectra(), strict=True):
        assert one.sampling_errors == pytest.approx(other.sampling_errors, rel=1e-5)
        assert one.trace.sampling_error == pytest.approx(other.trace.sampling_error, rel=1e-5)
