"""``analysis.plot``: what is drawn is what was found; it can be read in grey, and with any kind of colour vision."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import fabricated
import layerhess as lh
from layerhess.analysis.result import Analysis
from layerhess.linalg.estimates import CouplingEstimate, DensityEstimate
from layerhess.linalg.stochastic.counts import band_of_counts
from layerhess.linalg.stochastic.density import Density, exact_density
from layerhess.results.spectrum import FULL_NAME, Spectrum
from layerhess.show import drawings, estimate_drawings, style
from layerhess.show.plots import Plots

HOSTILE = "<b>$x_{$\\frac</b>\x1b[31m" + "層" * 60


def seen(density: DensityEstimate, **changes: Any) -> DensityEstimate:
    return dataclasses.replace(density, **changes)


def made(*, bad: bool = False) -> Analysis:
    """An analysis with densities of known spectra, couplings and sampling errors."""
    base = fabricated.analysis(bad=bad)
    rng = np.random.default_rng(3)

    def drawn(s: Spectrum) -> Spectrum:
        values = np.concatenate([rng.lognormal(-1.0, 1.5, s.numel - 1), [-0.1]])
        more = np.full(len(s.eigenvalues), 0.1)
        return dataclasses.replace(s, density=exact_density(values, Density()), sampling_errors=more)

    blocks = {name: drawn(s) for name, s in base.blocks.items()}
    names = tuple(blocks)
    raw = rng.random((len(names), len(names)))
    table = raw + raw.T + 2.0 * np.eye(len(names))
    coupling = CouplingEstimate(names, table, 0.05 * table, 0.4, 0.02, 8, "8 random vectors a block")
    assert base.full is not None
    return dataclasses.replace(base, blocks=blocks, full=drawn(base.full), coupling=coupling)


def pictures(analysis: Analysis) -> dict[str, Figure]:
    plot = analysis.plot
    return {
        "called": plot(), "eigenvalues": plot.eigenvalues(), "counts": plot.density(),
        "density": plot.density("density"), "coupling": plot.coupling(), "mass": plot.mass(),
    }  # fmt: skip


def words(figure: Figure) -> str:
    figure.canvas.draw()
    found = [text.get_text() for text in figure.findobj(lambda thing: hasattr(thing, "get_text"))]
    return " | ".join(found)


def test_every_picture_is_a_figure_that_shows_itself_without_pyplot() -> None:
    loaded = "matplotlib.pyplot" in sys.modules
    for name, figure in pictures(made()).items():
        assert isinstance(figure, Figure), name
        assert figure._repr_png_().startswith(b"\x89PNG"), name  # type: ignore[attr-defined]
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_calling_it_draws_what_it_always_drew() -> None:
    analysis = fabricated.analysis()
    assert isinstance(analysis.plot, Plots) and callable(analysis.plot)
    labels = [tick.get_text() for tick in analysis.plot().axes[0].get_yticklabels()]
    assert labels == ["full model (H)", *analysis.blocks]
    assert "plot(), .eigenvalues()" in repr(analysis.plot)


def test_what_was_not_asked_for_is_refused_in_a_sentence() -> None:
    plain = fabricated.analysis()
    for name in ("density", "coupling"):
        with pytest.raises(lh.InputError, match=f"not asked for.*{name}=True"):
            getattr(plain.plot, name)()
    with pytest.raises(lh.InputError, match="full=True"):
        dataclasses.replace(plain, full=None, full_mass=[]).plot.mass()
    empty = dict.fromkeys(("eigenvalues", "error_bounds", "conditional_bounds", "sampling_errors"), np.empty(0))
    none = dataclasses.replace(fabricated.spectrum(), end=(), converged=np.empty(0, bool), **empty)
    with pytest.raises(lh.InputError, match="top=1"):
        fabricated.one(none).plot.eigenvalues()
    with pytest.raises(lh.InputError, match="\"cake\"|'cake'"):
        made().plot.density("cake")
    one = CouplingEstimate(("a",), np.ones((1, 1)), np.zeros((1, 1)), 0.0, 0.0, 0, "")
    with pytest.raises(lh.InputError, match="single block"):
        dataclasses.replace(plain, coupling=one).plot.coupling()
    late = {n: dataclasses.replace(s, density=seen(s.density, finished=False)) for n, s in made().blocks.items()}  # type: ignore[arg-type]
    with pytest.raises(lh.InputError, match="stopped early"):
        dataclasses.replace(made(), blocks=late, full=None).plot.density()


def test_counts_are_those_of_the_known_spectrum() -> None:
    values = np.concatenate([np.linspace(0.2, 40.0, 57), [-3.0, 0.0]])
    spectrum = fabricated.spectrum("w", (59,), density=exact_density(values, Density()))
    (line,) = [ln for ln in fabricated.one(spectrum).plot.density().axes[0].lines if len(ln.get_xdata()) > 2]
    points, heights = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert spectrum.density is not None and points[0] == 2.0 * spectrum.density.bandwidth
    assert points[-1] == 40.0 and len(points) == 1 + (values > points[0]).sum()
    assert np.allclose(heights[:-1], [(values > point).sum() for point in points[:-1]]) and heights[-1] <= 1e-3


def test_the_band_of_the_full_model_holds_the_true_counts() -> None:
    values = np.geomspace(1e-3, 30.0, 400)
    inside = []
    for seed in range(10):
        density = lh.density(np.diag(values), probes=6, steps=30, seed=seed)
        points = np.geomspace(2.0 * density.bandwidth, 25.0, 40)
        low, high = band_of_counts(density, len(values), points)
        truth = np.array([(values > point).sum() for point in points])
        inside.append(((low <= truth) & (truth <= high)).mean())
        assert np.median((high - low) / truth) < 1.0
    assert np.mean(inside) >= 0.95
    spectrum = fabricated.spectrum(FULL_NAME, (400,), density=density)
    figure = dataclasses.replace(made(), full=spectrum).plot.density()
    assert len(figure.axes[0].collections) == 1 and "its 95 % band" in words(figure)


def test_bars_are_two_sampling_errors_where_these_were_measured_and_bounds_elsewhere() -> None:
    spectrum = fabricated.spectrum("w", sampling_errors=np.array([0.1, 0.1, np.nan]))
    axes = fabricated.one(spectrum).plot.eigenvalues().axes[0]
    bars = {tuple(np.round(ln.get_xdata(), 9)) for ln in axes.lines if len(ln.get_xdata()) == 2}
    top, second, bottom = spectrum.eigenvalues
    bound = spectrum.error_bounds[2]
    left, right = axes.get_xlim()
    assert left <= bottom - bound and top + 0.2 <= right
    wanted = [(top - 0.2, top + 0.2), (second - 0.2, second + 0.2), (bottom - bound, bottom + bound)]
    assert bars == {tuple(np.round(pair, 9)) for pair in wanted}


def test_sampling_errors_have_room_on_a_logarithmic_axis() -> None:
    values, more = np.array([30.0, 2.0, 0.1]), np.array([20.0, 0.1, 0.04])
    spectrum = fabricated.spectrum("w", eigenvalues=values, error_bounds=np.full(3, 1e-3), sampling_errors=more)
    axes = fabricated.one(spectrum).plot.eigenvalues().axes[0]
    left, right = axes.get_xlim()
    assert axes.get_xscale() == "log" and 0.0 < left < 0.1 - 0.08 and right > 70.0


def test_coefficients_are_norms_over_the_root_of_both_diagonal_norms() -> None:
    matrix = np.array([[4.0, 1.0], [1.0, 1.0]])
    found = CouplingEstimate(("a", "b"), matrix, np.array([[0.1, 0.5], [0.5, 0.1]]), 0.1, 0.01, 8, "")
    figure = dataclasses.replace(fabricated.analysis(), coupling=found).plot.coupling()
    cells = [p for p in figure.axes[0].patches if p.get_width() < 1.0]  # type: ignore[attr-defined]
    assert [round(p.get_width(), 2) for p in cells] == [0.94, 0.56, 0.94]  # type: ignore[attr-defined]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["1", "0.5", "1"] and "small: ± more than 25 %" in words(figure)  # the lower triangle
    assert "10.0 ± 1.0 % of ‖H‖² lies between blocks" in words(figure)


def test_what_has_not_converged_is_seen_and_said() -> None:
    bad = made(bad=True)
    text = words(bad.plot.eigenvalues())
    assert "NOT CONVERGED" in text and "REFUSED" in text
    assert "NOT CONVERGED" not in words(made().plot.eigenvalues())
    marks = [line.get_marker() for line in bad.plot.eigenvalues().axes[0].lines]
    assert marks.count("X") == 1 and "X" not in [ln.get_marker() for ln in made().plot.eigenvalues().axes[0].lines]
    full = made().full
    assert full is not None
    open_one = dataclasses.replace(made(), full=dataclasses.replace(full, converged=np.array([True, False, True])))
    assert words(open_one.plot.mass()).count("NOT CONVERGED") == 1
    name = "stem.weight"
    density = made().blocks[name].density
    assert density is not None
    late = dataclasses.replace(made().blocks[name], density=seen(density, finished=False))
    partly = dataclasses.replace(made(), blocks={**made().blocks, name: late})
    for kind in ("counts", "density"):
        assert f"STOPPED EARLY, not drawn: {name}" in words(partly.plot.density(kind))
    unknown = np.full((2, 2), np.nan)
    lost = CouplingEstimate(("a", "b"), unknown, unknown, np.nan, np.nan, 0, "")
    assert "INCOMPLETE" in words(dataclasses.replace(made(), coupling=lost).plot.coupling())


@pytest.mark.filterwarnings("ignore:Glyph")  # of the font
def test_odd_analyses_are_drawn_too() -> None:
    base = made()
    zero = exact_density(np.zeros(12), Density())
    blocks = {HOSTILE: fabricated.spectrum(HOSTILE, density=zero), "b": fabricated.refused("b")}
    table = np.array([[0.0, 0.0], [0.0, 1.0]])
    odd = dataclasses.replace(
        base, blocks=blocks, full=None, coupling=CouplingEstimate((HOSTILE, "b"), table, table, 0.0, 0.0, 0, ""),
        full_mass=[{HOSTILE: 1.0, "b": 0.0}],
    )  # fmt: skip
    many = {f"layers.{i}.weight": dataclasses.replace(base.blocks["stem.weight"], name=f"l{i}") for i in range(90)}
    vectors = [dict.fromkeys(many, 1.0 / 90)] * 6
    for analysis in (odd, dataclasses.replace(base, blocks=many, full_mass=vectors, coupling=None)):
        for name in ("eigenvalues", "density", "mass", *(["coupling"] if analysis.coupling else [])):
            assert getattr(analysis.plot, name)()._repr_png_().startswith(b"\x89PNG")
    assert "no positive curvature" in words(odd.plot.density())


def test_the_mass_is_drawn_as_bars_or_as_a_table_and_what_is_left_out_is_counted() -> None:
    base = made()
    figure = base.plot.mass()
    widths = [patch.get_width() for patch in figure.axes[0].patches]  # type: ignore[attr-defined]
    wanted = [share for share in base.full_mass[0].values() if any(row for row in base.full_mass)][:-1]
    assert np.allclose(widths, wanted) and len(figure.axes) == len(base.full_mass) == 3
    assert [bool(axes.patches[0].get_hatch()) for axes in figure.axes] == [False, False, True]  # the bottom one
    names = [f"layers.{i}" for i in range(60)]
    long = [{name: 0.4 if i < 2 else 0.2 / 58 for i, name in enumerate(names)}]
    text = words(dataclasses.replace(base, full_mass=long).plot.mass())
    assert "58 blocks with less than 0.5 % of every eigenvector are not shown" in text and "layers.1" in text


def ink(figure: Figure) -> np.ndarray:
    """Where a print in black and white has ink, (rows, columns)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba(), dtype=float)[..., :3]
    return np.asarray(pixels @ [0.299, 0.587, 0.114] < 230.0)


def test_lines_are_told_apart_in_black_and_white() -> None:
    runs = []
    looks = [*((line, 1.7) for _, line in estimate_drawings.LOOKS), ("-", 2.6), ("-", 0.9)]
    for dashes, width in looks:
        figure = Figure(figsize=(3, 0.3), dpi=200)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.plot([0.02, 0.98], [0.5, 0.5], color="black", linestyle=dashes, linewidth=width)
        found = ink(figure)
        changes = np.flatnonzero(np.diff(found[found.shape[0] // 2].astype(int)))
        lengths = changes[1::2] - changes[::2]
        runs.append((len(lengths), int(lengths.min()), int(lengths.max()), int(found.any(axis=1).sum())))
    for first, second in itertools.combinations(runs, 2):
        assert any(max(a, b) >= 1.3 * min(a, b) for a, b in zip(first, second, strict=True)), (first, second)


def test_marks_are_told_apart_in_black_and_white() -> None:
    def mark(converged: bool, end: str) -> np.ndarray:
        spectrum = fabricated.spectrum(
            "w", eigenvalues=np.array([1.0]), error_bounds=np.array([1e-9]), conditional_bounds=np.array([1e-9]),
            converged=np.array([converged]), end=(end,), missed_above=1.0, missed_below=1.0,
            status="converged" if converged else "not converged: x", sampling_errors=np.empty(0),
        )  # fmt: skip
        figure = fabricated.one(spectrum).plot.eigenvalues()
        axes = figure.axes[0]
        found = ink(figure)
        x, y = axes.transData.transform((1.0, 0.0))
        row, column = found.shape[0] - round(y), round(x)
        return found[row - 6 : row + 7, column - 6 : column + 7]

    drawn = [mark(True, "top"), mark(True, "bottom"), mark(False, "top")]
    for first, second in itertools.combinations(drawn, 2):
        assert (first != second).mean() > 0.07
    assert [bool(pixels[6, 6]) for pixels in drawn] == [True, True, False]  # what has not converged is hollow


# Machado, Oliveira & Fernandes (2009), severity 1: linear RGB as a protanope, a deuteranope and a tritanope sees it.
VISION = {
    "all": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: Any) -> np.ndarray:
    part = np.array(to_rgb(colour))
    return np.asarray(np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4))


def luminance(colour: Any) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("kind", VISION)
def test_colours_are_told_apart_by_every_kind_of_vision(kind: str) -> None:
    colours = [style.BLUE, style.VERMILION, style.ORANGE, style.SKY, style.INK]
    as_seen = [np.clip(np.array(VISION[kind]) @ linear(c), 0.0, 1.0) ** (1 / 2.2) for c in colours]
    assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(as_seen, 2)) > 0.15


def test_darker_is_more_in_grey_too_and_warnings_can_be_read() -> None:
    ramp = [luminance(colour) for colour in drawings.shades().colors]  # type: ignore[attr-defined]
    assert all(later < first for first, later in itertools.pairwise(ramp)) and ramp[0] > 0.9 and ramp[-1] < 0.04
    contrast = (luminance(style.PAPER) + 0.05) / (luminance(style.ALARM) + 0.05)
    assert contrast >= 4.5
