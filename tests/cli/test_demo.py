"""The demo: a real network, trained on the spot on real digits, and its analysis from the command line."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch

import layerhess as lh
from layerhess.cli import demo, main


@pytest.fixture(scope="module")
def problem() -> demo.DemoProblem:
    return demo.build()


def test_it_learns_the_digits(problem: demo.DemoProblem) -> None:
    assert problem.test_accuracy >= 0.97
    assert problem.train_accuracy >= 0.99
    assert not problem.model.training
    assert all(p.grad is None for p in problem.model.parameters())


def test_the_batches_are_the_whole_training_set(problem: demo.DemoProblem) -> None:
    assert problem.examples == 1437  # of 1,797, one in five held out
    assert [len(labels) for _, labels in problem.batches] == [512, 512, 413]
    images = torch.cat([images for images, _ in problem.batches])
    assert images.shape[1:] == (1, 8, 8)
    assert images.min() == -1
    assert images.max() == 1
    assert problem.held_out is not None
    assert sum(len(labels) for _, labels in problem.held_out) == 360
    counts = torch.cat([labels for _, labels in problem.batches]).bincount()
    assert counts.min() / counts.max() > 0.9  # stratified: the ten classes are about equally frequent


def test_every_parameter_has_a_name_in_plain_words(problem: demo.DemoProblem) -> None:
    assert list(problem.names) == [name for name, _ in problem.model.named_parameters()]
    assert problem.names["stem.weight"] == "3 x 3 convolution, 1 to 8 channels (72 numbers)"
    assert problem.parameters == sum(p.numel() for p in problem.model.parameters()) < 10_000


def test_the_same_seed_gives_the_same_model_and_leaves_no_trace(problem: demo.DemoProblem) -> None:
    random_state, threads, lines = torch.get_rng_state(), torch.get_num_threads(), []
    with torch.inference_mode():
        again = demo.build(0, lines.append)
    for first, second in zip(problem.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(first, second)
        assert not second.is_inference()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    assert "trained" in lines[-1]


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(lh.InputError, match="scikit-learn") as refusal:
        demo.build()
    assert "pip install" in refusal.value.what_to_do


def on_a_kink() -> demo.DemoProblem:
    """A unit is on in one example of eight, off there in float32: the bias is minus a sum as float32 rounds it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, generator=generator)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    layer = model[0]
    with torch.no_grad():
        while True:
            layer.weight[0] = torch.randn(3, generator=generator)
            layer.bias[0] = 0.0
            layer.bias[0] = -layer(x)[0, 0]
            narrow, wide = layer(x)[:, 0], copy.deepcopy(layer).double()(x.double())[:, 0]
            if narrow[0] <= 0.0 < wide[0] and narrow[1:].max() < -0.1:
                break
    labels = torch.tensor([0, 1] * 4)
    return demo.DemoProblem(model.eval(), [(x, labels)], 1.0, 1.0, 0.0, {}, [(x, labels)])


def test_what_float32_leaves_open_is_decided_in_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = on_a_kink()
    monkeypatch.setattr("layerhess.cli.app.build_demo", lambda seed, report: made)
    assert main(["demo", "--threads", "1", "--top", "1", "--out", str(tmp_path / "result")]) == 0
    said = capsys.readouterr().out
    assert "NOT CONVERGED" in said and "once more in float64" in said
    analysis = lh.load(tmp_path / "result")
    assert analysis.converged and analysis.settings["dtype"] == "float64"
    assert all(p.dtype == torch.float32 for p in made.model.parameters())


def test_the_whole_demo_converges_and_writes_a_report(
    problem: demo.DemoProblem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("layerhess.cli.app.build_demo", lambda seed, report: problem)  # trained once
    monkeypatch.setitem(demo.ASKED, "density", lh.Density(probes=1, steps=10))  # most of its time, else
    assert main(["demo", "--threads", "1", "--out", "result"]) == 0
    assert (tmp_path / "result" / "report.html").stat().st_size > 10_000

    analysis = lh.load(tmp_path / "result")
    assert analysis.converged
    assert analysis.examples == 1437
    assert len(analysis.blocks) == 20
    assert analysis.full is not None
    (full_top, bound), (full_bottom, bottom_bound) = analysis.full.top, analysis.full.bottom
    # Cauchy interlacing, and every block of a piecewise linear network bends upwards only.
    for block in analysis.blocks.values():
        assert block.top[0] - block.top[1] <= full_top + bound
        assert block.bottom[0] + block.bottom[1] >= 0
    assert full_bottom + bottom_bound < 0

    plan = lh.load_plan(tmp_path / "result" / "plan")
    large = [name for name, weight in problem.model.named_parameters() if weight.ndim >= 2]
    assert list(plan.choice) == large and len(large) == 7
    assert plan.mean_bits <= 4.0
    assert plan.metric_float is not None
    assert plan.metric_float.value == pytest.approx(problem.test_accuracy, abs=1e-9), "on the test digits"
    page = (tmp_path / "result" / "report.html").read_text()
    assert "Plan: which layer gets how many bits" in page
    assert main(["report", "result"]) == 0
    assert (tmp_path / "result" / "report.html").read_text() == page
