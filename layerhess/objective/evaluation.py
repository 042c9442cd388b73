"""What every loss offers: a batch's pair (sum, count), with the output it was computed from where one is wanted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from layerhess.errors import InputError
from layerhess.linalg.described import Described, Description
from layerhess.linalg.numbers import number
from layerhess.objective.criteria import Pair

P = ParamSpec("P")
E = TypeVar("E")
R = TypeVar("R")


@dataclass(frozen=True)
class Judged:
    """A batch's loss and the output it was computed from, in one graph.

    Attributes:
        loss: 0-d loss sum. count: the number to divide it by. output: the model's output, an inner node of the graph.
        convex: the loss is known to be convex in it. again: the loss sum of another output, where that is known.
    """

    loss: Tensor
    count: float
    output: Tensor
    convex: bool = False
    again: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, repr=False)
class Seen(Described):
    """The pair of a batch; its output and a (perhaps approximate) loss sum as a function of it, where known.

    Attributes:
        target: what a criterion compared the output with. curved: how many directions of the output the loss curves at
            most, where it is known to be convex in it.
    """

    loss: Tensor
    count: float
    output: Tensor | None = None
    again: Callable[[Tensor], Tensor] | None = None
    target: Any = None
    curved: int | None = None

    def _describe(self) -> Description:
        shape = "" if self.output is None else f", output {' x '.join(map(str, self.output.shape)) or 'scalar'}"
        return Description(f"Loss sum {number(float(self.loss))} over a count of {number(self.count, 6)}{shape}")


class Evaluation(Protocol):
    """Loss of one batch as (sum, count)."""

    is_sum: bool
    count_is_exact: bool
    name: str

    def __call__(self, model: nn.Module, batch: Any) -> Pair:
        """(0-d loss sum with graph, count)."""

    def with_output(self, model: nn.Module, batch: Any) -> Judged:
        """The pair, and the model's output that the loss was computed from; InputError where there is none."""

    def surveyed(self, model: nn.Module, batch: Any, where: str) -> Seen:
        """The pair, after checks of the batch; raises InputError naming ``where``."""

    def to(self, dtype: torch.dtype, device: torch.device) -> Evaluation:
        """The same evaluation with its own tensors in ``dtype``."""

    def usable(self, device: torch.device) -> Evaluation:
        """The same evaluation with its own tensors where autograd can use them, on ``device``."""


def differentiates(evaluation: Any) -> bool:
    """Whether the loss or the model is known to differentiate, see :func:`gradients_on`."""
    return getattr(evaluation, "differentiates", False)


def gradients_on(method: Callable[Concatenate[E, P], R]) -> Callable[Concatenate[E, P], R]:
    """Run a method of an evaluation with gradients on even where its caller has them off.

    Losses (PINN, gradient penalties) and models (forces) may differentiate the network, and have no value without
    gradients, or another one. Where the caller has them off, nothing is saved for a backward pass at first, so that
    memory is that of a forward pass; where that fails, the evaluation is taken for one that differentiates, and all is
    saved from then on. The result then comes without its graph.
    """

    @functools.wraps(method)
    def run(evaluation: E, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if torch.is_grad_enabled():
            return method(evaluation, *args, **kwargs)
        if not differentiates(evaluation):
            try:
                with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda saved: None, _not_saved):
                    return cast(R, _without_graph(method(evaluation, *args, **kwargs)))
            except InputError:
                raise
            except Exception:  # its backward pass found nothing, or a transform of torch.func refused the hooks
                pass  # and not again in here: the error holds on to what was allocated
            with torch.enable_grad():
                made = method(evaluation, *args, **kwargs)
            evaluation.differentiates = True  # type: ignore[attr-defined]
            return cast(R, _without_graph(made))
        with torch.enable_grad():
            return cast(R, _without_graph(method(evaluation, *args, **kwargs)))

    return run


def _not_saved(nothing: None) -> Tensor:
    raise RuntimeError("nothing was saved for a backward pass")


def _without_graph(value: Any) -> Any:
    """Tensors in tuples and in the records of this module, detached."""
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) is tuple:
        return tuple(_without_graph(part) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _without_graph(getattr(value, field.name)) for field in fields(value)})
    return value


def checked_tensor(value: Any, what: str, where: str) -> Tensor:
    """The value, if it is one tensor of real numbers; else an InputError that begins with ``what``."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = kind_of(value) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{what} {kind}", where=where, what_to_do="give one tensor of real numbers as the output")
    return value


def kind_of(value: Any) -> str:
    """Shape and dtype of a tensor, in words."""
    return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}" if isinstance(value, Tensor) else "?"
