"""The facts of a result in words: the stable step, the most negative curvature, what may have been missed."""

from __future__ import annotations

import numpy as np

import fabricated
from fabricated import one
from layerhess.show import numbers, summary
from layerhess.show.notebook import as_html
from layerhess.show.table import as_text


def test_without_the_full_model_the_step_is_only_bounded() -> None:
    made = fabricated.analysis(full=None, full_mass=[])
    largest = max(s.top[0] for s in made.blocks.values())
    step = summary.stable_step(made)
    assert step.value == f"≤ {2 / largest:.4g}" and "at most" in step.sentence
    lowest = min(s.bottom[0] for s in made.blocks.values())
    assert summary.most_negative(made).value == f"{lowest:.4g}"


def test_no_positive_curvature_means_no_limit() -> None:
    block = fabricated.spectrum("w", eigenvalues=np.array([-1.0, -2.0, -3.0]))
    assert summary.stable_step(one(block)).value == "no limit"


def test_a_smallest_eigenvalue_within_its_bound_of_zero_is_not_called_negative() -> None:
    block = fabricated.spectrum("w", eigenvalues=np.array([3.0, 1.0, -1e-9]), error_bounds=np.full(3, 1e-6))
    assert summary.most_negative(one(block)).value == "none found"


def test_an_unconverged_largest_eigenvalue_is_flagged_at_the_step() -> None:
    made = one(fabricated.unconverged(fabricated.spectrum("w")))
    assert "not converged" in summary.stable_step(made).sentence


def test_the_operator_is_named() -> None:
    names = {"hessian": "H_bb", "gauss_newton": "G_bb", "empirical_fisher": "F_bb"}
    for operator, symbol in names.items():
        made = one(fabricated.spectrum("w", operator=operator))
        assert symbol in as_text(made) and operator in as_text(made) and symbol in as_html(made)


def test_what_may_have_been_missed_is_said_for_every_kind_of_spectrum() -> None:
    made = fabricated.analysis(bad=True)
    sentence = summary.missed_overall(made)
    finite = sum(not s.complete and np.isfinite(s.missed_factor) for s in made.spectra())
    assert f"In {finite} of 8 spectra a further eigenvalue above 1.04 times lambda_max is excluded" in sentence
    assert "at most 1 %" in sentence
    assert "Of 1 the whole spectrum was computed" in sentence
    assert "In 1 nothing can be excluded" in sentence


def test_interlacing_is_told_with_this_models_numbers() -> None:
    made = fabricated.analysis()
    sentence = summary.interlacing(made)
    assert "interlacing" in sentence and numbers.with_bound(*made.full.top) in sentence
    assert summary.interlacing(fabricated.analysis(full=None, full_mass=[])) == ""
