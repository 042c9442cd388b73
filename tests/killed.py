"""Killing an analysis without warning (SIGKILL), in a process of its own, and comparing results bit by bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import torch

import layerhess as lh
from layerhess.curvature.journal import Journal
from layerhess.results import json_format

MEASURED = ("seconds", "created", "cost", "counts")  # a run that went on made some graphs twice


def killed(act: Callable[[], Any], when: Callable[[Callable[[], None]], Any]) -> None:
    """Call ``act`` in a child process. ``when`` prepares the child and is given what kills it, with SIGKILL."""
    child = os.fork()
    if not child:  # what happens here is seen by its exit status only
        try:
            when(lambda: os.kill(os.getpid(), signal.SIGKILL))
            act()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "it ended by itself"


def in_pass(number: int) -> Callable[[Callable[[], None]], None]:
    """Kill in the ``number``-th pass that is made (not told from the journal), after its work and before its record."""

    def prepare(kill: Callable[[], None]) -> None:
        real, made = Journal.once, []

        def once(self: Journal, asked: str, make: Any, *others: Any) -> Any:
            def counted() -> Any:
                made.append(make())
                if len(made) == number:
                    kill()
                return made[-1]

            return real(self, asked, counted if self.active else make, *others)

        Journal.once = once  # type: ignore[method-assign]

    return prepare


def assert_same_bits(one: lh.Analysis, other: lh.Analysis) -> None:
    """Every number and every vector, to the last bit; not what was measured by clocks."""
    (left, vectors), (right, others) = json_format.encode(one), json_format.encode(other)
    for document in (left, right):
        for key in MEASURED:
            document.pop(key)
        document["settings"].pop("out")
    assert left == right
    assert vectors.keys() == others.keys() and all(torch.equal(vectors[name], others[name]) for name in vectors)
