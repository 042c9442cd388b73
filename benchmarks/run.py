"""The benchmark's command line: `python -m benchmarks.run` (see README.md)."""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch and NumPy start their pools

import argparse
import json
import sys
import time
import warnings
from dataclasses import asdict

import torch

from .marks import Mark
from .peer import Steps, Values
from .peers import PEERS
from .table import KINDS, Row, errors, fastest, print_table, verdict
from .timing import Entry, gradient, say, warm_up
from .truth import truth
from .workloads import RESULTS, WORKLOADS, load, prepare

__all__ = ["main"]

LONG = 60.0  # seconds: a contestant that takes longer than this is run less often, and the table says how often


def entries(name: str, peers: list[str], columns: str, true: Values, with_ours: bool) -> list[Entry]:
    """Contestants of one workload, in the order in which they take turns."""
    chosen = []
    if with_ours and (ours := _our_entry(name)) is not None:
        chosen.append(ours)
    k = WORKLOADS[name].question.k
    for key in peers:
        peer = PEERS[key]
        if peer.most is not None and k > peer.most:
            say(f"  {peer.title} cannot answer this question (it finds {peer.most} of the {k}): left out")
            continue
        if "A" in columns:
            say(f"  oracle: steps {peer.title} needs ...")
            steps = peer.scout(load(name), true)
            chosen.append(_oracle_entry(name, key, steps, len(true)))
        if "B" in columns:
            chosen.append(Entry(peer.title, "B", lambda peer=peer: peer.own(load(name)), kept=peer.kept))
    return chosen


def _our_entry(name: str) -> Entry | None:
    """Ours; None, and said so, where this layerhess cannot answer: complete spectra are tried once, unmeasured."""
    from .ours import NotAvailable, analyse

    try:
        if WORKLOADS[name].question.complete:
            analyse(load(name))
    except NotAvailable as why:
        say(f"  ours is not available: {why}")
        return None

    def ours() -> Values:
        answer = analyse(load(name))
        if answer.unconverged:
            say(f"  ours did not certify: {', '.join(answer.unconverged)}")
        return answer.values

    return Entry("layerhess, self-check and certificates included", "ours", ours)


def _oracle_entry(name: str, key: str, steps: Steps, targets: int) -> Entry:
    peer = PEERS[key]
    note = f"{sum(map(sum, steps.values()))} {peer.counted}"
    if len(steps) < targets:
        note += f"; never right on {targets - len(steps)} targets, which are left out of its time"
    return Entry(peer.title, "A", lambda: peer.exact_steps(load(name), steps), note, peer.kept)


def measure(name: str, chosen: list[Entry], runs: int, long_runs: int) -> float:
    """Let the contestants take turns; returns the unit, the median time of one gradient over the data (CPU seconds)."""
    problem = load(name)
    unit = Entry("gradient", "unit", lambda: gradient(problem))
    warm_up(problem)
    for turn in range(runs):
        for entry in chosen:
            if len(entry.seconds) >= long_runs and entry.median > LONG:
                continue
            for _ in range(3):
                unit.run()
            entry.run()
            took = f"{entry.processor[-1]:.2f} s CPU, {entry.seconds[-1]:.2f} s wall"
            say(f"  run {turn + 1}: {entry.column} {entry.title}: {took}")
    return unit.median


def bench(name: str, options: argparse.Namespace) -> None:
    """Prepare, measure and print one workload."""
    workload = WORKLOADS[name]
    say(f"\n{workload.title}")
    prepare(name, say)
    true = truth(name, say)
    chosen = entries(name, options.peers, options.columns, true, not options.without_ours)
    unit = measure(name, chosen, options.runs, options.long_runs)
    rows = [Row(e.column, e.title, e.processor, e.seconds, *errors(e.values, true), e.note, e.kept) for e in chosen]
    print_table(workload.title, rows, unit, len(true), workload.marks, say)
    write(name, rows, unit, workload.marks)


def write(name: str, rows: list[Row], unit: float, marks: dict[str, Mark | None]) -> None:
    """Put the figures, the marks and what was said of them into benchmarks/results."""
    ours = next((row for row in rows if row.column == "ours"), None)
    record = {
        "workload": name,
        "unit_seconds": unit,
        "torch": torch.__version__,
        "rows": [asdict(row) for row in rows],
        "marks": {column: mark and asdict(mark) for column, mark in marks.items()},
        "ratios": {c: best.seconds / ours.seconds for c in KINDS if ours and (best := fastest(rows, c))},
        "verdict": verdict(ours, rows, marks) if ours else ["ours is not available"],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json").write_text(json.dumps(record, indent=1))


def parser() -> argparse.ArgumentParser:
    """The options of `python -m benchmarks.run`."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    every = ", ".join(WORKLOADS)
    p.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"any of {every} (default: all but the slow ones)")
    p.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="which peers take part")
    p.add_argument("--columns", choices=["A", "B", "AB"], default="AB", help="A: an oracle stops the peers; B: they do")
    p.add_argument("--runs", type=int, default=5, help="runs of each contestant (default 5)")
    p.add_argument("--long-runs", type=int, default=1, help=f"runs of those that take over {LONG:.0f} s (default 1)")
    p.add_argument("--slow", action="store_true", help="with no workload named: the slow ones, too")
    p.add_argument("--without-ours", action="store_true", help="peers only")
    p.add_argument("--prepare", action="store_true", help="only train the models and compute the truths")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 0 when done, 2 for an unknown workload."""
    options = parser().parse_args(arguments)
    names = options.workloads or [n for n, w in WORKLOADS.items() if options.slow or not w.slow]
    if unknown := [n for n in names if n not in WORKLOADS]:
        say(f"unknown workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
        return 2
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*backward\\(\\) with create_graph=True.*")  # PyHessian, once a layer
    for name in names:
        if options.prepare:
            prepare(name, say)
            truth(name, say)
        else:
            bench(name, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
