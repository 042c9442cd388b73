"""The workloads: which trained model, which batches, which loss. Trained weights and data live in benchmarks/.cache.

`prepare` trains a model once (a minute or two) and writes weights and data to the cache. `load` is the set-up every
contestant pays inside its own measured time: it reads both from disk and builds the model afresh.
"""

from __future__ import annotations

import ast
import math
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .marks import Mark
from .models import GPT, ResNet20, weight_names

__all__ = [
    "CACHE",
    "FULL",
    "RESULTS",
    "WORKLOADS",
    "Problem",
    "Question",
    "TokenCrossEntropy",
    "Workload",
    "digits",
    "load",
    "prepare",
]

CACHE = Path(__file__).parent / ".cache"
RESULTS = Path(__file__).parent / "results"
VERSION = 1  # part of every file name in the cache: raise it when a model, its training or its data change

FULL = "(full)"  # the target that is the whole model

Batch = tuple[Tensor, Tensor]


class TokenCrossEntropy(nn.CrossEntropyLoss):
    """Mean cross entropy over all positions: logits (..., C) against ids (...)."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return super().forward(logits.flatten(0, -2), target.flatten())


@dataclass(frozen=True)
class Question:
    """What is asked of a workload.

    Attributes:
        k: the largest k eigenvalues of each target; this is also what the peers are asked.
        full: the target is the full model, all its parameters; otherwise every weight block.
        complete: ours gives every eigenvalue of each target, beside the peers' k.
    """

    k: int = 1
    full: bool = False
    complete: bool = False


@dataclass(frozen=True)
class Workload:
    """A model family (what is trained), a number of batches (what is analysed), and the question about them.

    Attributes:
        oracle, own: what the fastest peer's time over ours should reach in column A and in column B, where anything.
        rows: examples of each batch that are used; all where None.
    """

    title: str
    family: str
    batches: int
    oracle: Mark | None = None
    own: Mark | None = None
    question: Question = Question()
    rows: int | None = None
    slow: bool = False  # not part of the default run


@dataclass(frozen=True)
class Problem:
    """What a contestant gets: a model in eval mode, equal batches, a mean loss, and the question."""

    family: str
    model: nn.Module
    batches: list[Batch]
    loss: nn.CrossEntropyLoss
    question: Question = Question()

    @property
    def targets(self) -> list[str]:
        """Names of what eigenvalues are asked of: the weight blocks, or the full model."""
        return [FULL] if self.question.full else weight_names(self.model)

    def members(self, target: str) -> dict[str, nn.Parameter]:
        """The parameters of one target, by name."""
        return {name: p for name, p in self.model.named_parameters() if target in (FULL, name)}


WORKLOADS = {
    "resnet8": Workload("ResNet-20, digits 8x8, width 8, one batch of 256", "resnet8", 1, Mark(8, 12), Mark(15)),
    "resnet8-8": Workload("ResNet-20, digits 8x8, width 8, 8 batches of 256", "resnet8", 8, Mark(15, 20), Mark(25)),
    "resnet8-top10": Workload(
        "ResNet-20, digits 8x8, width 8, one batch of 256, top 10 of each block",
        "resnet8", 1, Mark(20, 30), Mark(30), Question(10),
    ),
    "resnet8-full5": Workload(
        "ResNet-20, digits 8x8, width 8, one batch of 256, top 5 of the full model",
        "resnet8", 1, Mark(2, 3), Mark(3), Question(5, full=True),
    ),
    "resnet32": Workload("ResNet-20, digits 32x32, width 16, one batch of 256", "resnet32", 1, Mark(12, 20), Mark(25)),
    "resnet32-complete": Workload(
        "ResNet-20, digits 32x32, width 16, one batch of 32, complete spectra beside the peers' top 1",
        "resnet32", 1, Mark(1, 2), None, Question(complete=True), rows=32,
    ),
    "resnet32-8": Workload("ResNet-20, digits 32x32, width 16, 8 batches of 256", "resnet32", 8, slow=True),
    "gpt": Workload("GPT, 6 layers, d = 128, 8 batches of 8 x 64 tokens", "gpt", 8, Mark(1.8, 3), Mark(3)),
    "gpt-full5": Workload(
        "GPT, 6 layers, d = 128, 8 batches of 8 x 64 tokens, top 5 of the full model",
        "gpt", 8, Mark(1.4, 2), Mark(3), Question(5, full=True),
    ),
}  # fmt: skip


def load(name: str) -> Problem:
    """Read a prepared workload from the cache: the set-up that is counted for every contestant."""
    workload = WORKLOADS[name]
    stored = torch.load(_path(workload.family), weights_only=True)
    model = _empty_model(workload.family, stored["vocabulary"])
    model.load_state_dict(stored["weights"])
    x, y = stored["inputs"], stored["targets"]
    size = x.shape[0] // 8
    rows = workload.rows or size
    batches = [(x[i * size :][:rows], y[i * size :][:rows]) for i in range(workload.batches)]
    loss = TokenCrossEntropy() if workload.family == "gpt" else nn.CrossEntropyLoss()
    return Problem(workload.family, model.eval(), batches, loss, workload.question)


def prepare(name: str, say: Callable[[str], None] = print) -> None:
    """Train the workload's model and cache it with its data, unless that has been done."""
    family = WORKLOADS[name].family
    path = _path(family)
    if path.exists():
        return
    CACHE.mkdir(exist_ok=True)
    say(f"training {family} once (kept in {path.parent.name}/) ...")
    torch.manual_seed(0)
    stored = _train_gpt(say) if family == "gpt" else _train_resnet(family, say)
    torch.save(stored, path)


def _path(family: str) -> Path:
    return CACHE / f"{family}-v{VERSION}.pt"


def _empty_model(family: str, vocabulary: int) -> nn.Module:
    if family == "gpt":
        return GPT(vocabulary)
    return ResNet20(8 if family == "resnet8" else 16)


def digits(side: int) -> Batch:
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


def _train_resnet(family: str, say: Callable[[str], None], epochs: int = 6) -> dict[str, object]:
    x, y = digits(8 if family == "resnet8" else 32)
    model = _empty_model(family, 0)
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


def _train_gpt(say: Callable[[str], None], steps: int = 1200, rows: int = 16, context: int = 64) -> dict[str, object]:
    text = _docstrings()
    alphabet = sorted(set(text))
    place = {c: i for i, c in enumerate(alphabet)}
    ids = torch.tensor([place[c] for c in text])
    model = GPT(len(alphabet), context=context)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    window = torch.arange(context + 1)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 50, (steps - step) / steps + 0.1)
        part = ids[torch.randint(len(ids) - context, (rows, 1)) + window]
        loss = F.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 200 == 199:
            say(f"  step {step + 1}: loss {loss.item():.3f} per character of {len(alphabet)}")
    held = ids[torch.randint(len(ids) - context, (64, 1)) + window]
    return {
        "weights": model.state_dict(),
        "inputs": held[:, :-1].contiguous(),
        "targets": held[:, 1:].contiguous(),
        "vocabulary": len(alphabet),
    }
