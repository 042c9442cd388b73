"""A large vocabulary: what a front block's product costs on a kept graph, and how much memory it takes beside it.

`python -m benchmarks.vocabulary`: a GPT of 4 layers, width 256 and 4 heads with random weights, 50,257 tokens, one
batch of 4 x 128; the block is the first layer's matrix for queries, keys and values. The time is in gradients over the
same data, the memory in logits (4 x 128 x 50,257 numbers).
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch and NumPy start their pools

import argparse
import sys

import torch

import layerhess as lh

from .marks import Mark
from .models import GPT
from .ours import objective_of
from .peak import available, rise
from .timing import Entry, gradient, say, take_turns, warm_up
from .workloads import Problem, TokenCrossEntropy

__all__ = ["main"]

BLOCK = "blocks.0.attention.qkv.weight"
TIME, PEAK = Mark(0.5, below=True), Mark(2.5, below=True)


def problem_of(vocabulary: int, sequences: int = 4, tokens: int = 128) -> Problem:
    """Random weights and tokens."""
    torch.manual_seed(0)
    model = GPT(vocabulary, d=256, layers=4, heads=4, context=tokens).eval()
    ids = torch.randint(vocabulary, (sequences, tokens + 1))
    return Problem("vocabulary", model, [(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())], TokenCrossEntropy())


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.vocabulary", description=__doc__)
    p.add_argument("--vocabulary", type=int, default=50_257)
    p.add_argument("--runs", type=int, default=5, help="runs whose median is taken (default 5)")
    options = p.parse_args(arguments)
    torch.set_num_threads(1)
    problem = problem_of(options.vocabulary)
    warm_up(problem)
    logits = 4 * problem.batches[0][1].numel() * options.vocabulary
    operator = lh.Hessian(objective_of(problem), {"front": BLOCK}, check=False)
    vector = {"front": torch.randn(operator.blocks["front"].numel, generator=torch.Generator().manual_seed(0))}
    with operator.session() as data_pass:
        operator.block_matvec(vector)
        if not data_pass.kept:
            say("  the graph is not kept: it does not fit the memory")
        product = Entry("product", "", lambda: operator.block_matvec(vector))
        unit = Entry("gradient", "unit", lambda: gradient(problem))
        take_turns([unit, product], options.runs)
        _, memory = rise(product.answer) if available() else (None, float("nan"))
    share = product.median / unit.median
    say(f"GPT with {options.vocabulary:,} tokens, {BLOCK}, logits of {logits / 1e6:.0f} MB")
    say(f"  a product: {share:.2f} gradients of {unit.median:.2f} s CPU ({TIME.verdict(share)})")
    said = PEAK.verdict(memory / logits)
    say(f"  its peak over the kept graph: {memory / 1e6:.0f} MB, {memory / logits:.1f} times the logits ({said})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
