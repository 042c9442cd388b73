"""Plans against uniform bits and HAWQ-V2's, and predicted against measured increases of the loss.

Three kinds of networks, trained on the spot on scikit-learn's digits: a CNN, a GELU MLP, and a small causal transformer
that reads an image as 64 tokens of 17 grey levels. Options 2, 3, 4 and 8 bits, one scale a channel.

    python -m benchmarks.plans                      ten seeds of the first two, three of the transformer
    python -m benchmarks.plans --kinds cnn --seeds 3
"""

from __future__ import annotations

import argparse
import math
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import layerhess as lh
from layerhess.planning import verification

OPTIONS = (2, 3, 4, 8)
BUDGETS = ("4bit", "3bit")
SEEDS = {"cnn": 10, "mlp": 10, "transformer": 3}
RANDOM = 100


class Attention(nn.Module):
    """A causal transformer layer of two heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(n, t, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Causal(nn.Module):
    """Grey levels (n, t) to logits of the next one, (n, classes, t)."""

    def __init__(self, tokens: int = 17, length: int = 64, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.layers = nn.ModuleList(Attention(width) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place(torch.arange(x.shape[1], device=x.device))
        for layer in self.layers:
            h = layer(h)
        return self.head(self.norm(h)).transpose(1, 2)


def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    return torch.tensor(bunch.images, dtype=torch.float32), torch.tensor(bunch.target)


def trained(kind: str, seed: int) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """(model in eval mode, calibration batches, held-out batch)."""
    torch.manual_seed(seed)
    images, labels = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images, labels = images[order], labels[order]
    if kind == "transformer":
        tokens = images.flatten(1).long()
        x, y, epochs, rate = tokens[:, :-1], tokens[:, 1:], 15, 3e-3
        model: nn.Module = Causal()
    elif kind == "cnn":
        x, y, epochs, rate = images[:, None] / 8.0 - 1.0, labels, 40, 2e-3
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip
    else:
        x, y, epochs, rate = images.flatten(1) / 8.0 - 1.0, labels, 50, 2e-3
        model = nn.Sequential(
            nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 48), nn.GELU(),
            nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 10),
        )  # fmt: skip
    kept = 1297
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for part in torch.randperm(kept).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
        schedule.step()
    model.eval()
    calibration = 128 if kind == "transformer" else kept
    return model, [(x[:calibration], y[:calibration])], (x[kept:], y[kept:])


def measured(kind: str, seed: int) -> dict[str, float]:
    model, batches, held_out = trained(kind, seed)
    objective = lh.Objective(model, batches, nn.CrossEntropyLoss())
    found: dict[str, float] = {}
    for budget in BUDGETS:
        began = time.perf_counter()
        plan = lh.plan(objective, OPTIONS, budget, held_out=held_out, seed=seed)
        seconds = time.perf_counter() - began
        uniform = plan.baselines[f"uniform w{budget[0]}"]
        others = [one.measured for one in (*plan.baselines.values(), *plan.candidates.values()) if one.fits]
        found |= {
            f"ratio {budget}": plan.measured / uniform.measured,
            f"held out {budget}": plan.baselines[uniform.name].against_plan.value,  # type: ignore[union-attr]
            f"hawq_v2 {budget}": plan.baselines["hawq_v2"].measured / uniform.measured,
            f"additive {budget}": plan.baselines["measured"].measured / uniform.measured,
            f"never worse {budget}": float(plan.measured <= min(others)),
            f"forwards {budget}": (plan.counts.measuring + plan.counts.portfolio) / len(plan.rows),
            f"seconds {budget}": seconds,
        }
    for name, budget in (("", "4.5bit"), (" any size", {"bits": math.inf})):
        verification.RANDOM, was = RANDOM, verification.RANDOM
        try:
            plan = lh.plan(objective, (3, 4, 8), budget, seed=seed, curvature=False)
        finally:
            verification.RANDOM = was
        predicted, seen, block = (
            np.array([getattr(one, kind) for one in plan.random])
            for kind in ("predicted", "measured", "predicted_block")
        )
        found |= {
            f"error{name}": float(np.median(np.abs(predicted / seen - 1.0))),
            f"error block{name}": float(np.median(np.abs(block / seen - 1.0))),
            f"rank{name}": float(spearmanr(predicted, seen).statistic),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", nargs="*", default=list(SEEDS), choices=list(SEEDS))
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for kind in asked.kinds:
        seeds = range(asked.first, asked.first + (asked.seeds or SEEDS[kind]))
        rows = [measured(kind, seed) for seed in seeds]
        print(f"{kind}, {len(rows)} seeds: geometric mean (smallest to largest); others: median")
        for name in rows[0]:
            values = np.array([row[name] for row in rows])
            geometric = name.startswith(("ratio", "hawq", "additive"))
            middle = float(np.exp(np.log(values).mean())) if geometric else float(np.median(values))
            print(f"  {name:22} {middle:9.4g}   ({values.min():.4g} to {values.max():.4g})", flush=True)


if __name__ == "__main__":
    main()
