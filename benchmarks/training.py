"""How the workloads' networks are trained, each once: on scikit-learn's digits, or on texts that come with Python."""

from __future__ import annotations

import ast
import math
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .models import GPT, ResNet20

__all__ = ["TRAINED", "digits", "empty_model"]

Stored = dict[str, object]  # weights, inputs and targets, and the size of the vocabulary (0: images)


def empty_model(family: str, vocabulary: int) -> nn.Module:
    """A family's network before its weights are loaded."""
    if family == "gpt":
        return GPT(vocabulary)
    if family == "gpt-small":
        return GPT(vocabulary, d=64, layers=4)
    return ResNet20(8 if family == "resnet8" else 16)


def digits(side: int) -> tuple[Tensor, Tensor]:
    """2,048 digits, (2048, 1, side, side), in a seeded order: scikit-learn's 1,797, and 251 of them a pixel shifted."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(bunch.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    x, y = torch.cat([x, x[:251].roll(1, dims=3)]), torch.cat([y, y[:251]])
    if side != 8:
        x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    return (x - x.mean()) / x.std(), y


def _train_resnet(family: str, say: Callable[[str], None], epochs: int = 6) -> Stored:
    x, y = digits(8 if family == "resnet8" else 32)
    model = empty_model(family, 0)
    rate = 0.1
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    steps = epochs * 16
    for step in range(steps):
        if step % 16 == 0:
            order = torch.randperm(len(x))
        optimiser.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = order[step % 16 * 128 : (step % 16 + 1) * 128]
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(part) for part in x.split(256)])
    right = (logits.argmax(1) == y).float().mean().item()
    say(f"  loss {F.cross_entropy(logits, y).item():.4f}, {100 * right:.1f} % of the digits right")
    return {"weights": model.state_dict(), "inputs": x, "targets": y, "vocabulary": 0}


def _docstrings() -> str:
    """All docstrings of the single-file modules of Python's standard library, as ASCII text of about 0.8 MB."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = []
    for path in sorted(folder.glob("[a-z]*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text.append(ast.get_docstring(node) or "")
    return "\n\n".join(part for part in text if part).encode("ascii", "ignore").decode()


def _topics() -> str:
    """The language's help texts, as ASCII text of about 0.7 MB."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode("ascii", "ignore").decode()


def _train_gpt(say: Callable[[str], None], steps: int = 1200, rows: int = 16) -> Stored:
    def rate(step: int) -> float:
        return 2e-3 * min(1.0, (step + 1) / 50, (steps - step) / steps + 0.1)

    def optimiser(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, weight_decay=0.1)

    return _trained_gpt("gpt", _docstrings(), optimiser, rate, steps, rows, 64, say)


def _train_small_gpt(say: Callable[[str], None], steps: int = 250, rows: int = 16) -> Stored:
    return _trained_gpt("gpt-small", _topics(), torch.optim.Adam, lambda step: 1e-3, steps, rows, 16, say)


def _trained_gpt(
    family: str,
    text: str,
    optimiser_of: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    rate: Callable[[int], float],
    steps: int,
    rows: int,
    held_rows: int,
    say: Callable[[str], None],
    context: int = 64,
) -> Stored:
    """Weights after so many steps of so many rows, and random windows of the text for the analysis."""
    alphabet = sorted(set(text))
    place = {c: i for i, c in enumerate(alphabet)}
    ids = torch.tensor([place[c] for c in text])
    model = empty_model(family, len(alphabet))
    optimiser = optimiser_of(model.parameters())
    window = torch.arange(context + 1)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate(step)
        part = ids[torch.randint(len(ids) - context, (rows, 1)) + window]
        loss = F.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            say(f"  step {step + 1}: loss {loss.item():.3f} per character of {len(alphabet)}")
    held = ids[torch.randint(len(ids) - context, (held_rows, 1)) + window]
    return {
        "weights": model.state_dict(),
        "inputs": held[:, :-1].contiguous(),
        "targets": held[:, 1:].contiguous(),
        "vocabulary": len(alphabet),
    }


TRAINED: dict[str, Callable[[Callable[[str], None]], Stored]] = {
    "resnet8": lambda say: _train_resnet("resnet8", say),
    "resnet32": lambda say: _train_resnet("resnet32", say),
    "gpt": _train_gpt,
    "gpt-small": _train_small_gpt,
}
