"""How well predicted costs rank the ways to a block's eigenvalues."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from scipy.stats import spearmanr

import layerhess as lh
from layerhess.analysis.paths.cost import EXACT, FACTORS, GRAM, predicted
from layerhess.curvature.counters import Counters
from layerhess.curvature.factors.factor_graph import FactorGraph
from layerhess.linalg.eigen.process import Wanted

from .workloads import load, prepare

__all__ = ["Way", "cheapest_named", "rank_correlation", "ways"]

PATHS = {GRAM: "gram", FACTORS: "factors", EXACT: "exact"}
EXAMPLES, TOPS = (64, 256), (1, 10)
BLOCKS = ("conv.weight", "blocks.1.conv1.weight", "blocks.4.conv1.weight", "blocks.7.conv1.weight", "fc.weight")


@dataclass(frozen=True)
class Way:
    """One way of answering one question: what the library predicts that it costs, and the seconds it took."""

    question: str
    way: str
    predicted: float
    measured: float


def ways(runs: int, name: str = "resnet8") -> list[Way]:
    """Every way of some blocks on some numbers of examples, each block by itself; medians of the solve phase."""
    prepare(name)
    problem = load(name)
    x, y = problem.batches[0]
    found = []
    for examples in EXAMPLES:
        part = (x[:examples], y[:examples])
        objective = lh.Objective(problem.model, part, problem.loss, mode="eval")
        numel = {block: objective.parameters[block].numel() for block in BLOCKS}
        with objective.session():
            graph = FactorGraph(objective, next(objective.batches()), {b: (b,) for b in BLOCKS}, Counters())
            works = {block: graph.work((block,)) for block in BLOCKS}
        for block in BLOCKS:
            for top in TOPS:
                costs = predicted(numel[block], works[block], Wanted(top=top), objective.dtype.itemsize)
                for way, path in PATHS.items():
                    taken = [
                        lh.analyze(objective, {block: block}, top=top, full=False, path=path).seconds["solve"]
                        for _ in range(runs + 1)
                    ]
                    question = f"top {top} of {block}, {examples} examples"
                    found.append(Way(question, way, costs[way], statistics.median(taken[1:])))
    return found


def rank_correlation(found: list[Way]) -> float:
    """Spearman's, over all ways of all questions."""
    return float(spearmanr([way.predicted for way in found], [way.measured for way in found]).statistic)


def cheapest_named(found: list[Way]) -> float:
    """Share of the questions where the way that is predicted to be the cheapest takes at most twice the fastest."""
    right = []
    for question in dict.fromkeys(way.question for way in found):
        own = [way for way in found if way.question == question]
        chosen = min(own, key=lambda way: way.predicted)
        right.append(chosen.measured <= 2.0 * min(way.measured for way in own))
    return sum(right) / len(right)
