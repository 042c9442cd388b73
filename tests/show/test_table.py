"""The table of a result as text: every block, both ends, and what has not converged cannot be overlooked."""

from __future__ import annotations

import dataclasses
import re

import fabricated
from fabricated import one
from layerhess.show import numbers, summary
from layerhess.show.notebook import as_html
from layerhess.show.table import as_text


def test_the_table_has_every_block_and_both_ends_within_100_columns() -> None:
    made = fabricated.analysis()
    text = as_text(made)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    for s in made.blocks.values():
        line = next(line for line in lines if line.startswith(f"{s.name} "))
        assert numbers.with_bound(*s.top) in line and numbers.with_bound(*s.bottom) in line
        assert f" {s.numel:,} " in line and line.endswith(s.status)
    full = next(line for line in lines if line.startswith("full model (H)"))
    assert numbers.with_bound(*made.full.top) in full
    assert "Everything converged: 8 of 8 spectra." in text
    assert f"2/lambda_max: {2 / made.full.eigenvalues[0]:.4g}" in text
    assert "operator: hessian" in text and "(H_bb)" in text
    assert str(made) == text
    for note in made.notes:
        assert note in text


def test_what_has_not_converged_cannot_be_overlooked() -> None:
    text = as_text(fabricated.analysis(bad=True))
    assert "1 of 8 spectra NOT CONVERGED, 1 of 8 spectra REFUSED." in text
    assert re.search(r"^stem\.weight .* NOT CONVERGED$", text, re.MULTILINE)
    assert re.search(r"^head\.weight .* REFUSED$", text, re.MULTILINE)
    assert "interrupted (Ctrl-C) after 12 passes" in text
    assert "weight_norm in fc" in text
    assert "Everything converged" not in text


def test_an_early_stop_is_told_even_when_all_that_is_there_converged() -> None:
    verdict = summary.verdict(fabricated.analysis(partial="the time limit of 3 s"))
    assert not verdict.good and verdict.headline == "STOPPED EARLY" and "time limit" in verdict.details[0]


def test_a_spectrum_without_any_number_is_not_ok() -> None:
    empty = dataclasses.replace(fabricated.refused("w"), status="not converged: stopped before its first product")
    made = one(empty)
    assert not empty.ok and not made.converged
    assert "NOT CONVERGED" in as_text(made) and "NOT CONVERGED" in as_html(made)


def test_long_names_are_folded_not_cut() -> None:
    name = "transformer.encoder.layers.11.self_attention.output_projection.parametrizations.weight.original0"
    text = as_text(one(fabricated.spectrum(name)))
    assert max(map(len, text.splitlines())) <= 100
    assert name in "".join(line.split("  ")[0].strip() for line in text.splitlines() if line.strip())


def test_markup_in_names_is_shown_as_it_is() -> None:
    assert "a[bold]b[/x]" in as_text(one(fabricated.spectrum("a[bold]b[/x]")))


def test_only_the_ends_that_were_asked_for_have_columns() -> None:
    base = fabricated.spectrum("w")
    top = dataclasses.replace(
        base,
        eigenvalues=base.eigenvalues[:1],
        error_bounds=base.error_bounds[:1],
        conditional_bounds=base.conditional_bounds[:1],
        converged=base.converged[:1],
        end=("top",),
    )
    text = as_text(one(top))
    assert "lambda_max" in text and "lambda_min" not in text and "Most negative" not in text


def test_names_cannot_move_the_cursor_or_break_the_line() -> None:
    hostile = "a\x1b[2J\nb"
    made = fabricated.analysis(blocks={hostile: fabricated.spectrum(hostile)}, full=None, full_mass=[])
    text = as_text(made, 200)
    assert "\x1b" not in text and "a\\x1b[2J\\nb" in text
