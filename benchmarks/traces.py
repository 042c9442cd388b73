"""Traces of all blocks to 2 %: passes over the data, ours against PyHessian layer by layer (see README.md)."""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch and NumPy start their pools

import statistics
import sys
import time
import warnings

import numpy as np
import torch
from torch import nn

import layerhess as lh

from .workloads import Problem, load, prepare

GOAL = 0.02  # standard error over the trace
FEWEST = 16  # probes before a standard error is believed, for both
MOST = 400  # PyHessian's iterations for a layer at most


def alone(problem: Problem, block: str) -> None:
    """Freeze everything but one parameter."""
    for name, parameter in problem.model.named_parameters():
        parameter.requires_grad_(name == block)


def their_samples(problem: Problem, block: str, iterations: int) -> np.ndarray:
    """v'Hv of PyHessian's probes for one layer, as many as it is let take (its own tolerance switched off)."""
    from pyhessian import hessian

    alone(problem, block)
    (batch,) = problem.batches
    computed = hessian(problem.model, problem.loss, data=batch, cuda=False)
    return np.array([float(value) for value in computed.trace(maxIter=iterations, tol=0.0)])


def passes_needed(samples: np.ndarray) -> int:
    """The first number of probes whose standard error is within the goal; as many as there are if it never is."""
    for count in range(FEWEST, len(samples) + 1):
        seen = samples[:count]
        if seen.std(ddof=1) / np.sqrt(count) <= GOAL * abs(seen.mean()):
            return count
    return len(samples)


def main(name: str = "resnet8") -> int:
    """Print one line a block, and the totals."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*backward\\(\\) with create_graph=True.*")
    prepare(name, print)
    problem = load(name)
    blocks = [n for n, p in problem.model.named_parameters() if p.ndim >= 2]
    objective = lh.Objective(problem.model, problem.batches, nn.CrossEntropyLoss(), mode="eval")
    start = time.process_time()
    analysis = lh.analyze(objective, blocks="weight", top=1, full=False, trace=lh.Trace(rel=GOAL))
    ours_seconds = time.process_time() - start
    theirs, capped = [], 0
    start = time.process_time()
    for block in blocks:
        samples = their_samples(load(name), block, MOST)
        needed = passes_needed(samples)
        capped += needed == MOST
        theirs.append(needed)
        trace = analysis.blocks[block].trace
        assert trace is not None
        error = samples[:needed].std(ddof=1) / np.sqrt(needed)
        own = f"{trace.value:9.4f} ± {trace.standard_error:.4f} ({trace.method}, {trace.probes} probes)"
        other = f"{samples[:needed].mean():9.4f} ± {error:.4f} ({needed} passes)"
        print(f"{block:32s} ours {own}   PyHessian {other}", flush=True)
    their_seconds = (time.process_time() - start) * sum(theirs) / (MOST * len(blocks))
    done = sum(analysis.blocks[b].trace.converged for b in blocks)  # type: ignore[union-attr]
    print(
        f"ours: {analysis.counts.passes} passes, eigenvalues included, {done} of {len(blocks)} traces within {GOAL:.0%}"
    )
    print(
        f"PyHessian: {sum(theirs)} passes ({capped} of {len(blocks)} layers stopped at {MOST} before they were within)"
    )
    ratio = sum(theirs) / analysis.counts.passes
    print(f"ratio of passes {ratio:.0f}; median {statistics.median(theirs):.0f} a layer")
    print(
        f"CPU seconds: ours {ours_seconds:.1f}, PyHessian {their_seconds:.1f} (its share of what the longer runs took)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
