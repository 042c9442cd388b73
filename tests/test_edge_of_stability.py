"""The example of the edge of stability, in a small form: both optimizers settle at their thresholds."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "edge_of_stability.py"


@pytest.mark.parametrize(
    ("name", "steps", "center", "width"), [("gradient descent", 1500, 1.007, 0.04), ("Adam", 2500, 0.99, 0.04)]
)
def test_full_batch_training_settles_where_its_optimizer_is_just_stable(
    name: str, steps: int, center: float, width: float
) -> None:
    example = runpy.run_path(str(SCRIPT))
    monitor = example["train"](name, steps, steps // 25)
    frame = monitor.to_frame()
    assert len(frame) == 25 and frame.ratio.iloc[0] < 0.8  # it begins below, and rises
    mean, deviation = example["settled"](monitor, share=0.4)
    assert abs(mean - center) < width and deviation < width
    assert (frame.preconditioned_bound <= 0.02 * frame.preconditioned).all()
    if name == "gradient descent":
        assert frame.ratio.tolist() == pytest.approx((frame.lambda_max * 0.6 / 2).tolist())


def test_the_script_prints_where_they_settle_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plot.png"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--steps", "40", "--every", "10", "--out", str(out)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "Adam: sharpness / threshold = " in capsys.readouterr().out
