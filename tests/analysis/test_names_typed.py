"""Whatever of the library one types the name of: at most six lines of 100 columns, whole sentences, no arrays."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fabricated
import layerhess as lh
from curves_of_a_training import history
from layerhess.analysis.result import Analysis
from layerhess.linalg.estimates import CouplingEstimate, DensityEstimate, DiagonalEstimate, TraceEstimate
from layerhess.results.derived import Figure
from layerhess.results.spectrum import AnalysisRecord, Blocks

HOSTILE = "<script>alert('x')</script>\x1b[31m\n$x^2$ {0} %s " + "層" * 200


def parts(thing: Any, seen: set[int]) -> Iterator[Any]:
    """Every object of this package that can be reached through attributes, mappings and sequences."""
    if id(thing) in seen or isinstance(thing, (str, bytes, int, float, torch.Tensor, np.ndarray, torch.nn.Module)):
        return
    seen.add(id(thing))
    if type(thing).__module__.startswith("layerhess"):
        yield thing
        inner = list(vars(thing).values()) if hasattr(thing, "__dict__") else []
        public = [n for n, v in vars(type(thing)).items() if isinstance(v, property) and not n.startswith("_")]
        for value in [*inner, *(getattr(thing, name) for name in public)]:
            yield from parts(value, seen)
    if isinstance(thing, Mapping):
        for value in list(thing.values()):
            yield from parts(value, seen)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from parts(value, seen)


def is_short(thing: Any) -> str:
    text = repr(thing)
    lines = text.split("\n")
    assert len(lines) <= 6, text
    assert all(len(line) <= 100 and line.isprintable() for line in lines), text
    assert len(re.findall(r"(?<![\w.])-?\d[\d.,]*(?:e[+-]?\d+)?", text)) <= 40, text
    assert "CANNOT BE SHOWN" not in text, text
    assert not re.search(r"array\(|tensor\(", text), text
    if hasattr(thing, "_repr_html_"):
        html = thing._repr_html_()
        assert "<script" not in html and "CANNOT BE SHOWN" not in html and "http" not in html and len(html) < 60_000
    return text


@pytest.fixture(scope="module")
def objective() -> lh.Objective:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()
    x, y = torch.randn(40, 3).double(), torch.randint(2, (40,))
    return lh.Objective(model, [(x[:20], y[:20]), (x[20:], y[20:])], torch.nn.CrossEntropyLoss())


@pytest.fixture(scope="module")
def whole(objective: lh.Objective) -> Analysis:
    every: dict[str, Any] = dict.fromkeys(("trace", "diagonal", "density", "coupling", "sampling"), True)
    return lh.analyze(objective, top=2, bottom=1, **every)


def test_everything_an_analysis_leads_to_is_short(whole: Analysis) -> None:
    found = list(parts(whole, set()))
    kinds = {type(thing).__name__ for thing in found}
    assert kinds >= {
        "Analysis", "Blocks", "Spectrum", "TraceEstimate", "DiagonalEstimate", "DensityEstimate", "CouplingEstimate",
        "Derived", "Figure", "Check", "Counts", "Cost", "Eigenvectors", "Tensors",
    }  # fmt: skip
    assert len(found) > 60
    for thing in found:
        is_short(thing)


def test_every_operator_estimate_and_option_is_short(objective: lh.Objective) -> None:
    hessian = lh.Hessian(objective)
    made = [
        objective, hessian, lh.GaussNewton(objective), lh.EmpiricalFisher(objective), hessian.block("0.weight"),
        hessian.full, *hessian.blocks.values(), lh.eigsh(hessian, 3, "BE"), lh.eigsh(np.diag(np.arange(1.0, 400.0)), 7),
        lh.trace(hessian), lh.trace(hessian, method="hutchinson", probes=4), lh.density(hessian, probes=1, steps=3),
        lh.diagonal(hessian, probes=4), lh.coupling(hessian), lh.estimate(objective), lh.batch_loss(max),
        lh.Trace(), lh.Diagonal(), lh.Density(), lh.Coupling(),
    ]  # fmt: skip
    for thing in [*made, *parts(hessian, set()), *parts(hessian.verify(), set())]:
        assert is_short(thing)


def test_comparisons_slices_and_what_a_monitor_found_are_short(objective: lh.Objective) -> None:
    pair = lh.compare(
        [fabricated.estimated(fabricated.analysis()), fabricated.estimated(fabricated.analysis(bad=True))]
    )
    monitor = lh.Monitor(objective, every=1, overhead=None)
    points = [monitor.step() for _ in range(3)]
    slices = [lh.loss_slice(objective, d, points=3) for d in (("random", 0), (("random", 0), ("random", 1)))]
    for thing in (pair, pair.blocks, *pair.blocks.values(), monitor, *points, monitor.history, points[0].full, *slices):
        assert is_short(thing)
    assert "NOT CONVERGED" in is_short(pair.blocks)


def test_what_a_comparison_and_a_history_lead_to_is_short(whole: Analysis) -> None:
    compared = lh.compare([whole, whole])
    assert is_short(compared.blocks).startswith(f"{len(whole.blocks) + 1} blocks compared, 0 different")
    followed = history(names=(HOSTILE, *(f"b{index}.weight" for index in range(60))), points=300)
    for thing in [*parts(compared, set()), *parts(followed, set())][:90]:
        is_short(thing)
    assert is_short(followed).startswith("History of Net, 300 points")


def test_a_value_is_shown_with_its_bound_its_status_and_how_it_was_found(whole: Analysis) -> None:
    text = is_short(fabricated.spectrum("fc.weight"))
    assert text.splitlines()[1].startswith("  largest eigenvalue 1.20755 ± 0.00089, up to 1.256; smallest")
    assert "status: converged" in text and "found by lanczos, 24 products" in text and "probability 1 %" in text
    block = whole.blocks["0.weight"]
    assert block.spectrum is not None and f"trace {block.spectrum.sum():.6g}" in is_short(block)


def test_an_unchecked_product_is_known_by_its_closed_form() -> None:
    assert is_short(lh.eigsh(np.diag([1.0, 5.0, -7.0]), 2, "LM")).splitlines()[1].startswith("  -7.00000000 ± ")
    assert is_short(lh.trace(np.diag([1.0, 5.0, -7.0]))).startswith("Trace -1.00000000 ± ")


def test_what_has_not_converged_is_said_in_capitals(objective: lh.Objective) -> None:
    bad = fabricated.analysis(bad=True)
    text = is_short(bad)
    assert "STOPPED EARLY, 1 of 8 spectra NOT CONVERGED, 1 of 8 spectra REFUSED" in text
    assert "1 NOT CONVERGED, 1 REFUSED" in is_short(bad.blocks)
    assert is_short(bad.blocks["stem.weight"]).splitlines()[0].endswith("NOT CONVERGED")
    assert is_short(bad.blocks["head.weight"]).splitlines()[0].endswith("REFUSED")
    assert "not symmetric" in is_short(bad.blocks["head.weight"])
    assert "CONVERGED:" not in is_short(fabricated.analysis())
    left = lh.eigsh(np.diag(np.arange(1.0, 400.0)), 3, max_passes=2)
    assert is_short(left).splitlines()[0].endswith("NOT CONVERGED") and ">NO<" in left._repr_html_()
    open_trace = lh.trace(lh.Hessian(objective), rel=1e-9, method="hutchinson", max_probes=4)
    assert not open_trace.converged and is_short(open_trace).splitlines()[0].endswith("NOT CONVERGED")
    assert is_short(lh.Check("symmetry", False, "asymmetry 3e-2", "fc.weight", "fc")).startswith(
        "Check of symmetry: FAILED\n  block fc.weight, module fc\n"
    )


def test_the_pieces_that_missed_their_goals_are_named() -> None:
    trace = TraceEstimate(3.25, 0.5, 2.2, 4.3, 16, "hutchinson", False, "standard error 15 %, above what was asked for")
    made = fabricated.spectrum("fc.weight", trace=trace)
    assert is_short(made).splitlines()[0].endswith("TRACE NOT CONVERGED")
    assert "1 TRACE NOT CONVERGED" in is_short(Blocks({"fc.weight": made}))


def odd_records() -> list[Any]:
    nan, empty = float("nan"), np.empty(0)
    tensors = {HOSTILE: torch.empty(0), "scalar": torch.tensor(float("nan")), "b": torch.full((2, 3), float("inf"))}
    table = np.full((3, 3), nan)
    analysis = fabricated.analysis(bad=True, model=HOSTILE, partial=HOSTILE, notes=(HOSTILE,), loss=nan)
    blocks = {HOSTILE: fabricated.spectrum(HOSTILE), "no": fabricated.refused(HOSTILE)}
    return [
        fabricated.spectrum(HOSTILE, status=HOSTILE, path=HOSTILE, parameters=(HOSTILE,)),
        fabricated.spectrum(eigenvalues=np.full(3, nan), error_bounds=np.full(3, nan), missed_above=nan),
        fabricated.spectrum(eigenvalues=np.array([np.inf, 0.0, -np.inf]), error_bounds=np.full(3, np.inf)),
        fabricated.spectrum(eigenvalues=np.array([1e308, 5e-324, -1e308]), error_bounds=np.array([5e-324, 0.0, 1e308])),
        fabricated.refused(HOSTILE),
        fabricated.spectrum(status=""),
        dataclasses.replace(analysis, blocks=blocks),
        dataclasses.replace(analysis, blocks={}, full=None, full_mass=[]),
        AnalysisRecord(**{f.name: getattr(analysis, f.name) for f in dataclasses.fields(analysis)}),
        Blocks(),
        Blocks({f"b{i}": fabricated.spectrum(f"b{i}", (2,), i) for i in range(500)}),
        TraceEstimate(nan, nan, nan, nan, 0, "", False, HOSTILE),
        DiagonalEstimate(tensors, {}, 0, "exact", HOSTILE),
        DiagonalEstimate({}, {}, 0, "exact", ""),
        DensityEstimate(empty, empty, empty, empty, nan, 0, 0, empty, empty, nan, nan, nan, nan, HOSTILE, False),
        CouplingEstimate((HOSTILE, "a", "b"), table, table, nan, nan, 0, HOSTILE),
        CouplingEstimate((), table[:0, :0], table[:0, :0], nan, nan, 0, ""),
        Figure(nan, nan, ""),
        Figure(float("inf"), 0.0, "exact"),
        lh.Check(HOSTILE, False, HOSTILE * 9, HOSTILE, HOSTILE),
        lh.Counts(0, 0, 0, 0, 0, {HOSTILE: {}}),
    ]


@pytest.mark.parametrize("record", odd_records(), ids=lambda record: type(record).__name__)
def test_odd_records_are_shown_too(record: Any) -> None:
    assert is_short(record)
    for thing in parts(record, set()):
        is_short(thing)


def test_a_hostile_model_and_loader_are_shown_too() -> None:
    class Loader:
        def __len__(self) -> int:
            raise KeyError("no length")

        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("the data must not be read")

    kind = type("\x1b[2J" + "層" * 80, (torch.nn.Linear,), {})
    objective = lh.Objective(kind(2, 1), Loader(), torch.nn.MSELoss())
    assert "\\x1b[2J" in is_short(objective) and "data: Loader" in is_short(objective)
    assert is_short(lh.Hessian(objective)) and is_short(lh.Hessian(objective).block("weight"))


def test_blocks_and_vectors_are_dictionaries_and_lists_still(whole: Analysis, tmp_path: Path) -> None:
    full = whole.full
    assert full is not None and isinstance(full.eigenvectors, list) and isinstance(full.eigenvectors[0], dict)
    assert repr(full.eigenvectors).startswith("3 eigenvectors, each of 4 tensors, 20 entries")
    assert sum(float(part.square().sum()) for part in full.eigenvectors[0].values()) == pytest.approx(1.0)
    read = lh.load(whole.save(tmp_path / "run"))
    assert read.full is not None and repr(read.full.eigenvectors) == repr(full.eigenvectors)
    assert repr(copy.deepcopy(whole)) == repr(whole) == repr(pickle.loads(pickle.dumps(whole)))
    assert isinstance(whole.blocks, dict) and next(iter(whole.blocks)) == "0.weight"
