"""What the self-check found: which checks passed, which failed and where, and what else was measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from layerhess.checks.factors import Licence
from layerhess.checks.forward_trace import Trace
from layerhess.checks.known_again import Summary
from layerhess.curvature.difference_graph import Differences
from layerhess.curvature.same_data import loss_tolerance
from layerhess.errors import InputError
from layerhess.linalg.described import Described, Description, called
from layerhess.linalg.numbers import counted
from layerhess.objective.group import Group
from layerhess.results.record import Check

DECIDED = (
    "checks", "failed", "culprits", "zero_suspects", "errors", "notes", "concerns", "uncut", "place", "blur",
    "graph_seconds", "block_seconds", "known_again",
)  # fmt: skip
SEEN = ("the loss", "the norm of a product")
NOISE = 100.0  # roundoffs of the loss
BLURS = 5.0  # times the measured blur, since one measurement may be small by luck


@dataclass(repr=False)
class SelfCheck(Described):
    """What the checks found.

    Attributes:
        checks: one line each, for the result. failed: block name -> its failed check ("(full)" included).
        zero_suspects: blocks whose products vanish on the sample. trace: of one forward pass.
        culprits: tensor -> figure, where products with the Jacobian are wrong.
        notes: sentences for the reader. concerns: those that cast doubt on the numbers or their meaning.
        uncut: why batches must not be cut, "" if they may be.
        place: such as " in batch 3", where products are NaN or infinite in one batch alone.
        licence: which blocks may use factors.
        errors: a block's parameters -> relative error of its products, where these are made by differences.
        differences: what makes them so.
        blur: relative error of products in float64, where it was measured.
        graph_seconds, block_seconds: on the sample, the time to make a graph, and to make one product of every block
            and the full model with it.
        pieces: examples at a time, where memory ran out; else None.
        seen: loss sum and norm of a product on the sample, the same on all ranks. apart: how far that norm may be off.
        known_again: products on a few examples, see :func:`layerhess.checks.known_again.summaries`.
    """

    trace: Trace
    checks: list[Check] = field(default_factory=list)
    failed: dict[str, Check] = field(default_factory=dict)
    culprits: dict[str, str] = field(default_factory=dict)
    zero_suspects: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    concerns: list[str] = field(default_factory=list)
    uncut: str = ""
    place: str = ""
    licence: Licence = field(default_factory=Licence)
    errors: dict[tuple[str, ...], float] = field(default_factory=dict)
    differences: Differences | None = None
    blur: float = 0.0
    graph_seconds: float = 0.0
    block_seconds: float = 0.0
    pieces: int | None = None
    seen: tuple[float, float] = (0.0, 0.0)
    apart: float = 0.0
    known_again: list[Summary] = field(default_factory=list)

    def _describe(self) -> Description:
        failed = ", ".join(f"{called(check.name)} in {called(block, 30)}" for block, check in self.failed.items())
        return Description(
            f"Self-check: {counted(len(self.checks), 'check')}" + ("" if self.failed else ", all passed"),
            (f"failed: {failed}" if failed else ", ".join(called(check.name) for check in self.checks), *self.notes),
            f"{counted(len(self.failed), 'block')} FAILED" if self.failed else "",
            ("check", "passed", "detail"),
            tuple((called(check.name), "yes" if check.passed else "NO", check.detail) for check in self.checks),
        )

    def agreed(self, group: Group) -> SelfCheck:
        """With rank 0's findings: ranks on other hardware might decide otherwise.

        Raises:
            InputError: the loss of the same examples, or its second derivative, is another on another rank.
        """
        told = group.gathered(self.seen)
        noise = NOISE * float(torch.finfo(self.trace.coarsest).eps) * abs(told[0][0])  # of no curvature, on another CPU
        levels = loss_tolerance(self.trace.coarsest), self.apart
        for what, level, first, *others in zip(SEEN, levels, *told, strict=True):
            for rank, own in enumerate(others, 1):
                if abs(own - first) > level * max(abs(own), abs(first)) + noise:
                    raise InputError(
                        f"the ranks have different functions: {what} is {first:.9g} on rank 0 and {own:.9g} on rank "
                        f"{rank}, of the same examples",
                        where=f"rank {rank}",
                        what_to_do="give all ranks the same model, loss and mode, whatever else their code depends on",
                    )
        decided = group.agreed({name: getattr(self, name) for name in DECIDED})
        if self.differences is not None:
            self.differences.steps.update(group.agreed(self.differences.steps))
        return replace(self, **decided, licence=self.licence.agreed(group))

    @property
    def eps(self) -> float:
        """The relative roundoff of the coarsest dtype behind the loss, or what stands for it where digits are lost."""
        return max(float(torch.finfo(self.trace.coarsest).eps), BLURS * self.blur)
