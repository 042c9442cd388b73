"""The workloads: which trained model, which batches, which loss. Trained weights and data live in benchmarks/.cache.

`prepare` trains a model once (a minute or two) and writes weights and data to the cache. `load` is the set-up every
contestant pays inside its own measured time: it reads both from disk and builds the model afresh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from .marks import Mark
from .models import weight_names
from .training import TRAINED, empty_model

__all__ = [
    "CACHE",
    "FULL",
    "KEPT",
    "RESULTS",
    "WORKLOADS",
    "Problem",
    "Question",
    "TokenCrossEntropy",
    "Workload",
    "load",
    "prepare",
]

CACHE = Path(__file__).parent / ".cache"
RESULTS = Path(__file__).parent / "results"
VERSION = 1  # part of every file name in the cache: raise it when a model, its training or its data change

FULL = "(full)"  # the target that is the whole model
KEPT = "A, kept graphs"  # what `Workload.kept` judges

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
        copies: whether ours looks for further copies of the eigenvalues ("search", its default, or "unchecked"), which
            no peer does.
    """

    k: int = 1
    full: bool = False
    complete: bool = False
    copies: str = "search"


@dataclass(frozen=True)
class Workload:
    """A model family (what is trained), a number of batches (what is analysed), and the question about them.

    Attributes:
        oracle, own: what the fastest library's time over ours should reach in column A and in column B, where anything.
        kept: the same of the fastest peer on kept graphs, in column A.
        rows: examples of each batch that are used; all where None.
        parts: equal batches that all the data would make.
    """

    title: str
    family: str
    batches: int
    oracle: Mark | None = None
    own: Mark | None = None
    question: Question = Question()
    rows: int | None = None
    slow: bool = False  # not part of the default run
    kept: Mark | None = None
    parts: int = 8

    @property
    def asked(self) -> str:
        """Names the examples and the question: workloads with the same have the same truth."""
        share = Fraction(self.batches, self.parts)
        data = f"{share.numerator}of{share.denominator}" + (f"-{self.rows}rows" if self.rows else "")
        asked = self.question
        kind = f"top{asked.k}" + "-full" * asked.full + "-complete" * asked.complete
        return f"{self.family}-{data}-{kind}"

    @property
    def marks(self) -> dict[str, Mark | None]:
        """By the name of what they judge."""
        return {"A": self.oracle, "B": self.own, KEPT: self.kept}


@dataclass(frozen=True)
class Problem:
    """What a contestant gets: a model in eval mode, equal batches, a mean loss, and the question."""

    family: str
    model: nn.Module
    batches: list[Batch]
    loss: nn.CrossEntropyLoss
    question: Question = Question()

    @property
    def tokens(self) -> bool:
        """Whether the model predicts the next token at every position."""
        return isinstance(self.loss, TokenCrossEntropy)

    @property
    def targets(self) -> list[str]:
        """Names of what eigenvalues are asked of: the weight blocks, or the full model."""
        return [FULL] if self.question.full else weight_names(self.model)

    def members(self, target: str) -> dict[str, nn.Parameter]:
        """The parameters of one target, by name."""
        return {name: p for name, p in self.model.named_parameters() if target in (FULL, name)}


WORKLOADS = {
    "resnet8": Workload(
        "ResNet-20, digits 8x8, width 8, one batch of 256", "resnet8", 1, Mark(4, 6), Mark(8), kept=Mark(3, 4)
    ),
    "resnet8-8": Workload("ResNet-20, digits 8x8, width 8, 8 batches of 256", "resnet8", 8, Mark(7, 10), Mark(14)),
    "resnet8-8x32": Workload(
        "ResNet-20, digits 8x8, width 8, 8 batches of 32", "resnet8", 8, rows=32, kept=Mark(4.5, 6)
    ),
    "resnet8-16x16": Workload("ResNet-20, digits 8x8, width 8, 16 batches of 16", "resnet8", 16, parts=128),
    "resnet8-2x128": Workload("ResNet-20, digits 8x8, width 8, 2 batches of 128", "resnet8", 2, parts=16),
    "resnet8-top10": Workload(
        "ResNet-20, digits 8x8, width 8, one batch of 256, top 10 of each block",
        "resnet8", 1, Mark(9, 12), Mark(13), Question(10),
    ),
    "resnet8-full5": Workload(
        "ResNet-20, digits 8x8, width 8, one batch of 256, top 5 of the full model, copies searched",
        "resnet8", 1, Mark(0.75, 0.9), Mark(1.1), Question(5, full=True),
    ),
    "resnet8-full5-unchecked": Workload(
        "ResNet-20, digits 8x8, width 8, one batch of 256, top 5 of the full model, copies unchecked",
        "resnet8", 1, Mark(1.0, 1.2), Mark(1.4), Question(5, full=True, copies="unchecked"),
    ),
    "resnet32": Workload("ResNet-20, digits 32x32, width 16, one batch of 256", "resnet32", 1, Mark(6.5, 9), Mark(14)),
    "resnet32-complete": Workload(
        "ResNet-20, digits 32x32, width 16, one batch of 32, complete spectra beside the peers' top 1",
        "resnet32", 1, Mark(1, 2), None, Question(complete=True), rows=32,
    ),
    "resnet32-8": Workload("ResNet-20, digits 32x32, width 16, 8 batches of 256", "resnet32", 8, slow=True),
    "gpt": Workload("GPT, 6 layers, d = 128, 8 batches of 8 x 64 tokens", "gpt", 8, Mark(1.7, 2.5), Mark(3.5)),
    "gpt-full5": Workload(
        "GPT, 6 layers, d = 128, 8 batches of 8 x 64 tokens, top 5 of the full model, copies searched",
        "gpt", 8, Mark(0.7, 0.9), Mark(1.0), Question(5, full=True),
    ),
    "gpt-full5-unchecked": Workload(
        "GPT, 6 layers, d = 128, 8 batches of 8 x 64 tokens, top 5 of the full model, copies unchecked",
        "gpt", 8, Mark(0.95, 1.2), Mark(1.3), Question(5, full=True, copies="unchecked"),
    ),
    "gpt-small": Workload(
        "GPT, 4 layers, d = 64, 8 batches of 2 x 64 tokens", "gpt-small", 8, kept=Mark(1.5, 2.2)
    ),
    "gpt-small-2x8": Workload("GPT, 4 layers, d = 64, 2 batches of 8 x 64 tokens", "gpt-small", 2, parts=2),
}  # fmt: skip


def load(name: str) -> Problem:
    """Read a prepared workload from the cache: the set-up that is counted for every contestant."""
    workload = WORKLOADS[name]
    stored = torch.load(_path(workload.family), weights_only=True)
    model = empty_model(workload.family, stored["vocabulary"])
    model.load_state_dict(stored["weights"])
    x, y = stored["inputs"], stored["targets"]
    size = x.shape[0] // workload.parts
    rows = workload.rows or size
    batches = [(x[i * size :][:rows], y[i * size :][:rows]) for i in range(workload.batches)]
    loss = TokenCrossEntropy() if stored["vocabulary"] else nn.CrossEntropyLoss()
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
    torch.save(TRAINED[family](say), path)


def _path(family: str) -> Path:
    return CACHE / f"{family}-v{VERSION}.pt"
