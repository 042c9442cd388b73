"""The float64 copy of the loss on its sample: made when a check needs it, and let go in between where it is large."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from layerhess.curvature.autograd_graph import coarsest_dtype
from layerhess.curvature.device import is_out_of_memory
from layerhess.objective.batches import leading_size
from layerhess.objective.blocks import is_large
from layerhess.objective.objective import Objective


class CoarseError(Exception):
    """A copy computes in as coarse a dtype inside as the model itself."""


def refuse_coarse(copied: Objective, coarsest: torch.dtype) -> None:
    """Refuse a copy that repeats the roundings which it should show: it casts inside.

    Args:
        copied: in session. coarsest: the coarsest dtype in the graph of the model itself.

    Raises:
        CoarseError: what it computes in is no finer.
    """
    graph = copied.terms(next(iter(copied.data)))[0].grad_fn
    inside = copied.dtype if graph is None else coarsest_dtype(graph, copied.dtype)
    if torch.finfo(inside).eps >= torch.finfo(coarsest).eps:
        raise CoarseError(f"it computes in {str(inside).removeprefix('torch.')} inside")


class Float64Copy:
    """Called, it gives the same loss in float64 on the samples, or None where no copy can be made or evaluated.

    Args:
        objective: in session. samples: prepared.
    """

    def __init__(self, objective: Objective, samples: list[Any]) -> None:
        self._objective, self._samples = objective, samples
        self._stack = ExitStack()
        self._made: Objective | None = None
        self._fails = self._evaluating = False

    def __enter__(self) -> Float64Copy:
        return self

    def __exit__(self, *error: object) -> None:
        self._made = None
        self._stack.close()

    def __call__(self) -> Objective | None:
        """The copy, in session until it is let go."""
        if self._made is None and not self._fails:
            try:
                self._made = self._copied()
            except Exception as error:  # deepcopy and user code in another dtype can raise anything
                if is_out_of_memory(error) and self._evaluating:
                    raise  # pieces of the samples may fit, where they can be cut
                self._fails = True
        return self._made

    def let_go(self) -> None:
        """Give its memory back, if that is worth making it again."""
        if is_large(self._objective.numel):
            self.__exit__()

    def _copied(self) -> Objective:
        copied = self._objective.cast(torch.float64, self._samples)
        self._stack.enter_context(copied.session())
        self._evaluating = any((leading_size(batch) or 0) > 1 for batch in copied.data)
        with torch.no_grad():
            for batch in copied.data:
                copied.terms(batch)
        return copied
