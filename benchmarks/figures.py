"""Figures of layerhess that need no peers: `python -m benchmarks.figures` (see README.md)."""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch and NumPy start their pools

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import torch

import layerhess as lh

from . import peak
from .cost_model import cheapest_named, rank_correlation, ways
from .depth import LAYERS, depth_sweep
from .marks import Mark
from .ours import Answer, analyse, objective_of
from .timing import Entry, gradient, say, take_turns, warm_up
from .workloads import RESULTS, Problem, Question, load, prepare

__all__ = ["FIGURES", "Figure", "main"]


@dataclass(frozen=True)
class Figure:
    """One number, the mark it should reach where there is one, and what it was made from."""

    title: str
    value: float
    mark: Mark | None
    details: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.title}: {self.value:.2f}" + (f" ({self.mark.verdict(self.value)})" if self.mark else "")


def _ready(name: str) -> Problem:
    prepare(name, say)
    problem = load(name)
    warm_up(problem)
    return problem


def blocks_over_full(runs: int) -> Iterator[Figure]:
    """Certified top eigenvalue of every weight block over that of the full model."""
    for name, label, mark in (
        ("resnet8", "ResNet-20", Mark(1.0, 0.6, below=True)),
        ("gpt", "GPT", Mark(5.0, 4.0, below=True)),
    ):
        problem = _ready(name)
        whole = dataclasses.replace(problem, question=Question(full=True))
        blocks: Entry[Answer] = Entry("all blocks", "", lambda problem=problem: analyse(problem))
        full: Entry[Answer] = Entry("full model", "", lambda whole=whole: analyse(whole))
        unit: Entry[None] = Entry("gradient", "unit", lambda problem=problem: gradient(problem))
        take_turns([unit, blocks, unit, full], runs)
        details: dict[str, object] = {"workload": name, "gradient_seconds": unit.median}
        for entry in (blocks, full):
            assert entry.values is not None
            lost = f"; not certified: {', '.join(entry.values.unconverged)}" if entry.values.unconverged else ""
            say(f"  {name}, top 1 of {entry.title}: {entry.median / unit.median:.1f} gradients{lost}")
            details[entry.title] = entry.processor
        yield Figure(f"all blocks' top 1 over the full model's, {label}", blocks.median / full.median, mark, details)


PRODUCTS = 5  # in a row, for one timing


def product_over_gradient(runs: int) -> Iterator[Figure]:
    """One product with the full Hessian on kept graphs over one gradient of the same data."""
    for name, label in (("resnet8", "ResNet-20"), ("gpt", "GPT")):
        problem = _ready(name)
        hessian = lh.Hessian(objective_of(problem))
        vector = torch.randn(hessian.shape[0], generator=torch.Generator().manual_seed(0))
        with hessian.session() as data_pass:
            hessian.matvec(vector)
            if data_pass.kept < len(problem.batches):
                say(f"  {name}: only {data_pass.kept} of {len(problem.batches)} graphs fit the memory")
            repeat = Entry("product", "", lambda hessian=hessian, vector=vector: _repeat(hessian, vector))
            unit = Entry("gradient", "unit", lambda problem=problem: gradient(problem))
            take_turns([unit, repeat], runs)
        value = repeat.median / PRODUCTS / unit.median
        details = {"workload": name, "product_seconds": repeat.processor, "gradient_seconds": unit.processor}
        yield Figure(
            f"full product on a kept graph over one gradient, {label}", value, Mark(2.6, 2.0, below=True), details
        )


def _repeat(hessian: lh.Hessian, vector: torch.Tensor) -> None:
    for _ in range(PRODUCTS):
        hessian.matvec(vector)


def growth_with_depth(runs: int) -> Iterator[Figure]:
    """Slope of log time over log layers, certified top eigenvalues of all blocks."""
    details = depth_sweep(runs)
    exponent = details["exponent"]
    assert isinstance(exponent, float)
    title = f"growth exponent of all blocks' top 1 over {', '.join(map(str, LAYERS))} layers"
    yield Figure(title, exponent, Mark(1.2, 1.05, below=True), details)


def peak_memory(runs: int) -> Iterator[Figure]:
    """Peak memory of an analysis over a training step's, by default and told to stay within three; one run each."""
    if not peak.available():
        say("  peak memory: not available on this system")
        return
    for name, case in peak.CASES.items():
        prepare(case.workload, say)
        step = peak.grown("step", name)
        for title, budget in (("default budget", None), ("a budget of 3 steps", 3 * step)):
            try:
                taken = peak.grown("analysis", name, budget)
            except peak.Refused as refused:
                say(f"  {name}, {title}: {refused}")
                continue
            say(f"  {name}, {title}: training step {step / 2**20:.0f} MiB, analysis {taken / 2**20:.0f} MiB")
            details: dict[str, object] = {"step": step, "analysis": taken}
            title = f"peak memory over a training step's, {name}, {title}"
            yield Figure(title, taken / step, Mark(3.0, 2.0, below=True), details)


def cost_model(runs: int) -> Iterator[Figure]:
    """Rank correlation of predicted and measured costs."""
    found = ways(runs)
    details: dict[str, object] = {"ways": [asdict(way) for way in found]}
    yield Figure("rank correlation of predicted and measured costs", rank_correlation(found), None, details)
    yield Figure("share of questions where the chosen way is within 2x of the fastest", cheapest_named(found), None)


FIGURES: dict[str, Callable[[int], Iterator[Figure]]] = {
    "ratio": blocks_over_full,
    "product": product_over_gradient,
    "depth": growth_with_depth,
    "memory": peak_memory,
    "cost-model": cost_model,
}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the figures asked for; 0 when done, 2 for an unknown one."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    p.add_argument("figures", nargs="*", metavar="FIGURE", help=f"any of {', '.join(FIGURES)} (default: all)")
    p.add_argument("--runs", type=int, default=5, help="runs whose median is taken (default 5)")
    options = p.parse_args(arguments)
    names = options.figures or list(FIGURES)
    if unknown := [name for name in names if name not in FIGURES]:
        say(f"unknown figure {', '.join(unknown)}; there are {', '.join(FIGURES)}")
        return 2
    torch.set_num_threads(1)
    say("Figures of layerhess alone; medians of CPU time, one thread")
    made: list[Figure] = []
    for name in names:
        made += FIGURES[name](options.runs)
        _write(made)
    say("")
    for figure in made:
        say(str(figure))
    return 0


STARTED = time.strftime("%Y%m%d-%H%M%S")


def _write(made: list[Figure]) -> None:
    """Into benchmarks/results, after each figure, as the last ones take long."""
    record = [asdict(figure) | {"verdict": figure.mark.verdict(figure.value) if figure.mark else ""} for figure in made]
    RESULTS.mkdir(exist_ok=True)
    content = {"torch": torch.__version__, "layerhess": lh.__version__, "figures": record}
    (RESULTS / f"figures-{STARTED}.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    sys.exit(main())
