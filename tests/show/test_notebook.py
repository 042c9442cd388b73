"""The cell of a notebook: self-contained, escaped, and small for a huge model."""

from __future__ import annotations

import dataclasses

import fabricated
from layerhess.linalg.estimates import TraceEstimate
from layerhess.show import numbers
from layerhess.show.notebook import as_html

NASTY = "<script>alert('x')</script> [bold]&amp; $x^2$"


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
