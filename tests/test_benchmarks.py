"""The benchmarks' own parts: a run for a GPU done small on the CPU, peers on kept graphs, the table's sentences."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu
from benchmarks.kept_graphs import KeptGraphs
from benchmarks.kept_peers import KEPT_EIGSH, KEPT_POWER
from benchmarks.marks import Mark
from benchmarks.models import GPT, ResNet50
from benchmarks.peer import TOL, Peer, deviation
from benchmarks.table import Row, verdict
from benchmarks.truth import rayleigh_ritz
from benchmarks.workloads import FULL, KEPT, WORKLOADS, Problem, Question

FIRST = "blocks' top 1"


def dense(problem: Problem, target: str) -> np.ndarray:
    """A target's Hessian of the mean loss, float64, row by row."""
    model, total = copy.deepcopy(problem.model).double(), sum(y.numel() for _, y in problem.batches)
    parameters = [p for name, p in model.named_parameters() if target in (FULL, name)]
    loss = torch.zeros((), dtype=torch.float64)
    for x, y in problem.batches:
        loss = loss + problem.loss(model(x.double() if x.is_floating_point() else x), y) * (y.numel() / total)
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in slope]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]).numpy()


def small(network: str, question: Question) -> Problem:
    """One batch of the small shape, as `ONE_BATCH` asks for."""
    return gpu.problem_of(replace(gpu.SHAPES["small"][network], batches=1), question, torch.device("cpu"))


ONE_BATCH = ["--device", "cpu", "--runs", "1", "--batches", "1", "--peers", "kept-power", "kept-eigsh"]


@pytest.fixture(scope="module")
def gpt() -> tuple[Problem, np.ndarray]:
    """The small GPT, and its full Hessian."""
    problem = small("gpt2", Question())
    return problem, dense(problem, FULL)


def block(problem: Problem, matrix: np.ndarray, target: str) -> np.ndarray:
    """A diagonal block of the full Hessian."""
    inside = np.concatenate([np.full(p.numel(), name == target) for name, p in problem.model.named_parameters()])
    return matrix[np.ix_(inside, inside)]


def run(network: str, folder: Path) -> list[dict[str, Any]]:
    """The lines of a small run, as they are written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "RESULTS", folder)
        assert gpu.main([*ONE_BATCH, "--networks", network]) == 0
    (file,) = folder.iterdir()
    lines: list[dict[str, Any]] = json.loads(file.read_text())["lines"]
    blocks = ["layerhess, copies search", KEPT_POWER.title, KEPT_EIGSH.title]
    full = ["layerhess, copies search", "layerhess, copies unchecked", KEPT_EIGSH.title]
    asked = [(FIRST, who) for who in blocks] + [("full top 5", who) for who in full]
    assert [(line["question"], line["contestant"]) for line in lines] == asked
    for line in lines:
        assert line["network"] == network and not line["note"]
        assert line["gradient"] > 0.0 and len(line["seconds"]) == len(line["memory"]) == 1 and line["seconds"][0] > 0.0
    return lines


def test_a_step_without_a_gpu_is_made_and_said_not_to_be_looked_at() -> None:
    said = gpu.waits("gpt2", gpu.SHAPES["small"]["gpt2"], torch.device("cpu"))
    assert said == "gpt2: host synchronisations in a step (2 of 2 graphs kept): not looked at, for want of a GPU"


def wrong(line: dict[str, Any], true: dict[str, np.ndarray], tol: float) -> int:
    """Targets whose values are off by more than so much."""
    return sum(deviation(line["values"][target], true[target][: len(line["values"][target])]) > tol for target in true)


def test_a_small_run_has_a_line_for_everybody_and_is_right(gpt: tuple[Problem, np.ndarray], tmp_path: Path) -> None:
    problem, matrix = gpt
    true = {target: np.linalg.eigvalsh(block(problem, matrix, target))[::-1] for target in problem.targets}
    whole = {FULL: np.linalg.eigvalsh(matrix)[::-1]}
    for line in run("gpt2", tmp_path):
        truth = true if line["question"] == FIRST else whole
        assert line["values"].keys() == truth.keys()
        if line["contestant"].startswith("layerhess"):
            assert line["off"] == wrong(line, truth, TOL) == 0
        else:
            assert wrong(line, truth, 3 * TOL) <= line["off"] <= wrong(line, truth, TOL)


@pytest.mark.slow
def test_the_small_residual_network_too(tmp_path: Path) -> None:
    problem = small("resnet50", Question())
    lines = run("resnet50", tmp_path)
    for target in ("conv.weight", "blocks.0.conv2.weight", "blocks.1.shortcut.0.weight"):
        true = np.linalg.eigvalsh(dense(problem, target))[-1:]
        assert all(deviation(line["values"][target], true) <= TOL for line in lines if line["question"] == FIRST)


def test_a_peer_that_is_off_or_fails_is_said_and_costs_no_other_line(monkeypatch: pytest.MonkeyPatch) -> None:
    astray = replace(KEPT_EIGSH, own=lambda problem: {target: [1e3] for target in problem.targets})
    broken = replace(KEPT_EIGSH, own=lambda problem: [][0])
    monkeypatch.setattr(gpu, "PEERS", {"astray": astray, "broken": broken})
    monkeypatch.setattr(gpu, "QUESTIONS", {FIRST: Question()})
    shape = gpu.SHAPES["small"]["gpt2"]
    ours, off, failed = gpu.lines("gpt2", shape, torch.device("cpu"), ["astray", "broken"], 1)
    assert ours.off == 0 and off.off == off.targets == 6 and not off.note
    assert failed.off is None and failed.note.startswith("IndexError: ")


def test_a_device_that_is_not_there_is_refused_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "meta"]) == 2
    assert "no device meta here" in capsys.readouterr().out


@pytest.mark.slow
def test_full_shapes_are_those_of_the_published_networks() -> None:
    with torch.device("meta"):
        resnet, gpt = ResNet50(), GPT(50257, d=768, layers=12, heads=12, context=1024, tied=True)
    assert sum(p.numel() for p in resnet.parameters()) == 25_557_032
    assert sum(p.numel() for p in gpt.parameters()) == 124_439_808


@pytest.mark.parametrize("rows", [None, 1])
def test_products_on_kept_graphs_are_those_of_dense_matrices(gpt: tuple[Problem, np.ndarray], rows: int | None) -> None:
    problem, matrix = gpt
    problem = replace(problem, model=copy.deepcopy(problem.model).double())
    graphs = KeptGraphs(problem, list(problem.model.parameters()), rows)
    v = np.random.default_rng(0).standard_normal(graphs.numel)
    assert np.allclose(graphs.to_scipy() @ v, matrix @ v, rtol=0.0, atol=1e-12)
    assert graphs.products == 1


@pytest.mark.parametrize("peer", [KEPT_EIGSH, KEPT_POWER], ids=["eigsh", "power"])
def test_oracles_of_kept_graphs_stop_at_the_first_right_answer(gpt: tuple[Problem, np.ndarray], peer: Peer) -> None:
    problem, matrix = gpt
    true = {target: [np.linalg.eigvalsh(block(problem, matrix, target))[-1]] for target in problem.targets}
    steps = peer.scout(problem, true)
    right = peer.exact_steps(problem, steps)
    assert len(right) == len(steps) >= 3
    assert all(deviation(right[target], true[target]) <= TOL for target in right)
    early = peer.exact_steps(problem, {target: [count - 1] for target, (count,) in steps.items() if count > 1})
    assert early and all(deviation(early[target], true[target]) > TOL for target in early)


def test_truths_are_values_and_residuals_of_a_span() -> None:
    random = np.random.default_rng(0)
    basis, _ = np.linalg.qr(random.standard_normal((30, 30)))
    matrix = basis * np.arange(1.0, 31.0) @ basis.T
    inside = basis[:, [3, 20, 9]] @ random.standard_normal((3, 3))
    values, residuals = rayleigh_ritz(matrix, inside)
    assert np.allclose(values, [21.0, 10.0, 4.0]) and residuals.max() < 1e-12
    values, residuals = rayleigh_ritz(matrix, inside + 1e-3 * random.standard_normal(inside.shape))
    assert all(residuals > 1e-4) and all(abs(values - [21.0, 10.0, 4.0]) <= residuals)


def _row(column: str, title: str, seconds: float, kept: bool = False, wrong: int = 0) -> Row:
    return Row(column, title, [seconds], [seconds], 0.0, wrong, "", kept)


def test_libraries_and_kept_graphs_are_judged_apart() -> None:
    ours = _row("ours", "layerhess", 2.0)
    rows = [ours, _row("A", "a library", 8.0), _row("A", "thirty lines", 5.0, kept=True), _row("B", "it", 1.0, wrong=1)]
    sentences = verdict(ours, rows, {"A": Mark(3.0), "B": Mark(3.0), KEPT: Mark(3.0)})
    assert sentences == [
        "A: the fastest library with an oracle, a library, takes 4.00 times as long as ours (bar >= 3: met).",
        "B: no peer is right everywhere, so nothing sets a bar.",
        "A, kept graphs: the fastest on kept graphs with an oracle, thirty lines, takes 2.50 times as long as ours "
        "(bar >= 3: missed).",
    ]


def test_workloads_of_the_same_examples_and_question_share_their_truth() -> None:
    shared = {WORKLOADS[name].asked for name in ("resnet8", "resnet8-16x16", "resnet8-2x128")}
    assert shared == {"resnet8-1of8-top1"}
    assert len({workload.asked for workload in WORKLOADS.values()}) == len(WORKLOADS) - 5
