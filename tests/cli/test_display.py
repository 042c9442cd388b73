"""What a running analysis shows: a live line in a terminal, a forecast and notes elsewhere, nothing when quiet."""

from __future__ import annotations

import pytest
from rich.console import Console

from layerhess.analysis.progress import Forecast, Snapshot
from layerhess.cli.display import Display, forecast_sentence, progress_sentence
from layerhess.errors import LayerhessWarning


def console(terminal: bool) -> Console:
    import io

    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None, soft_wrap=True)


def written(display: Display) -> str:
    return display.console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


SNAPSHOT = Snapshot(12, 264, 20, 23, "head.weight", 4.2, 31.0, 40.0)
FORECAST = Forecast(3.1, 9.0, 480.0, 840.0, 50_000, 0.0166)


def test_a_terminal_sees_live_progress() -> None:
    with Display(console=console(True)) as display:
        display.forecast(FORECAST)
        display.note("one\nnote with [markup]")
        display.note("one\nnote with [markup]")
        display.update(SNAPSHOT)
        display._live.refresh()  # type: ignore[union-attr]
    text = written(display)
    assert "expect 8 to 14 min" in text and "20 of 23 converged" in text and "head.weight" in text
    assert text.count("note with [markup]") == 1


def test_a_plans_passes_are_counted_in_the_live_line() -> None:
    with Display(console=console(True)) as display:
        display.passes(12.0, 84.0, "each layer with each option")
        display._live.refresh()  # type: ignore[union-attr]
    assert "each layer with each option: 12 of 84 passes" in written(display)
    with Display(console=console(False)) as display:
        display.heading = "the result will be in here"
        display.passes(12.0, 84.0, "x")
        display.passes(13.0, 84.0, "x")
    assert written(display) == "the result will be in here\n", "once, with the first pass"


def test_elsewhere_only_the_forecast_and_the_notes_are_written() -> None:
    with Display(console=console(False)) as display:
        display.forecast(FORECAST)
        display.update(SNAPSHOT)
    assert written(display) == forecast_sentence(FORECAST) + "\n"


def test_quiet_is_quiet_even_in_a_terminal() -> None:
    with Display(console=console(True), quiet=True) as display:
        display.forecast(FORECAST)
        display.note("x")
        display.update(SNAPSHOT)
    assert written(display) == ""


def test_unknown_figures_are_left_out_of_the_live_line() -> None:
    text = progress_sentence(Snapshot(1, 2, 0, 3, "", float("nan"), 0.5, float("nan")))
    assert text == "0 of 3 converged; pass 1, 2 products; 0.5 s"


def test_a_smaller_sample_is_offered_only_for_long_runs() -> None:
    assert "--examples 512 would take" in forecast_sentence(FORECAST)
    for short in (
        Forecast(0.1, 0.1, 3.0, 9.0, 50_000, 1e-4),
        Forecast(3.1, 9.0, 480.0, 840.0, 600, 1.0),
        Forecast(3.1, 9.0, 480.0, 840.0, 0, 0.0),
    ):
        assert "--examples" not in forecast_sentence(short)


def test_our_warnings_become_notes_and_others_stay() -> None:
    import warnings

    display = Display(console=console(False))
    with pytest.warns(UserWarning, match="not ours"), display.with_warnings():
        warnings.warn("half precision", LayerhessWarning, stacklevel=1)
        display.note("half precision")
        warnings.warn("not ours", UserWarning, stacklevel=1)
    assert written(display) == "note: half precision\n"
