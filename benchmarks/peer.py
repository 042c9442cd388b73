"""What a peer is, and what the peers have in common: seeds, frozen parameters, and what counts as right.

A peer is three functions: `own` lets it stop by its own rule; `scout` (never timed) finds, with the truth at hand, the
smallest number of steps per target after which its answer is right; `exact_steps` (timed) takes just those. README.md
says for each how the oracle looks inside. Seeds are fixed per target: the timed run repeats the scouted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from .truth import Values
from .workloads import Problem

__all__ = [
    "LONGEST",
    "POWER_CAP",
    "SCOUT_CAP",
    "SMALLEST",
    "TOL",
    "Peer",
    "Steps",
    "Values",
    "deviation",
    "near",
    "network",
    "only",
    "seed",
]

TOL = 1e-3
POWER_CAP = 100  # steps of power iteration by its own rule, PyHessian's default
SCOUT_CAP = 300  # beyond this many steps for one eigenvalue the oracle gives a power iteration up
LONGEST = {1: 32, 5: 200, 10: 200}  # the oracle's longest Lanczos run, by the number of eigenvalues
SMALLEST = 0.1  # an eigenvalue below this share of the target's largest is held to the error of one of that size

Steps = dict[str, list[int]]  # target -> steps of each search in it; a target that never came right is absent


@dataclass(frozen=True)
class Peer:
    """A way to the eigenvalues asked for: by its own rule, and with the fewest steps that are right.

    Attributes:
        most: eigenvalues of a target it can find; None where there is no limit.
        kept: a few lines on kept graphs, rather than a library's or the notebook's way; judged by bars of their own.
        counted: what `Steps` count.
    """

    title: str
    own: Callable[[Problem], Values]
    scout: Callable[[Problem, Values], Steps]
    exact_steps: Callable[[Problem, Steps], Values]
    most: int | None = None
    kept: bool = False
    counted: str = "steps"


def deviation(values: Sequence[float], true: Sequence[float]) -> float:
    """Largest error of the eigenvalues, each relative to the true one or, where that is more, a tenth of the largest.

    Both descend; what only one of the two has is not looked at.
    """
    floor = SMALLEST * max(abs(t) for t in true)
    return max(abs(value - t) / max(abs(t), floor) for value, t in zip(values, true, strict=False))


def near(values: Sequence[float], true: Sequence[float]) -> bool:
    """Whether all eigenvalues are within the target of 1e-3."""
    return deviation(values, true) <= TOL


def seed(problem: Problem, target: str) -> int:
    """The seed of everybody's random start for one target."""
    return problem.targets.index(target)


def network(problem: Problem) -> str:
    """The kind of network, by which the peers' free settings were chosen."""
    return "gpt" if problem.tokens else "resnet"


@contextmanager
def only(problem: Problem, target: str) -> Iterator[list[nn.Parameter]]:
    """Freeze everything but one target, so that a peer builds the smallest graph it can."""
    members = problem.members(target)
    for name, parameter in problem.model.named_parameters():
        parameter.requires_grad_(name in members)
    try:
        yield list(members.values())
    finally:
        for parameter in problem.model.parameters():
            parameter.requires_grad_(True)
            parameter.grad = None
