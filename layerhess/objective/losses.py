"""Computes a batch's loss as a pair (sum, count): one interface for criteria, callables and a model's own loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from layerhess.errors import InputError
from layerhess.objective import batches
from layerhess.objective.criteria import Criterion, Pair, check_scalar

HF_IGNORE_INDEX = -100


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


@dataclass(frozen=True)
class Seen:
    """The pair of a batch; its output and a (perhaps approximate) loss sum as a function of it, where known."""

    loss: Tensor
    count: float
    output: Tensor | None = None
    again: Callable[[Tensor], Tensor] | None = None


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

    def whole_and_parts(self, model: nn.Module, batch: Any, *, tied: bool) -> list[Pair] | None:
        """The pairs of a batch and of its two parts, to test whether they add up.

        None if it cannot be split, or if parts give other outputs because examples depend on each other in the model.
        """

    def to(self, dtype: torch.dtype, device: torch.device) -> Evaluation:
        """The same evaluation with its own tensors in ``dtype``."""

    def usable(self, device: torch.device) -> Evaluation:
        """The same evaluation with its own tensors where autograd can use them, on ``device``."""


class batch_loss:
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
        output = _tensor(self.output(model, batch), "the function output= of batch_loss returned", "loss")
        return Judged(*self.judge(output, batch), output)

    def surveyed(self, model: nn.Module, batch: Any, where: str) -> Seen:
        """The pair; nothing can be checked beforehand, since only the function knows its batches."""
        if self.output is None:
            return Seen(*self(model, batch))
        output = self.output(model, batch)
        return Seen(*self.judge(output, batch), output, lambda z: self.judge(z, batch)[0])

    def whole_and_parts(self, model: nn.Module, batch: Any, *, tied: bool) -> list[Pair] | None:
        """None: the function itself defines how batches add up."""
        return None

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

    def __call__(self, model: nn.Module, batch: Any) -> Pair:
        """(loss_sum, count) of one batch."""
        return self.criterion(*self.output_and_target(model, batch))

    def with_output(self, model: nn.Module, batch: Any) -> Judged:
        """The pair and the output that the criterion gets."""
        output, target = self.output_and_target(model, batch)
        convex = self.criterion.is_convex(target)
        return Judged(*self.criterion(output, target), output, convex, lambda z: self.criterion(z, target)[0])

    def output_and_target(self, model: nn.Module, batch: Any) -> tuple[Tensor, Any]:
        """The model's output and the target it is compared with.

        Raises:
            InputError: if the batch is neither a pair (inputs, target) nor a mapping with "labels".
        """
        if batches.is_mapping(batch):
            if "labels" not in batch:
                raise InputError(
                    "a mapping batch has no 'labels' for the criterion",
                    where=f"keys {sorted(map(str, batch))}",
                    what_to_do="add 'labels', or use lh.batch_loss(fn) with fn(model, batch) -> (loss_sum, count)",
                )
            output = model(**_accepted(model, batch))
            return _flatten_classes(getattr(output, "logits", output), batch["labels"])
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise InputError(
                f"a batch is a {type(batch).__name__}{size}, not a pair (inputs, target)",
                where="data",
                what_to_do="make it (inputs, target), with a tuple of inputs for several, or use lh.batch_loss(fn)",
            )
        inputs, target = batch
        output = model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)
        return getattr(output, "logits", output), target

    def surveyed(self, model: nn.Module, batch: Any, where: str) -> Seen:
        """The pair, after checks of shapes and class indices."""
        output, target = self.output_and_target(model, batch)
        self.criterion.validate(output, target, where)
        again = lambda z: self.criterion(z, target)[0]  # noqa: E731
        if not self.criterion.known:
            return Seen(*self.criterion(output, target), output, again)
        try:
            return Seen(*self.criterion(output, target), output, again)
        except InputError:
            raise
        except (ValueError, RuntimeError, IndexError) as error:  # torch's own criterion on shapes or dtypes it rejects
            if "memory" in str(error):
                raise
            raise InputError(
                f"{self.name} does not take an output {_kind(output)} with a target {_kind(target)}: "
                f"{(str(error) or type(error).__name__).splitlines()[0]}",
                where=where,
                what_to_do="give the target the shape and dtype that the criterion documents",
            ) from error

    def whole_and_parts(self, model: nn.Module, batch: Any, *, tied: bool) -> list[Pair] | None:
        """The pairs of one output (or else of the batch) and of its two parts: is the criterion a mean?"""
        whole = self.output_and_target(model, batch)
        if (parts := batches.halves(whole)) is not None:
            return [self.criterion(*whole), *(self.criterion(*part) for part in parts)]
        return None if tied or (split := batches.halves(batch)) is None else [self(model, b) for b in (batch, *split)]

    def to(self, dtype: torch.dtype, device: torch.device) -> CriterionLoss:
        """The same with the criterion's tensors in ``dtype``."""
        return CriterionLoss(self.criterion.to(dtype, device))

    def usable(self, device: torch.device) -> CriterionLoss:
        """The same with the criterion's tensors where autograd can use them, on ``device``."""
        criterion = self.criterion.usable(device)
        return self if criterion is self.criterion else CriterionLoss(criterion)


class ModelLoss:
    """The ``.loss`` of a Hugging Face model: a mean over the labels that are not ignored, whose number is the count."""

    is_sum = False
    count_is_exact = False
    name = "the model's own .loss"

    def __init__(self) -> None:
        self._shifted: bool | None = None

    def __call__(self, model: nn.Module, batch: Any) -> Pair:
        """(loss_sum, count) of one batch."""
        return self._pair(model, batch, self._loss(model(**batch), model))

    def with_output(self, model: nn.Module, batch: Any) -> Judged:
        """The pair and the ``.logits`` of the same forward pass.

        Raises:
            InputError: the model returns no ``.logits``.
        """
        result = model(**batch)
        loss = self._loss(result, model)
        logits = _field(result, "logits")
        output = _tensor(logits, "Gauss-Newton needs the model's .logits beside its .loss, and they are", "model")
        return Judged(*self._pair(model, batch, loss), output)

    def surveyed(self, model: nn.Module, batch: Any, where: str) -> Seen:
        """The pair, if the batch is a mapping and the model returns a scalar ``.loss``."""
        if not batches.is_mapping(batch):
            raise InputError(
                "no loss was given, and a batch is no mapping whose model output would carry a .loss",
                where=where,
                what_to_do="pass a criterion as the third argument of lh.Objective, for example "
                "torch.nn.CrossEntropyLoss()",
            )
        result = model(**batch)
        logits = _field(result, "logits")
        # Nearly all such losses are cross entropies, whose second derivative is that of the normalisation.
        return Seen(*self._pair(model, batch, self._loss(result, model)), logits, lambda z: z.logsumexp(dim=-1).sum())

    def whole_and_parts(self, model: nn.Module, batch: Any, *, tied: bool) -> list[Pair] | None:
        """The pairs of the batch and of its two parts."""
        return None if tied or (split := batches.halves(batch)) is None else [self(model, b) for b in (batch, *split)]

    def to(self, dtype: torch.dtype, device: torch.device) -> ModelLoss:
        """Itself: it has no tensors."""
        return self

    def usable(self, device: torch.device) -> ModelLoss:
        """Itself, for the same reason."""
        return self

    def _pair(self, model: nn.Module, batch: Any, loss: Tensor) -> Pair:
        count = self._count(model, batch, loss)
        if count == 0.0:  # the mean over no labels is NaN; such a batch adds nothing
            return torch.zeros_like(loss), 0.0
        return loss * count, count

    def _loss(self, output: Any, model: nn.Module) -> Tensor:
        loss = _field(output, "loss")
        if loss is None:
            raise InputError(
                "the model returned no .loss",
                where=type(model).__name__,
                what_to_do="put 'labels' into the batch, or pass a criterion as the third argument of lh.Objective",
            )
        check_scalar(loss)
        return loss.reshape(())  # type: ignore[no-any-return]

    def _count(self, model: nn.Module, batch: Any, loss: Tensor) -> float:
        labels = batch.get("labels")
        if not isinstance(labels, Tensor):
            return float(batches.leading_size(batch) or 1)
        if labels.is_floating_point():
            return float(labels.numel())
        taking_part = labels != HF_IGNORE_INDEX
        if labels.ndim >= 2 and bool(taking_part[..., 0].any()) and self._shifts(model, batch, labels, loss):
            taking_part = taking_part[..., 1:]
        return float(taking_part.sum())

    def _shifts(self, model: nn.Module, batch: Any, labels: Tensor, loss: Tensor) -> bool:
        # A causal language model never uses the first label of a sequence: ignoring it changes nothing. An experiment
        # is safer than a list of class names; it is made once, on the first batch that can decide it.
        if self._shifted is not None:
            return self._shifted
        ignored = labels.clone()
        ignored[..., 0] = HF_IGNORE_INDEX
        if bool((ignored == HF_IGNORE_INDEX).all()):  # nothing is left: the mean would be NaN
            return not bool(torch.isfinite(loss))
        with torch.no_grad():
            again = self._loss(model(**batch), model)
            without = self._loss(model(**{**batch, "labels": ignored}), model)
            if bool(again == self._loss(model(**batch), model)):  # else the loss is random, and this decides nothing
                self._shifted = bool(again == without)
        return bool(again == without)


def evaluation_of(loss: Any) -> Evaluation:
    """The evaluation for what the user gave as ``loss``."""
    if loss is None:
        return ModelLoss()
    if isinstance(loss, batch_loss):
        return loss
    return CriterionLoss(Criterion(loss))


def _accepted(model: nn.Module, batch: Any) -> dict[str, Any]:
    """The batch as keyword arguments, without "labels" if the model's forward does not know them."""
    parameters = inspect.signature(model.forward).parameters.values()
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters}
    return {key: batch[key] for key in batch if key != "labels" or open_ended or key in names}


def _field(result: Any, name: str) -> Any:
    """A named part of what a Hugging Face model returned, None if it has none."""
    return result.get(name) if batches.is_mapping(result) else getattr(result, name, None)


def _tensor(value: Any, what: str, where: str) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = _kind(value) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{what} {kind}", where=where, what_to_do="give one tensor of real numbers as the output")
    return value


def _kind(value: Any) -> str:
    """Shape and dtype of a tensor, in words."""
    return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}" if isinstance(value, Tensor) else "?"


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
