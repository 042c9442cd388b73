"""Where an analysis spends its time, in gradients over the same data: python -m benchmarks.phases [COLUMN ...].

Six questions on the workloads' networks: the phases of `analysis.cost`, all as a multiple of the same run's gradient,
medians of the runs, and the CPU time of the whole over its time on the wall (below 1 where others used the processor).
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch and NumPy start their pools

import argparse
import dataclasses
import json
import statistics
import sys
import time

import torch

import layerhess as lh

from .ours import analyse
from .timing import Entry, gradient, say, warm_up
from .workloads import RESULTS, Question, load, prepare

__all__ = ["COLUMNS", "main"]

COLUMNS = {  # name -> workload and question
    "ResNet, 22 blocks, top 1": ("resnet8", Question()),
    "ResNet, full, top 5": ("resnet8", Question(5, full=True)),
    "ResNet, full, top 1": ("resnet8", Question(1, full=True)),
    "small GPT, 19 blocks, top 1": ("gpt-small", Question()),
    "GPT, 27 blocks, top 1": ("gpt", Question()),
    "GPT, full, top 5": ("gpt", Question(5, full=True)),
}


def phases(column: str, runs: int) -> dict[str, float]:
    """Gradients of each phase, of all in CPU time, and how much of the wall's time was CPU time."""
    name, question = COLUMNS[column]
    prepare(name, say)
    problem = dataclasses.replace(load(name), question=question)
    warm_up(problem)
    unit = Entry("gradient", "unit", lambda: gradient(problem))
    whole = Entry(column, "ours", lambda: analyse(problem).analysis)
    found: list[dict[str, float]] = []
    for _ in range(runs):
        for _ in range(3):
            unit.run()
        whole.run()
        cost = whole.values.cost
        # The analysis reads the wall's clock; its phases share the CPU time of the run as they share that.
        share = whole.processor[-1] / sum(whole.values.seconds.values())
        spent = {phase: seconds * share / unit.median for phase, seconds in whole.values.seconds.items()}
        found.append(spent | {"all": whole.processor[-1] / unit.median, "CPU over wall": share})
        assert cost is not None and cost.gradients.keys() == whole.values.seconds.keys()
    keys = list(dict.fromkeys(key for spent in found for key in spent))
    return {key: statistics.median(spent.get(key, 0.0) for spent in found) for key in keys}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a line a column."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.phases", description=__doc__)
    p.add_argument("columns", nargs="*", metavar="COLUMN", help=f"any of {', '.join(map(repr, COLUMNS))}; default: all")
    p.add_argument("--runs", type=int, default=3, help="runs whose median is taken (default 3)")
    options = p.parse_args(arguments)
    if unknown := [column for column in options.columns if column not in COLUMNS]:
        say(f"unknown column {', '.join(unknown)}")
        return 2
    torch.set_num_threads(1)
    made = {}
    for column in options.columns or COLUMNS:
        made[column] = phases(column, options.runs)
        say(f"{column}: " + ", ".join(f"{key} {value:.3g}" for key, value in made[column].items()))
    RESULTS.mkdir(exist_ok=True)
    content = {"torch": torch.__version__, "layerhess": lh.__version__, "phases": made}
    (RESULTS / f"phases-{time.strftime('%Y%m%d-%H%M%S')}.json").write_text(json.dumps(content, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
