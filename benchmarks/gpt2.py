"""One analysis of GPT-2 small's shape (124M parameters): its time and memory, and those of a training step.

`python -m benchmarks.gpt2 [--memory 14GB] [--layers 12] [--width 768] [--full] [--exclude 0.05] [--out FOLDER]
[--resume]` takes the top eigenvalue of every module on 2 x 128 random tokens, random weights, and prints what it cost;
`python -m benchmarks.gpt2 --step` what a training step with AdamW takes. The peak is the process's resident set, with
imports, weights and data. An hour at the full size on two cores; Linux only.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import nn

import layerhess as lh

SEQUENCES, TOKENS = 2, 128


def network(layers: int, width: int) -> nn.Module:
    """GPT-2 with random weights; its default configuration is GPT-2 small."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64, attn_implementation="eager")
    return GPT2LMHeadModel(config).eval()


def data() -> list[dict[str, torch.Tensor]]:
    """One batch of random tokens, which are their own labels."""
    ids = torch.randint(50257, (SEQUENCES, TOKENS), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": ids, "labels": ids}]


def peak() -> float:
    """The largest resident set so far, in GiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def step(model: nn.Module) -> None:
    """Two training steps, so that the optimiser's state is there in one of them."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)
    for _ in range(2):
        optimiser.zero_grad()
        model(**data()[0]).loss.backward()
        optimiser.step()


class Printed:
    """Prints each event of an analysis with the time of day and the peak so far."""

    def forecast(self, event: object) -> None:
        """Called once."""
        print(time.strftime("%X"), f"{peak():.2f} GiB", event, flush=True)

    update = note = forecast


def analysis(model: nn.Module, options: argparse.Namespace) -> None:
    """The analysis, its progress and its result."""
    found = lh.analyze(
        lh.Objective(model, data()),
        blocks="module",
        full=options.full,
        exclude=options.exclude,
        memory=options.memory,
        out=options.out,
        resume=options.resume,
        progress=Printed(),
    )
    print(found)  # says how many converged
    print({phase: round(seconds) for phase, seconds in found.seconds.items()}, found.counts)


def main() -> None:
    """Read the options, run, print the time and the peak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", default=None)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--exclude", type=float, default=None)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--out", default=None)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--step", action="store_true", help="a training step instead")
    options = parser.parse_args()
    model = network(options.layers, options.width)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{size / 1e6:.1f}M parameters, {peak():.2f} GiB before")
    started = time.perf_counter()
    step(model) if options.step else analysis(model, options)
    print(f"{time.perf_counter() - started:.0f} s, peak {peak():.2f} GiB")


if __name__ == "__main__":
    main()
