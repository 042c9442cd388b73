"""What is not done is told, by the number that is not done, in every view; and what is done is not blamed for it."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fabricated
import layerhess as lh
from layerhess.analysis.result import Analysis
from layerhess.linalg.estimates import CouplingEstimate, TraceEstimate
from layerhess.show import numbers, report, summary
from layerhess.show.notebook import as_html
from layerhess.show.table import as_text


def problem(examples: int = 40) -> lh.Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).double()
    data = (torch.randn(examples, 6).double(), torch.randint(4, (examples,)))
    return lh.Objective(model, data, nn.CrossEntropyLoss())


def views(analysis: Analysis) -> list[str]:
    """The text of terminal, notebook and report, without line breaks."""
    shown = (as_text(analysis), as_html(analysis), report.as_html(analysis))
    return [re.sub(r"\s+", " ", text) for text in shown]


def test_a_trace_that_is_not_reached_is_no_unconverged_eigenvalue() -> None:
    trace = lh.Trace(rel=1e-4, max_probes=20, method="hutchinson")
    analysis = lh.analyze(problem(), trace=trace, path="exact")  # with factors, 2.weight would have an exact trace
    block = analysis.blocks["0.weight"]
    assert block.solved and not block.ok and not analysis.converged
    for text in views(analysis):
        assert re.search(r"[1-5] of 5 traces NOT CONVERGED", text)
        assert "spectra NOT CONVERGED" not in text and "CONVERGED</td>" not in text
        assert re.search(
            r"0\.weight.{0,40}: trace not converged: standard error .* from 20 random vectors, above", text
        )
    assert "It has not converged" not in summary.stable_step(analysis).sentence
    status = next(line for line in as_text(analysis).splitlines() if line.startswith("0.weight "))
    assert status.endswith(" converged")


def test_without_eigenvalues_no_one_is_blamed_for_having_none() -> None:
    analysis = lh.analyze(problem(), top=0, trace=lh.Trace(rel=1e-4, max_probes=20, method="hutchinson"))
    text = as_text(analysis)
    assert "no eigenvalues were asked for" in text and "NO EIGENVALUES" not in text
    assert "traces NOT CONVERGED" in text


def test_a_density_that_was_stopped_early_is_not_ok_and_gives_no_ranks() -> None:
    analysis = lh.analyze(problem(), density=True, bottom=1, max_passes=8, path="exact")
    block = analysis.blocks["0.weight"]
    assert block.density is not None and not block.density.finished and not block.ok
    assert not block.derived.effective_rank.known
    assert np.isnan(analysis.to_frame("blocks").set_index("block").effective_rank["0.weight"])
    for text in views(analysis):
        assert "densities STOPPED EARLY" in text
        assert "density stopped early, after 8 Lanczos steps from 10 random vectors of the 30 steps asked for" in text
    assert "STOPPED EARLY (0.weight, 2.weight, full model) are coarser" in views(analysis)[2], "and not drawn"
    whole = lh.analyze(problem(), density=True, bottom=1)
    assert whole.converged and whole.blocks["0.weight"].derived.effective_rank.known


def test_after_one_step_a_density_has_no_second_moment_and_no_distances() -> None:
    analysis = lh.analyze(problem(), top=0, density=True, coupling=True, max_passes=1)
    density = analysis.blocks["0.weight"].density
    assert density is not None and np.isfinite(density.mean) and np.isnan(density.second)
    assert all(check.passed for check in analysis.checks)
    assert analysis.coupling is None or analysis.coupling.divergence is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"trace": True, "diagonal": True, "coupling": True}, "traces, diagonals, couplings"),
        ({"trace": True, "sampling": True}, "traces, sampling errors"),
    ],
)
def test_what_was_asked_for_and_not_begun_is_told(asked: dict[str, Any], said: str) -> None:
    analysis = lh.analyze(problem(), max_passes=2, **asked)
    assert analysis.blocks["0.weight"].trace is None
    for text in views(analysis):
        assert f"Asked for, and not begun when it stopped: {said}." in text
    done = lh.analyze(problem(), **asked)
    assert "not begun" not in as_text(done)
    assert "not begun" not in as_text(lh.analyze(problem(), max_passes=2))


# -- diagonals --------------------------------------------------------------------------------------------------------


def test_a_diagonal_whose_error_was_asked_for_and_not_reached_is_not_ok() -> None:
    analysis = lh.analyze(problem(), diagonal=lh.Diagonal(rel=0.001, max_probes=16), path="exact")
    block, full = analysis.blocks["0.weight"], analysis.full
    assert block.diagonal is not None and not block.diagonal.converged and not block.ok and not analysis.converged
    assert full is not None and full.diagonal is not None and not full.diagonal.converged
    assert re.search(r"assembled .*standard error .* % of the diagonal's norm from 16 random", full.diagonal.status)
    for text in views(analysis):
        assert "3 of 5 diagonals NOT CONVERGED" in text and "above the 0.1 % asked for" in text


@pytest.mark.parametrize("asked", [True, lh.Diagonal(probes=16), lh.Diagonal(max_probes=16, required=False)])
def test_a_diagonal_that_asks_for_what_its_probes_give_is_what_was_asked_for(asked: Any) -> None:
    analysis = lh.analyze(problem(), diagonal=asked, path="exact")
    block = analysis.blocks["0.weight"]
    assert block.diagonal is not None and not block.diagonal.converged, "it says so"
    assert block.ok and analysis.converged and "asked for" not in block.diagonal.status


def test_an_exact_diagonal_of_the_whole_model_says_so() -> None:
    full = lh.analyze(problem(), blocks={"a": "*.bias"}, full=False, diagonal=True).blocks["a"]
    assert full.diagonal is not None and full.diagonal.method == "exact" and full.diagonal.converged
    whole = lh.analyze(
        lh.Objective(nn.Linear(3, 2), (torch.randn(9, 3), torch.randn(9, 2)), nn.MSELoss()), diagonal=True
    )
    assert whole.full is not None and whole.full.diagonal is not None and whole.full.diagonal.method == "exact"


def test_estimates_that_stand_alone_are_shown() -> None:
    text = as_text(lh.analyze(problem(), top=0, diagonal=lh.Diagonal(probes=16), path="exact"))
    assert re.search(r"^block +diagonal", text, re.MULTILINE) and "standard error" in re.sub(r"\s+", " ", text)
    text = as_text(lh.analyze(problem(), top=0, density=lh.Density(steps=50, probes=2)))
    assert "5 spectral densities (50 Lanczos steps from 2 random vectors; 2 from whole spectra)" in text
    said = re.sub(r"\s+", " ", text)  # 40 parameters allow no more than 40 steps
    assert "fewer than the 50 asked for in: 2.weight" in said


# -- couplings of a part ----------------------------------------------------------------------------------------------


def test_a_share_among_some_blocks_is_not_that_of_the_model() -> None:
    some = lh.analyze(problem(), blocks={"enc": "0.weight", "dec": "2.weight"}, coupling=True)
    for text in views(some):
        assert "Coupling: among the blocks analysed" in text and "0.bias, 2.bias in no block" in text
        assert "so much is left out" not in text
    assert some.coupling is not None and some.coupling.status.startswith("among these blocks")
    one = lh.analyze(problem(), blocks={"enc": "0.weight"}, coupling=True)
    assert one.coupling is not None and "nothing to couple with" in one.coupling.status
    assert not any("lies off the" in text for text in views(one))
    assert any("so much is left out" in text for text in views(lh.analyze(problem(), coupling=True)))


def test_blocks_that_were_refused_are_named_beside_the_share() -> None:
    made = fabricated.analysis(bad=True)
    names = tuple(name for name in made.blocks if name != "head.weight")
    table = np.ones((len(names), len(names)))
    made = dataclasses.replace(made, coupling=CouplingEstimate(names, table, table, 0.4, 0.01, 8, "fine"))
    assert "head.weight refused" in as_text(made)


# -- figures in words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "error", "text"),
    [
        (0.0264, 5.5e-5, "2.6 ± 0.1 %"),
        (0.026354, 0.0011, "2.64 ± 0.12 %"),
        (0.0264, 7e-4, "2.64 ± 0.10 %"),
        (0.9999, 1e-6, "100.0 ± 0.1 %"),
    ],
)
def test_a_share_has_no_more_digits_than_its_error(share: float, error: float, text: str) -> None:
    assert numbers.share_with_error(share, error) == text


@pytest.mark.parametrize("width", [100, 80, 60, 50])
def test_short_names_and_numbers_are_never_cut(width: int) -> None:
    trace = TraceEstimate(3.25, 0.05, 3.15, 3.35, 32, "hutchinson", True, "standard error 1.5 %", 0.4)
    made = fabricated.analysis()
    errors = {name: np.full(len(s.eigenvalues), 0.02) for name, s in made.blocks.items()}
    blocks = {
        name: dataclasses.replace(s, trace=trace, sampling_errors=errors[name]) for name, s in made.blocks.items()
    }
    text = as_text(dataclasses.replace(made, blocks=blocks), width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    for name in blocks:
        assert len(re.findall(rf"^{re.escape(name)} ", text, re.MULTILINE)) == 2, name
    assert "3.250 ± 0.050" in text and ("data, trace" in text) == (width == 100)


def test_more_examples_have_to_be_of_the_same_kind() -> None:
    notes = lh.analyze(problem(64), sampling=True).notes
    assert any("192 more examples of the same kind would halve it" in note for note in notes)
