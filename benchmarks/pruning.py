"""Pruning without training again: by curvature (OBD), by magnitude, and by a plan; what each does to the loss.

`python -m benchmarks.pruning` trains three perceptrons on scikit-learn's digits and prints a table, in half a minute.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import layerhess as lh

__all__ = ["obd_saliencies", "pruned"]

SHARES = (0.2, 0.35, 0.5)
OPTIONS = [lh.Prune(share) for share in (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)]
STEPS = 5  # of OBD that looks again


def obd_saliencies(objective: lh.Objective, kept: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """H_ii w_i^2 / 2 of every weight (LeCun, Denker & Solla 1989, eq. 5); infinite for those that are zero already."""
    found = lh.analyze(objective, blocks="weight", top=0, full=False, diagonal=True).blocks
    made = {}
    for name, spectrum in found.items():
        assert spectrum.diagonal is not None
        weight = objective.parameters[name].detach()
        made[name] = spectrum.diagonal.value[name].to(weight) * weight.square() / 2
    return made


def pruned(model: nn.Module, scores: dict[str, Tensor], share: float) -> nn.Module:
    """A copy without the given share of weights, those of the lowest scores, over all layers."""
    flat = torch.cat([score.flatten() for score in scores.values()])
    limit = flat.sort().values[round(share * len(flat)) - 1]
    smaller = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in smaller.named_parameters():
            if name in scores:
                parameter[scores[name] <= limit] = 0.0
    return smaller


def _trained(seed: int) -> tuple[nn.Module, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = torch.tensor(bunch.images, dtype=torch.float32).flatten(1) / 16, torch.tensor(bunch.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=3e-3)
    train, test = ((x[part], y[part]) for part in (order[:1200], order[1200:]))
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train[0]), train[1]).backward()
        optimizer.step()
    return model, train, test


def _again(model: nn.Module, data: tuple[Tensor, Tensor], share: float) -> nn.Module:
    """OBD in steps: saliencies anew of what is left, without training in between."""
    smaller = model
    for step in range(1, STEPS + 1):
        scores = obd_saliencies(lh.Objective(smaller, data, nn.CrossEntropyLoss()))
        smaller = pruned(smaller, scores, share * step / STEPS)
    return smaller


def main() -> None:
    """Print increases of the loss on the training and on the held-out data, means over three trainings."""
    rows: dict[tuple[float, str], list[tuple[float, float, float]]] = {}
    for seed in range(3):
        model, train, test = _trained(seed)
        objective = lh.Objective(model, train, nn.CrossEntropyLoss())
        scores = obd_saliencies(objective)
        weights = {name: objective.parameters[name].detach().abs() for name in scores}
        count = sum(weight.numel() for weight in weights.values())
        for share in SHARES:
            plan = lh.plan(objective, OPTIONS, {"bits": 32 * (1 - share)}, curvature=False, verify=False)
            planned = copy.deepcopy(model)
            lh.apply_plan(planned, plan)
            contestants = {
                "OBD": pruned(model, scores, share), f"OBD in {STEPS} steps": _again(model, train, share),
                "magnitude": pruned(model, weights, share), "plan": planned,
            }  # fmt: skip
            for name, smaller in contestants.items():
                gone = sum(int((p == 0).sum()) for n, p in smaller.named_parameters() if n in weights) / count
                losses = [_loss(smaller, data) - _loss(model, data) for data in (train, test)]
                rows.setdefault((share, name), []).append((gone, *losses))
            lowest = torch.cat([s.flatten() for s in scores.values()]).sort().values[: round(share * count)]
            rows.setdefault((share, "as OBD predicts"), []).append((share, float(lowest.sum()), float("nan")))
    for (share, name), found in rows.items():
        gone, trained, held = (sum(column) / len(column) for column in zip(*found, strict=True))
        print(f"{share:.0%} {name:16s} zeros {gone:.1%}  loss +{trained:.4f}  held out +{held:.4f}")


def _loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(data[0]), data[1]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
