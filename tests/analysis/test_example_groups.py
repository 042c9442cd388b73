"""Examples dealt into groups by their content: neither their order nor batches nor ranks play a part."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from grouped_batches import dealt, flat, jackknifed
from layerhess.analysis import example_groups
from layerhess.analysis.example_groups import Dealing
from layerhess.objective import batches
from layerhess.objective.example_digests import by_example
from references import dense
from zoo_losses import cross_entropy_totals

Batch = tuple[Tensor, Tensor]


def data(n: int) -> Batch:
    """Examples of which some occur twice, and one ten times."""
    drawn = torch.Generator().manual_seed(n)
    x, y = torch.randn(n, 4, generator=drawn).double(), torch.randint(3, (n,), generator=drawn)
    x[n // 2 : n // 2 + 9], y[n // 2 : n // 2 + 9] = x[:9].clone(), y[:9].clone()
    x[-10:], y[-10:] = x[0].clone(), y[0].clone()
    return x, y


def split(whole: Batch, sizes: list[int]) -> list[Batch]:
    x, y = whole
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def contents(shares: list[list[Batch]], groups: int = 16) -> list[list[Any]]:
    """What is in each group, sorted, of data that lie on several ranks."""
    digests = [np.concatenate([by_example((torch.empty(0), torch.empty(0))), *map(by_example, own)]) for own in shares]
    found: list[list[Any]] = [[] for _ in range(groups)]
    for rank, own in enumerate(shares):
        for (x, y), places in Dealing(digests, rank, groups).placed(iter(own)):
            for row, target, place in zip(x.tolist(), y.tolist(), places, strict=True):
                found[place].append((target, row))
    return [sorted(own) for own in found]


@pytest.mark.parametrize("n", [65, 150])
def test_groups_are_the_same_however_the_examples_lie(n: int) -> None:
    whole = data(n)
    known = contents([[whole]])
    sizes = [len(own) for own in known]
    assert sum(sizes) == n and max(sizes) - min(sizes) <= 1
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    shuffled = (whole[0][order], whole[1][order])
    ragged = split(shuffled, [1, n - 30, 7, 22])
    assert contents([ragged]) == known
    assert contents([ragged[:1], [], ragged[1:]]) == known
    assert contents([ragged[2:], ragged[:2]]) == known


def test_pieces_lie_in_one_group_each_and_are_no_larger_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data(150)
    dealing = Dealing([by_example((x, y))], 0, 16)
    groups = [sorted(map(tuple, own.tolist())) for own, _ in dealt(x, y)]

    def pieces(size: int) -> list[tuple[int, Any]]:
        given = zip(x.split(size), y.split(size), strict=True)
        return [(dealing.listing.place, own) for own, _ in dealing.pieces(given, size)]

    for size, number in [(60, 16), (5, None)]:
        made = pieces(size)
        assert number is None or len(made) == number
        assert max(len(own) for _, own in made) <= size
        for place, group in enumerate(groups):
            assert sorted(tuple(row) for at, own in made if at == place for row in own.tolist()) == group
    monkeypatch.setattr(batches, "HELD", 60 * 5 * 8)  # bytes of one batch
    assert 16 < len(pieces(60)) < 48


def test_groups_have_on_average_the_spread_of_the_examples() -> None:
    """Forty data sets, in half of which every example occurs ten times: the squared errors are those by examples."""
    for copies in (1, 10):
        ratios = []
        for seed in range(40):
            rng = np.random.default_rng(seed)
            sums, counts = rng.standard_normal(400 // copies), rng.integers(1, 7, 400 // copies).astype(float)
            sums, counts = np.tile(sums + counts, copies), np.tile(counts, copies)
            each = torch.from_numpy(np.stack([sums, counts], axis=1))
            groups = [own.sum(dim=0).numpy() for own, _ in dealt(each, torch.zeros(400))]
            grouped = jackknifed(*np.array(groups).T)
            ratios.append((grouped / jackknifed(sums, counts)) ** 2)
        assert abs(np.mean(ratios) - 1.0) < 4.0 * math.sqrt(2.0 / 15.0 / 40), copies


def test_errors_are_those_of_every_examples_own_matrix_added_up_over_groups() -> None:
    """Unequal tokens: of each example a third to all of its targets count. A group deleted at a time gives the same."""
    drawn = torch.Generator().manual_seed(3)
    x = torch.randn(100, 3, 4, generator=drawn).double()
    y = torch.randint(3, (100, 3), generator=drawn)
    for row in range(100):
        y[row, 1 + row % 3 :] = -100

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).transpose(1, 2)  # type: ignore[no-any-return]

    net = Tokens()
    found = lh.analyze(
        lh.Objective(net, split((x, y), [45, 30, 25]), nn.CrossEntropyLoss()), blocks={"b": "net.2.bias"}, sampling=True
    )
    for spectrum in found.spectra():
        v = flat(spectrum.eigenvectors[0])
        forms, counts = [], []
        for xs, ys in dealt(x, y):
            own = []
            for one, target in zip(xs, ys, strict=True):
                terms = target >= 0
                matrix = dense.reference_for(net.net, [(one[terms], target[terms])], cross_entropy_totals)
                block = matrix.block([name.removeprefix("net.") for name in spectrum.parameters])
                own.append((float(terms.sum()) * float(v @ np.asarray(block) @ v), float(terms.sum())))
            forms.append(sum(form for form, _ in own))
            counts.append(sum(count for _, count in own))
        sums, numbers = np.array(forms), np.array(counts)
        assert len(set(counts)) > 3
        assert spectrum.sampling_errors[0] == pytest.approx(jackknifed(sums, numbers), rel=1e-8), spectrum.name
        without = (sums.sum() - sums) / (numbers.sum() - numbers)  # the jackknife itself: to second order the same
        square = 15 / 16 * ((without - without.mean()) ** 2).sum()
        assert spectrum.sampling_errors[0] == pytest.approx(math.sqrt(square), rel=0.1)


@pytest.mark.parametrize("kind", [nn.Tanh, nn.ReLU])
def test_sampling_errors_are_the_same_in_any_batches(kind: type[nn.Module]) -> None:
    """From pieces that are multiplied, and from factors; in shuffled ragged batches, and in pieces of them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 7), kind(), nn.Linear(7, 3)).double()
    x, y = data(150)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    every = [
        lh.analyze(lh.Objective(net, given, nn.CrossEntropyLoss(), **options), blocks="module", top=2,
                   trace=lh.Trace(probes=2), sampling=True)
        for given, options in [
            ((x, y), {}),
            (split((x[order], y[order]), [1, 80, 3, 66]), {}),
            (split((x, y), [15] * 10), {"batch_size": 4}),
        ]
    ]  # fmt: skip
    for other in every[1:]:
        for one, two in zip(every[0].spectra(), other.spectra(), strict=True):
            assert one.sampling_errors == pytest.approx(two.sampling_errors, rel=1e-10)
            assert one.trace.sampling_error == pytest.approx(two.trace.sampling_error, rel=1e-10)  # type: ignore


@pytest.mark.parametrize("number", [3, 20])
def test_sequences_padded_to_other_lengths_are_whole_batches_where_there_are_many(number: int) -> None:
    """Pieces would hold an example or two each."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(4, 3, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(x).sum(dim=1))  # type: ignore[no-any-return]

    x, y = data(120)
    given = []
    for place, (own, target) in enumerate(split((x, y), [120 // number] * number)):
        padding = torch.zeros(len(own), place % 3, 4).double()
        given.append((torch.cat([own[:, None], padding], dim=1), target))
    torch.manual_seed(0)
    found = lh.analyze(lh.Objective(Padded(), given, nn.CrossEntropyLoss()), full=False, sampling=True, path="exact")
    assert any(f"between {max(number, 16)} groups" in note for note in found.notes)
    assert all(np.isfinite(block.sampling_errors).all() for block in found.blocks.values())


def test_where_memory_runs_out_pieces_are_smaller_and_groups_the_same() -> None:
    most = [1000]

    class Small(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > most[0]:
                raise MemoryError
            return super().forward(x)  # type: ignore[no-any-return]

    net = Small(*network())
    objective = lh.Objective(net, data(150), nn.CrossEntropyLoss())
    known = lh.analyze(objective, full=False, sampling=True, path="exact")

    with pytest.MonkeyPatch.context() as patch:
        groups_of = example_groups.groups_of

        def short(*arguments: Any) -> Any:
            most[0] = 4
            return groups_of(*arguments)

        patch.setattr("layerhess.analysis.sampling_errors.groups_of", short)
        found = lh.analyze(objective, full=False, sampling=True, path="exact")
    assert most == [4] and any("cut into pieces of 4 examples" in note for note in found.notes)
    for name, block in known.blocks.items():
        assert block.sampling_errors == pytest.approx(found.blocks[name].sampling_errors, rel=1e-10)
