"""What people see of a result: texts, tables, frames, notebook cells and figures."""

from __future__ import annotations

import dataclasses
import re
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.figure import Figure

import fabricated
import layerhess as lh
from layerhess.analysis.result import Analysis
from layerhess.errors import InputError
from layerhess.linalg.estimates import TraceEstimate
from layerhess.results.spectrum import Spectrum
from layerhess.show import figures, numbers, summary
from layerhess.show.frame import COLUMNS, to_frame
from layerhess.show.notebook import as_html
from layerhess.show.table import as_text

NASTY = "<script>alert('x')</script> [bold]&amp; $x^2$"


def one(spectrum: Spectrum, **changes: object) -> Analysis:
    """An analysis of a single block and nothing else."""
    return fabricated.analysis(blocks={spectrum.name: spectrum}, full=None, full_mass=[], **changes)


# -- numbers -----------------------------------------------------------------------------------------------------------


def read_back(text: str) -> tuple[Fraction, Fraction]:
    """Value and bound of a text, exactly as a reader would take them."""
    inner = re.fullmatch(r"\((.+) ± (.+)\)e([+-]\d+)", text)
    if inner:
        scale = Fraction(10) ** int(inner[3])
        return Fraction(inner[1]) * scale, Fraction(inner[2]) * scale
    value, bound = text.split(" ± ")
    return Fraction(value), Fraction(bound)


@given(
    st.floats(-1e300, 1e300).filter(lambda v: abs(v) > 1e-300),
    st.floats(-6.9, 3.0),
    st.floats(1.0, 10.0, exclude_max=True),
)
@example(9.9999, -4.0, 9.99)
@example(0.99999, -4.0, 1.0)
@example(-999999.5, -6.0, 5.0)
def test_the_interval_shown_contains_the_interval_meant(value: float, power: float, mantissa: float) -> None:
    bound = abs(value) * mantissa * 10**power
    if not 1e-300 < bound < 1e300:
        return
    shown, radius = read_back(numbers.with_bound(value, bound))
    slack = Fraction(bound) / 10**6
    assert shown - radius <= Fraction(value) - Fraction(bound) + slack
    assert shown + radius >= Fraction(value) + Fraction(bound) - slack
    assert radius <= Fraction(bound) * Fraction(13, 10), "and is not much wider"


@pytest.mark.parametrize(
    ("value", "bound", "text"),
    [
        (0.0, 0.0, "0 ± 0"),
        (0.0, 2.04e-9, "0 ± 2.1e-09"),
        (122.0322496817, 1.03e-12, "122.032250 ± 1.1e-12"),
        (20.0, 0.0, "20 ± 0"),
        (3.0, float("nan"), "3 ± unknown"),
        (float("nan"), 1.0, "-"),
        (1.5, 40.0, "2 ± 41"),
        (1234567.0, 1000.0, "(1.2346 ± 0.0011)e+06"),
        (-0.1662199, 1.6e-4, "-0.16622 ± 0.00017"),
    ],
)
def test_values_and_bounds_read_well(value: float, bound: float, text: str) -> None:
    assert numbers.with_bound(value, bound) == text


@given(st.floats(1e-300, 1e300))
def test_a_bound_is_never_rounded_down(bound: float) -> None:
    shown = float(numbers.rounded_up(bound))
    assert bound <= shown <= 1.11 * bound


# -- the terminal ------------------------------------------------------------------------------------------------------


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


# -- the facts ---------------------------------------------------------------------------------------------------------


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


# -- frames and notebooks ----------------------------------------------------------------------------------------------


def test_the_frame_has_one_row_per_eigenvalue_and_one_for_a_refused_block() -> None:
    made = fabricated.analysis(bad=True)
    frame = made.to_frame()
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == sum(max(1, len(s.eigenvalues)) for s in made.spectra())
    assert list(dict.fromkeys(frame["block"])) == [*made.blocks, "(full)"]
    for s in made.spectra():
        rows = frame[frame["block"] == s.name]
        if len(s.eigenvalues):
            assert rows["eigenvalue"].to_numpy().tobytes() == s.eigenvalues.tobytes()
            assert rows["error_bound"].to_numpy().tobytes() == s.error_bounds.tobytes()
            assert list(rows["end"]) == list(s.end) and list(rows["converged"]) == list(s.converged)
    refused = frame[frame["block"] == "head.weight"]
    assert len(refused) == 1 and refused["eigenvalue"].isna().all() and not refused["converged"].any()
    assert refused["status"].item().startswith("refused")


def test_every_estimate_has_a_frame_of_its_own() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Tanh(), torch.nn.Linear(9, 2)).double()
    objective = lh.Objective(model, (torch.randn(12, 4).double(), torch.randn(12, 2).double()), torch.nn.MSELoss())
    found = lh.analyze(objective, diagonal=True, density=lh.Density(probes=2, steps=4), coupling=True)
    assert found.coupling is not None and found.coupling.divergence_error is not None and found.full is not None
    pairs = found.to_frame("coupling")
    assert pairs.norm.to_numpy().reshape(4, 4) == pytest.approx(found.coupling.value)
    assert pairs.standard_error.to_numpy().reshape(4, 4) == pytest.approx(found.coupling.standard_error)
    assert pairs.divergence_error.to_numpy().reshape(4, 4) == pytest.approx(found.coupling.divergence_error)
    assert list(pairs.other[:4]) == list(found.blocks) and set(pairs.operator) == {"hessian"}
    diagonal = found.to_frame("diagonal")
    assert len(diagonal) == 2 * found.total_numel
    whole = diagonal[(diagonal.block == "(full)") & (diagonal.parameter == "0.weight")]
    assert found.full.diagonal is not None
    assert whole.value.to_numpy() == pytest.approx(found.full.diagonal.value["0.weight"].reshape(-1).numpy())
    density = found.to_frame("density")
    block = density[density.block == "0.weight"]
    own = found.blocks["0.weight"].density
    assert own is not None and block.density.to_numpy() == pytest.approx(own.value)
    assert block.high.to_numpy() == pytest.approx(own.high)
    plain = fabricated.analysis()
    assert not any(len(plain.to_frame(table)) for table in ("coupling", "diagonal", "density"))
    with pytest.raises(InputError, match="no table 'traces'.*'coupling'"):
        found.to_frame("traces")


def test_without_pandas_a_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="pandas is not installed") as caught:
        to_frame(fabricated.analysis())
    assert "pip install pandas" in caught.value.what_to_do


def test_the_notebook_cell_is_self_contained_and_escaped() -> None:
    made = fabricated.analysis(bad=True, model=NASTY)
    made = dataclasses.replace(made, blocks={**made.blocks, NASTY: fabricated.unconverged(fabricated.spectrum(NASTY))})
    html = made._repr_html_()
    assert "<script" not in html and "&lt;script&gt;" in html and "http" not in html
    for s in made.spectra():
        if s.top is not None:
            assert numbers.with_bound(*s.top) in html
    assert "NOT CONVERGED" in html and "REFUSED" in html


def test_the_notebook_cell_has_the_estimates_with_their_errors() -> None:
    trace = TraceEstimate(3.25, 0.05, 3.15, 3.35, 32, "hutchinson", True, "standard error 1.5 %")
    made = fabricated.analysis()
    blocks = {name: dataclasses.replace(s, trace=trace) for name, s in made.blocks.items()}
    text = as_html(dataclasses.replace(made, blocks=blocks))
    # The complete block's trace is that of its spectrum.
    assert text.count("3.250 ± 0.050") == sum(not s.complete for s in blocks.values())
    assert "standard error over the probes" in text and "a 95% interval is about twice as wide" in text
    assert "3.250" not in as_html(made)
    late = dataclasses.replace(trace, converged=False)
    bad = dataclasses.replace(
        made, blocks=blocks | {"head.bias": dataclasses.replace(made.blocks["head.bias"], trace=late)}
    )
    assert text.count("#d03a34") == 0 and as_html(bad).count("#d03a34") >= 2


def test_the_notebook_cell_of_a_huge_model_stays_small_and_says_so() -> None:
    blocks = {f"b{i}": fabricated.spectrum(f"b{i}", (2,), i) for i in range(500)}
    html = as_html(fabricated.analysis(blocks=blocks))
    assert len(html) < 40_000 and "440 more blocks" in html and "full model" in html


# -- figures -----------------------------------------------------------------------------------------------------------


def labels(figure: Figure) -> list[str]:
    return [tick.get_text() for tick in figure.axes[0].get_yticklabels()]


def test_the_overview_has_the_full_model_and_every_block_and_draws_the_bounds() -> None:
    made = fabricated.analysis()
    figure = made.plot()
    assert labels(figure) == ["full model (H)", *made.blocks]
    axes = figure.axes[0]
    assert axes.get_xscale() == "symlog"
    segments = [s for bars in axes.collections for s in bars.get_segments()]
    for row, s in enumerate([made.full, *made.blocks.values()]):
        if s.status == "zero":
            continue
        for value, bound in zip(s.eigenvalues, s.error_bounds, strict=True):
            whisker = [[value - bound, row], [value + bound, row]]
            assert any(np.allclose(segment, whisker) for segment in segments if len(segment))


def test_positive_spectra_are_drawn_on_a_logarithmic_axis() -> None:
    base = fabricated.spectrum("w", eigenvalues=np.array([30.0, 2.0, 0.1]), error_bounds=np.full(3, 1e-3))
    assert figures.overview(one(base)).axes[0].get_xscale() == "log"


def test_every_value_is_inside_the_axes() -> None:
    for made in (fabricated.analysis(), fabricated.analysis(bad=True), fabricated.analysis(full=None, full_mass=[])):
        low, high = figures.overview(made).axes[0].get_xlim()
        values = np.concatenate([s.eigenvalues for s in made.spectra()])
        assert low <= values.min() and values.max() <= high


def test_unconverged_and_refused_are_marked() -> None:
    figure = figures.overview(fabricated.analysis(bad=True))
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "not converged" in legend
    assert "refused" in [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("vectors", [1, 3, 9])
def test_the_mass_of_each_eigenvector_is_shown(vectors: int) -> None:
    rng = np.random.default_rng(0)
    names = list(fabricated.LAYERS)
    columns = [dict(zip(names, map(float, rng.dirichlet(np.ones(7))), strict=True)) for _ in range(vectors)]
    made = fabricated.analysis(full_mass=columns)
    figure = figures.mass(made)
    assert labels(figure) == names
    if vectors <= figures.FEW_VECTORS:
        for axes, column in zip(figure.axes, columns, strict=True):
            assert [patch.get_width() for patch in axes.patches] == pytest.approx(list(column.values()))
    else:
        assert len(figure.axes[0].patches) == 7 * vectors


@pytest.mark.parametrize("extreme", [0.0, 1e-300, 1e300, np.inf])
def test_extreme_values_do_not_break_the_figures(extreme: float) -> None:
    block = fabricated.spectrum("w", eigenvalues=np.array([1.0, 0.5, -extreme if np.isfinite(extreme) else -1.0]))
    block = dataclasses.replace(block, error_bounds=np.array([1e-3, 1e-3, extreme]))
    figures.overview(one(block))._repr_png_()


def test_a_figure_shows_itself_in_a_notebook_without_pyplot() -> None:
    loaded = "matplotlib.pyplot" in sys.modules
    assert fabricated.analysis().plot()._repr_png_().startswith(b"\x89PNG")
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_a_model_of_a_thousand_blocks_is_cut_visibly(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = {f"b{i}": fabricated.spectrum(f"b{i}", (2,), i) for i in range(1000)}
    monkeypatch.setattr(figures, "_draw_spectrum", lambda *_: None)  # what is drawn is tested above, and takes long
    figure = figures.overview(fabricated.analysis(blocks=blocks, full=None, full_mass=[]))
    assert len(labels(figure)) == 300 and "300 of 1000 blocks" in figure.axes[0].get_title(loc="left")


def test_dollars_in_names_are_no_mathematics() -> None:
    figures.overview(one(fabricated.spectrum("cost$_{")))._repr_png_()
