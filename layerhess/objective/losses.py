"""Computes a batch's loss as a pair (sum, count): one interface for criteria, callables and a model's own loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from layerhess.errors import InputError
from layerhess.linalg.described import Described, Description
from layerhess.objective import batches
from layerhess.objective.criteria import Criterion, Pair, check_scalar
from layerhess.objective.evaluation import Evaluation, Judged, Seen, checked_tensor, gradients_on, kind_of
from layerhess.objective.model_call import call, listed
from layerhess.objective.model_loss import ModelLoss


class batch_loss(Described):
    """Wrap ``fn(model, batch) -> (loss_sum, count)`` as the loss of an :class:`layerhess.Objective`.

    Args:
        fn: returns the *sum* of the losses in the batch (one-element tensor with graph) and their count, a number
            >= 0. The loss of the data set is the sum of the sums over the sum of the counts.
        output: separates network and loss, which Gauss-Newton needs: ``output(model, batch)`` returns the model's
            output, one tensor, and ``fn`` is then called as ``fn(output, batch)``.

    >>> import torch, layerhess as lh
    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> def squared(model, batch):
    ...     x, y = batch
    ...     return ((model(x) - y) ** 2).sum(), y.numel()
    >>> data = (torch.eye(2).double(), torch.ones(2, 1).double())
    >>> lh.Hessian(lh.Objective(model, data, lh.batch_loss(squared))).to_dense()
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """

    is_sum = False
    count_is_exact = True

    def __init__(self, fn: Callable[[Any, Any], Any], output: Callable[[nn.Module, Any], Any] | None = None) -> None:
        if output is not None and not callable(output):
            raise InputError(
                f"batch_loss was given output={output!r}, which cannot be called",
                where="loss",
                what_to_do="pass a function output(model, batch) that returns the model's output tensor",
            )
        if not callable(fn):
            raise InputError(
                f"batch_loss was given {type(fn).__name__}, which cannot be called",
                where="loss",
                what_to_do="pass fn(model, batch) -> (loss_sum, count)",
            )
        self.fn = fn
        self.output = output
        self.name = f"batch_loss({getattr(fn, '__name__', type(fn).__name__)})"

    def _describe(self) -> Description:
        return Description(self.name, () if self.output is None else ("called with the model's output",))

    @gradients_on
    def __call__(self, model: nn.Module, batch: Any) -> Pair:
        """(loss_sum, count) of one batch."""
        return self.judge(model if self.output is None else self.output(model, batch), batch)

    def judge(self, subject: Any, batch: Any) -> Pair:
        """(loss_sum, count) of the function for the model, or for its output where ``output`` was given."""
        result = self.fn(subject, batch)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise InputError(
                f"the function of batch_loss returned {type(result).__name__}, not a pair",
                where="loss",
                what_to_do="return (loss_sum, count): the sum of the losses in the batch and how many there are",
            )
        total, count = result
        check_scalar(total)
        count = float(count)
        if not 0.0 <= count < float("inf"):
            raise InputError(
                f"the function of batch_loss returned the count {count}",
                where="loss",
                what_to_do="return how many losses were summed, a finite number >= 0",
            )
        return total.reshape(()), count

    @gradients_on
    def with_output(self, model: nn.Module, batch: Any) -> Judged:
        """The pair and the output that ``output=`` gives.

        Raises:
            InputError: without ``output=``; an output that is not a tensor.
        """
        if self.output is None:
            raise InputError(
                "Gauss-Newton needs to know the model's output, and this batch_loss goes from the model to the loss in "
                "one step",
                where=f"loss={self.name}",
                what_to_do="write lh.batch_loss(loss, output=forward), with forward(model, batch) -> output tensor and "
                "loss(output, batch) -> (loss_sum, count)",
            )
        output = checked_tensor(self.output(model, batch), "the function output= of batch_loss returned", "loss")
        return Judged(*self.judge(output, batch), output)

    @gradients_on
    def surveyed(self, model: nn.Module, batch: Any, where: str) -> Seen:
        """The pair; nothing can be checked beforehand, since only the function knows its batches."""
        if self.output is None:
            return Seen(*self(model, batch))
        output = self.output(model, batch)
        return Seen(*self.judge(output, batch), output, lambda z: self.judge(z, batch)[0])

    def to(self, dtype: torch.dtype, device: torch.device) -> batch_loss:
        """Itself: tensors that the function closes over are not touched."""
        return self

    def usable(self, device: torch.device) -> batch_loss:
        """Itself, for the same reason."""
        return self


class CriterionLoss:
    """A criterion on (output, target): ``model(*inputs)`` or ``model(**batch).logits`` against the target."""

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.is_sum = criterion.is_sum
        self.count_is_exact = criterion.known
        self.name = criterion.name
        self.readings: set[str] = set()  # how lists of inputs that forward takes either way reached it

    @gradients_on
    def __call__(self, model: nn.Module, batch: Any) -> Pair:
        """(loss_sum, count) of one batch."""
        return self.criterion(*self.output_and_target(model, batch))

    @gradients_on
    def with_output(self, model: nn.Module, batch: Any) -> Judged:
        """The pair and the output that the criterion gets."""
        output, target = self.output_and_target(model, batch)
        checked_tensor(output, "the model's output is to be one tensor here, and it is", "model")
        convex = self.criterion.is_convex(target)
        return Judged(*self.criterion(output, target), output, convex, lambda z: self.criterion(z, target)[0])

    def output_and_target(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """The model's output and the target it is compared with.

        Raises:
            InputError: if the batch is neither a pair (inputs, target) nor a mapping with "labels".
        """
        if batches.is_mapping(batch):
            if "labels" not in batch:
                raise InputError(
                    "a mapping batch has no 'labels' for the criterion",
                    where=f"keys {listed(batch)}",
                    what_to_do="name the target 'labels', make each batch (inputs, target) with a dict of inputs, or "
                    "use lh.batch_loss(fn) with fn(model, batch) -> (loss_sum, count)",
                )
            output = call(model, batch)
            return _flatten_classes(_beside(batch["labels"], _logits(output)), batch["labels"])
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise InputError(
                f"a batch is a {type(batch).__name__}{size}, not a pair (inputs, target)",
                where="data",
                what_to_do="make it (inputs, target), with a tuple of inputs for several, or use lh.batch_loss(fn)",
            )
        inputs, target = batch
        output = call(model, inputs, target, self.readings)
        return _beside(target, _logits(output)), target

    @gradients_on
    def surveyed(self, model: nn.Module, batch: Any, where: str) -> Seen:
        """The pair, after checks of shapes and class indices."""
        output, target = self.output_and_target(model, batch)
        self.criterion.validate(output, target, where)
        again = lambda z: self.criterion(z, target)[0]  # noqa: E731
        if not isinstance(output, Tensor):  # whatever a callable makes of it
            return Seen(*self.criterion(output, target))
        if not self.criterion.known:
            return Seen(*self.criterion(output, target), output, again, target)
        try:
            pair = self.criterion(output, target)
            return Seen(*pair, output, again, target, self.criterion.curved_directions(output, target))
        except InputError:
            raise
        except (ValueError, RuntimeError, IndexError) as error:  # torch's own criterion on shapes or dtypes it rejects
            if "memory" in str(error):
                raise
            raise InputError(
                f"{self.name} does not take an output {kind_of(output)} with a target {kind_of(target)}: "
                f"{(str(error) or type(error).__name__).splitlines()[0]}",
                where=where,
                what_to_do="give the target the shape and dtype that the criterion documents",
            ) from error

    def to(self, dtype: torch.dtype, device: torch.device) -> CriterionLoss:
        """The same with the criterion's tensors in ``dtype``."""
        return CriterionLoss(self.criterion.to(dtype, device))

    def usable(self, device: torch.device) -> CriterionLoss:
        """The same with the criterion's tensors where autograd can use them, on ``device``."""
        criterion = self.criterion.usable(device)
        return self if criterion is self.criterion else CriterionLoss(criterion)


def evaluation_of(loss: Any) -> Evaluation:
    """The evaluation for what the user gave as ``loss``."""
    if loss is None:
        return ModelLoss()
    if isinstance(loss, batch_loss):
        return loss
    return CriterionLoss(Criterion(loss))


def _logits(output: Any) -> Any:
    """What a criterion gets of the model's output: its "logits", if it has a part of that name."""
    if batches.is_mapping(output):
        return output["logits"] if "logits" in output.keys() else output  # noqa: SIM118
    return getattr(output, "logits", output)


def _beside(target: Any, output: Any) -> Any:
    """The output on the target's device: the last layers of a model may lie on another one."""
    apart = isinstance(output, Tensor) and isinstance(target, Tensor) and output.device != target.device
    return output.to(target.device) if apart else output


def _flatten_classes(logits: Any, labels: Any) -> tuple[Any, Any]:
    """Hugging Face logits (..., C) and labels (...), flattened to (N, C) and (N,) where torch needs that."""
    if (
        isinstance(logits, Tensor)
        and isinstance(labels, Tensor)
        and not labels.is_floating_point()
        and labels.ndim >= 2
        and logits.shape[:-1] == labels.shape
    ):
        return logits.flatten(0, -2), labels.flatten()
    return logits, labels
