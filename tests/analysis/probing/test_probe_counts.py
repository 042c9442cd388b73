"""How many probes are made: as many as asked for, no more than allowed, and none that something else gives away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from layerhess.analysis.example_groups import SINGLE
from layerhess.curvature.data_pass import DataPass

Counts = Counter[str]


def objective(blocks: int = 20, width: int = 12) -> lh.Objective:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(blocks // 2):
        layers += [nn.Linear(width, width), nn.Tanh()]
    x, y = torch.randn(48, width).double(), torch.randint(width, (48,))
    return lh.Objective(nn.Sequential(*layers).double(), (x, y), nn.CrossEntropyLoss())


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Products of the probes, by the operator they are of; those of solvers and densities are left out."""
    counts: Counts = Counter()
    run = DataPass.run

    def counted(self: DataPass, requests: Mapping[str, Any]) -> dict[str, Tensor]:
        for key, request in requests.items():
            if self.counters.phase == "solve" and key.startswith(("(probes)", "(own probes)")):
                counts[request.block.name] += len(request.vectors)
        return run(self, requests)

    monkeypatch.setattr(DataPass, "run", counted)
    return counts


def made_for(counts: Counts, block: str) -> int:
    """A full product is one of every block."""
    return counts["(full)"] + counts[block]


def weights(analysis: lh.Analysis) -> list[lh.Spectrum]:
    return [s for s in analysis.blocks.values() if s.numel == 144]


@pytest.mark.parametrize("scheme", ["parameter", "one block"])
@pytest.mark.parametrize("probes", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 10, 20)), 16, 100])
def test_a_fixed_number_of_probes_is_made_exactly(spent: Counts, probes: int, scheme: str) -> None:
    blocks: Any = {"all": "2.weight"} if scheme == "one block" else scheme
    analysis = lh.analyze(objective(), blocks=blocks, full=False, trace=lh.Trace(probes=probes))
    for spectrum in weights(analysis):
        assert spectrum.trace is not None and spectrum.trace.probes == probes, spectrum.trace
        assert made_for(spent, spectrum.name) == probes
        assert spectrum.trace.standard_error > 0.0


@pytest.mark.parametrize("probes", [4, 20])
def test_the_full_trace_has_as_many(spent: Counts, probes: int) -> None:
    analysis = lh.analyze(objective(), trace=lh.Trace(probes=probes))
    assert analysis.full is not None and analysis.full.trace is not None
    assert analysis.full.trace.probes == probes
    assert all(made_for(spent, s.name) == probes for s in weights(analysis))


def test_the_larger_of_two_numbers_serves_both(spent: Counts) -> None:
    analysis = lh.analyze(objective(), full=False, trace=lh.Trace(probes=10), diagonal=lh.Diagonal(probes=20))
    for spectrum in weights(analysis):
        assert spectrum.trace is not None and spectrum.diagonal is not None
        assert spectrum.trace.probes == spectrum.diagonal.probes == 20
        assert made_for(spent, spectrum.name) == 20


def test_a_fixed_number_does_not_hold_back_what_is_to_be_reached(spent: Counts) -> None:
    """Four probes for the trace, and a diagonal to 30 %: the trace takes what the diagonal needs."""
    analysis = lh.analyze(objective(), full=False, trace=lh.Trace(probes=4), diagonal=lh.Diagonal(rel=0.3))
    for spectrum in weights(analysis):
        assert spectrum.trace is not None and spectrum.diagonal is not None
        assert "above" not in spectrum.diagonal.status
        assert spectrum.trace.method == "exact" or spectrum.trace.probes >= 16


def test_couplings_give_a_fixed_number_away(spent: Counts) -> None:
    analysis = lh.analyze(objective(), trace=lh.Trace(probes=8), coupling=lh.Coupling(probes=8), full=False)
    assert not spent
    for spectrum in weights(analysis):
        assert spectrum.trace is not None and spectrum.trace.probes == 8


@pytest.mark.parametrize("kind", ["trace", "diagonal"])
@pytest.mark.parametrize("most", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (16, 120)), 50])
def test_no_more_products_are_made_than_allowed(spent: Counts, most: int, kind: str) -> None:
    """Sketches and pilots count too; the tolerance is out of reach."""
    options = {"trace": lh.Trace, "diagonal": lh.Diagonal}[kind](rel=1e-6, max_probes=most)
    analysis = lh.analyze(objective(), full=False, **{kind: options})
    for spectrum in weights(analysis):
        assert 0 < made_for(spent, spectrum.name) <= most, spectrum.name


def test_densities_give_probes_away(spent: Counts) -> None:
    """Ten densities' starts serve traces, diagonals and couplings: what is left to make is less than half.

    From 35 to 56 % over four seeds, 42 % in the mean.
    """
    lh.analyze(objective(), top=1, trace=True, diagonal=True, seed=1)
    alone = sum(spent.values())
    spent.clear()
    analysis = lh.analyze(objective(), top=1, trace=True, diagonal=True, density=True, coupling=True, seed=1)
    assert sum(spent.values()) <= 0.5 * alone
    assert all(s.trace is not None and s.trace.converged for s in analysis.spectra())


# -- the price of everything ------------------------------------------------------------------------------------------


def shallow(batches: int = 1) -> lh.Objective:
    """22 blocks of 10 and 100 parameters, float32, in one batch or several."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(11):
        layers += [nn.Linear(10, 10), nn.Tanh()]
    x, y = torch.randn(64, 10), torch.randint(10, (64,))
    data = [(x, y)] if batches == 1 else list(zip(x.split(64 // batches), y.split(64 // batches), strict=True))
    return lh.Objective(nn.Sequential(*layers), data, nn.CrossEntropyLoss())


def kinked() -> lh.Objective:
    """20 blocks, ReLU, float64."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(6, 24), nn.ReLU()]
    for _ in range(8):
        layers += [nn.Linear(24, 24), nn.ReLU()]
    x, y = torch.randn(40, 6).double(), torch.randint(3, (40,))
    return lh.Objective(nn.Sequential(*layers, nn.Linear(24, 3)).double(), (x, y), nn.CrossEntropyLoss())


def wide() -> lh.Objective:
    """20 blocks of 60 and 3600 parameters; in the first layers the eigenvalues of a flat spectrum cancel."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(10):
        layers += [nn.Linear(60, 60), nn.Tanh()]
    return lh.Objective(nn.Sequential(*layers), (torch.randn(64, 60), torch.randint(60, (64,))), nn.CrossEntropyLoss())


ALL: dict[str, Any] = {"trace": True, "diagonal": True, "density": True, "coupling": True, "bottom": 1}


# Model, the factor without sampling errors, and with them. 1.2 is aimed at; what keeps some from it is that each
# example is a group of its own for the data's part of small blocks' traces, and that a trace that cancels takes its
# probes.
@pytest.mark.parametrize(
    ("build", "without", "with_sampling"),
    [
        pytest.param(shallow, 1.15, 1.26, id="shallow", marks=pytest.mark.slow),
        pytest.param(kinked, 1.15, 1.33, id="kinked", marks=pytest.mark.slow),
        pytest.param(lambda: shallow(16), 1.15, 1.18, id="sixteen batches", marks=pytest.mark.slow),
        pytest.param(wide, 1.45, 1.48, id="wide", marks=pytest.mark.slow),
    ],
)
def test_everything_costs_little_more_than_the_densities(build: Any, without: float, with_sampling: float) -> None:
    largest = lh.analyze(build(), top=0, density=True).counts.products
    analysis = lh.analyze(build(), **ALL)
    assert analysis.converged
    assert analysis.counts.products <= without * largest
    whole = lh.analyze(build(), sampling=True, **ALL)
    spent = whole.counts.by_phase["sampling"]["products"]
    in_batches = spent * whole.batches / whole.examples  # a product is that of one example here
    assert whole.examples <= SINGLE and whole.converged
    assert whole.counts.products - spent + in_batches <= with_sampling * largest
