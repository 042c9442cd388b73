"""Turns criteria on (output, target), such as cross entropy, into pairs (sum, count) that add up over batches."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from layerhess.errors import InputError
from layerhess.objective.containers import tensors

Pair = tuple[Tensor, float]

_ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.PoissonNLLLoss,
    nn.SoftMarginLoss,
    nn.HingeEmbeddingLoss,
    nn.KLDivLoss,
    nn.MultiLabelMarginLoss,
    nn.MultiLabelSoftMarginLoss,
    nn.MultiMarginLoss,
)
_CLASSES: tuple[type[nn.Module], ...] = (nn.CrossEntropyLoss, nn.NLLLoss)
_INDICES: tuple[type[nn.Module], ...] = (nn.MultiMarginLoss, nn.MultiLabelMarginLoss)
_SAME_SHAPE: tuple[type[nn.Module], ...] = (*_ELEMENTWISE[:9], nn.KLDivLoss)
_CONVEX = (nn.MSELoss, nn.SmoothL1Loss, nn.HuberLoss, nn.SoftMarginLoss)  # in the output, for any target
_SHARES = (nn.BCELoss, nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)  # for targets between 0 and 1
_FUNCTIONS: dict[Callable[..., Any], type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.soft_margin_loss: nn.SoftMarginLoss,
    F.kl_div: nn.KLDivLoss,
}


class Criterion:
    """One loss on (output, target), made to return (sum over items, number of items).

    The known criteria of ``torch.nn`` are summed and counted exactly: the denominator of the mean that torch itself
    would take (the sum of the class weights of unignored targets for a weighted cross entropy, the number of elements
    for MSE, the batch size for ``batchmean``). ``reduction="sum"`` has the denominator 1. Any other callable is taken
    as a mean over the first dimension; :mod:`layerhess.checks` tests that.

    Attributes:
        known: the count is exact by construction.
        is_sum: the denominator of the whole loss is 1.

    Raises:
        InputError: for ``reduction="none"``, and for something not callable.
    """

    def __init__(self, loss: Callable[..., Any]) -> None:
        module = _as_module(loss)
        self.loss = loss if module is None else module
        self.known = module is not None
        self.is_sum = False
        self._classes = isinstance(module, _CLASSES)
        if module is None:
            _refuse_other_signature(loss)
            return
        reduction = getattr(module, "reduction", "mean")
        if reduction == "none":
            raise InputError(
                f"{type(module).__name__} has reduction='none', so its result is no scalar",
                where="loss",
                what_to_do="use reduction='mean' or 'sum'",
            )
        self.is_sum = reduction == "sum"
        self._batch_mean = reduction == "batchmean"
        self._summed = copy.copy(module)
        self._summed.__dict__["reduction"] = "sum" if self._classes else "none"

    @property
    def name(self) -> str:
        """Short name for settings and messages."""
        return str(getattr(self.loss, "__name__", type(self.loss).__name__))

    def __call__(self, output: Tensor, target: Any) -> Pair:
        """Sum of losses (0-d tensor with graph) and count."""
        if not self.known:
            value = self.loss(output, target)
            check_scalar(value)
            sizes = [size for size in (_first_dimension(target), _first_dimension(output)) if size is not None]
            count = sizes[0] if sizes else 1
            if count == 0:  # the mean over no examples is NaN; such a batch adds nothing
                return torch.zeros_like(value).reshape(()), 0.0
            return value.reshape(()) * count, float(count)
        if isinstance(self.loss, _SAME_SHAPE) and isinstance(target, Tensor):
            refuse_enlarging_broadcast(output, target, type(self.loss).__name__)
        output, target = self._in_one_dtype(output, target)
        if self._classes:
            return self._summed(output, target), self._class_count(output, target)
        with warnings.catch_warnings():
            # torch warns of any broadcast; those that enlarge were refused above, the others are harmless.
            warnings.filterwarnings("ignore", message="Using a target size")
            losses = self._summed(output, target)
        count = output.shape[0] if self._batch_mean else losses.numel()
        return losses.sum(), float(count)

    @property
    def has_classes(self) -> bool:
        """True for a cross entropy or NLL, whose losses are terms of single targets."""
        return self._classes

    def is_convex(self, target: Any) -> bool:
        """Whether the sum is known to be convex in the output, so that its second derivative is semidefinite there."""
        if type(self.loss) is not nn.CrossEntropyLoss or not isinstance(target, Tensor) or target.is_floating_point():
            return False
        weight = self.loss.weight
        return weight is None or bool((weight >= 0.0).all())

    def curved_directions(self, output: Tensor, target: Any) -> int | None:
        """At most how many directions of the output the sum curves, where it is convex in it; else None.

        Read off the formulas: a cross entropy does not change along (1, ..., 1), so each item has one direction less
        than classes; all others are taken to curve every number of the output.
        """
        kind = type(self.loss)
        weights = (getattr(self.loss, "weight", None), getattr(self.loss, "pos_weight", None))
        if not isinstance(target, Tensor) or any(w is not None and not bool((w >= 0.0).all()) for w in weights):
            return None
        if kind is nn.CrossEntropyLoss:
            others = output.shape[1 if output.ndim > 1 else 0] - 1
            if not target.is_floating_point():
                return others * int((target != self.loss.ignore_index).sum())  # type: ignore[attr-defined]
            return output.numel() // (others + 1) * others if bool((target >= 0.0).all()) else None
        share = kind in _SHARES and bool(((target >= 0.0) & (target <= 1.0)).all())
        counts = kind is nn.PoissonNLLLoss and (self.loss.log_input or bool((target >= 0.0).all()))  # type: ignore[attr-defined]
        return output.numel() if kind in _CONVEX or share or counts else None

    def losses(self, output: Tensor, target: Any) -> Tensor | None:
        """The summands of the loss sum, unreduced, with the criterion's own weights; None for an unknown callable."""
        if not self.known:
            return None
        unreduced = copy.copy(self._summed)
        unreduced.__dict__["reduction"] = "none"
        output, target = self._in_one_dtype(output, target)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using a target size")
            return unreduced(output, target)  # type: ignore[no-any-return]

    def validate(self, output: Any, target: Any, where: str) -> None:
        """Check one batch's shapes and class indices before any work; reads values, so called once per batch.

        Raises:
            InputError: class index out of range, or a broadcast hidden in an unknown callable.
        """
        if not isinstance(output, Tensor) and (self.known or not tensors(output)):
            raise InputError(
                f"the model returned {type(output).__name__}, and a criterion needs a tensor",
                where=where,
                what_to_do="use lh.batch_loss(fn) with fn(model, batch) -> (loss_sum, count)",
            )
        if self.known and not isinstance(target, Tensor):
            raise InputError(
                f"the target is {type(target).__name__}, and {self.name} needs a tensor",
                where=where,
                what_to_do="make each batch (inputs, target), or use lh.batch_loss(fn)",
            )
        if self._classes and target.is_floating_point() and target.shape != output.shape:
            kind = str(target.dtype).removeprefix("torch.")
            raise InputError(
                f"the targets are {kind} numbers of shape {tuple(target.shape)}, and {self.name} needs class indices, "
                f"or probabilities of the output's shape {tuple(output.shape)}",
                where=where,
                what_to_do="convert class indices with target.long()",
            )
        if self._classes and not target.is_floating_point():
            classes = output.shape[1 if output.ndim > 1 else 0]
            kept = target[target != self.loss.ignore_index]  # type: ignore[attr-defined]
            if kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= classes):
                wrong = int(kept.min()) if int(kept.min()) < 0 else int(kept.max())
                raise InputError(
                    f"class index {wrong} is out of range for an output of {classes} classes",
                    where=where,
                    what_to_do=f"use targets from 0 to {classes - 1}, or ignore_index for those to leave out",
                )
        if not self.known and isinstance(output, Tensor) and isinstance(target, Tensor):
            self._refuse_hidden_broadcast(output, target, where)

    def to(self, dtype: torch.dtype | None, device: torch.device) -> Criterion:
        """The same criterion with its own tensors (class weights) in ``dtype`` (as it is when None) on ``device``."""
        if not isinstance(self.loss, nn.Module):
            return self
        with torch.inference_mode(False):  # autograd can use copies of tensors made in inference mode
            return Criterion(copy.deepcopy(self.loss).to(device=device, dtype=dtype))

    def usable(self, device: torch.device) -> Criterion:
        """Itself, or a copy on ``device`` where its tensors are elsewhere or were made in ``inference_mode``."""
        if not isinstance(self.loss, nn.Module):
            return self
        own = [*self.loss.parameters(), *self.loss.buffers()]
        return self.to(None, device) if any(t.is_inference() or t.device != device for t in own) else self

    def _in_one_dtype(self, output: Tensor, target: Any) -> tuple[Tensor, Any]:
        """Both as the criterion can differentiate them: class indices as int64, numbers in the wider of the dtypes."""
        if not isinstance(target, Tensor) or target.dtype == output.dtype or target.is_complex():
            return output, target
        if not target.is_floating_point() and isinstance(self.loss, (*_CLASSES, *_INDICES)):
            return output, target.long()
        if self._classes or (isinstance(self.loss, nn.Module) and list(self.loss.buffers())):  # in the output's dtype
            return output, target.to(output.dtype)
        wider = torch.promote_types(output.dtype, target.dtype)
        return output.to(wider), target.to(wider)

    def _class_count(self, output: Tensor, target: Tensor) -> float:
        if target.is_floating_point():  # class probabilities: torch divides by the number of distributions
            return float(output.numel() // output.shape[1 if output.ndim > 1 else 0])
        kept = target != self.loss.ignore_index  # type: ignore[attr-defined]
        weight = getattr(self.loss, "weight", None)
        if weight is None:
            return float(kept.sum())
        return float(weight.detach().double()[target[kept]].sum())

    def _refuse_hidden_broadcast(self, output: Tensor, target: Tensor, where: str) -> None:
        # Found out by an experiment. A callable that broadcasts the two against each other pairs each output with all
        # targets along a dimension: then neither its value nor its gradient depends on an order there, and the value
        # would change if the target had the output's shape.
        if target.shape == output.shape or target.numel() != output.numel() or not _broadcast_enlarges(output, target):
            return
        reordered = target.roll(1, _paired_with_all(output, target))
        try:
            value, gradient = self._value_and_gradient(output, target)
            other, turned = self._value_and_gradient(output, reordered)
            reshaped, _ = self._value_and_gradient(output, target.reshape(output.shape))
        except Exception:  # it does not accept such shapes, so it does not broadcast them either
            return
        blind = abs(value - other) <= 1e-5 * abs(value) and torch.allclose(gradient, turned, rtol=1e-4, atol=1e-8)
        if blind and abs(value - reshaped) > 1e-4 * (abs(value) + abs(reshaped)):
            _refuse_broadcast(output, target, self.name, where)

    def _value_and_gradient(self, output: Tensor, target: Tensor) -> tuple[float, Tensor]:
        # A caller that wants no gradients may have seen to it that nothing is saved for them.
        with torch.enable_grad(), saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
            leaf = output.detach().requires_grad_()
            value = self.loss(leaf, target)
            (gradient,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), gradient


def check_scalar(value: Any) -> None:
    """Refuse a loss that is not a one-element tensor.

    Raises:
        InputError: naming what was returned instead.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"the loss is {what}, not a scalar",
            where="loss",
            what_to_do="return the mean over the batch, or use lh.batch_loss(fn) with (loss_sum, count)",
        )


def refuse_enlarging_broadcast(output: Tensor, target: Tensor, name: str) -> None:
    """Refuse shapes such as (N, 1) against (N,), whose N x N broadcast is almost never meant.

    Raises:
        InputError: if the broadcast is larger than both.
    """
    if output.shape != target.shape and _broadcast_enlarges(output, target):
        _refuse_broadcast(output, target, name, "loss")


def _broadcast_enlarges(output: Tensor, target: Tensor) -> bool:
    try:
        shape = np.broadcast_shapes(tuple(output.shape), tuple(target.shape))
    except ValueError:
        return False
    return math.prod(shape) > max(output.numel(), target.numel())


def _paired_with_all(output: Tensor, target: Tensor) -> int:
    """The first dimension of the target (counted from the end) along which the output has one entry."""
    for i in range(1, target.ndim + 1):
        if target.shape[-i] > 1 and (i > output.ndim or output.shape[-i] == 1):
            return -i
    return -1


def _refuse_other_signature(loss: Callable[..., Any]) -> None:
    called = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # no signature: calling it will tell
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise InputError(
            f"the loss {getattr(loss, '__name__', type(loss).__name__)} cannot be called with an output and a target "
            f"({error})",
            where="loss",
            what_to_do="use lh.batch_loss(fn) with fn(model, batch) -> (loss_sum, count), and call it there",
        ) from None


def _refuse_broadcast(output: Tensor, target: Tensor, name: str, where: str) -> None:
    result = np.broadcast_shapes(tuple(output.shape), tuple(target.shape))
    raise InputError(
        f"{name} broadcasts the output {tuple(output.shape)} against the target {tuple(target.shape)} to {result}, "
        "larger than both",
        where=where,
        what_to_do="give both the same shape, for example target.unsqueeze(-1) or output.squeeze(-1)",
    )


def _first_dimension(value: Any) -> int | None:
    return int(value.shape[0]) if isinstance(value, Tensor) and value.ndim else None


def _as_module(loss: Any) -> nn.Module | None:
    """The torch.nn criterion that ``loss`` is or stands for, or None for an unknown callable."""
    if not callable(loss):
        raise InputError(
            f"the loss is {type(loss).__name__}, which cannot be called",
            where="loss",
            what_to_do="pass a criterion such as torch.nn.CrossEntropyLoss(), a callable, or lh.batch_loss(fn)",
        )
    if isinstance(loss, type):
        raise InputError(
            f"the loss is the class {loss.__name__}, not an instance",
            where="loss",
            what_to_do=f"write {loss.__name__}() with parentheses",
        )
    if type(loss) in (*_ELEMENTWISE, *_CLASSES):
        return loss  # type: ignore[no-any-return]
    function, options = loss, {}
    if isinstance(loss, functools.partial) and not loss.args:
        function, options = loss.func, loss.keywords
    made = _FUNCTIONS.get(function) if inspect.isfunction(function) or inspect.isbuiltin(function) else None
    if made is None:
        return None
    try:
        return made(**options)
    except TypeError:  # an option that the module does not have: treat it as an unknown callable
        return None
