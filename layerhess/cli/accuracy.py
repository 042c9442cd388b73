"""The share of right answers of a classifier, as a metric."""

from __future__ import annotations

from torch import Tensor

from layerhess.errors import InputError

IGNORED = -100  # the class index that torch's losses leave out


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """For each answer 1.0 where it is right, else 0.0.

    Args:
        output: (n, C, ...) logits or probabilities with class indices (n, ...) as target, or with the targets'
            probabilities (n, C, ...), whose largest is meant. Or logits of any shape with targets of 0 and 1 of the
            same shape and C = 1, or a single dimension.

    Raises:
        InputError: shapes that are none of these.

    >>> import torch
    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), torch.tensor([0, 1, 1])).tolist()
    [1.0, 1.0, 0.0]
    >>> accuracy(torch.tensor([0.3, -0.2]), torch.tensor([1.0, 1.0])).tolist()
    [1.0, 0.0]
    """
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)):
        raise _refusal(f"{type(output).__name__} and {type(target).__name__}")
    if output.shape == target.shape and (output.ndim < 2 or output.shape[1] == 1):
        return ((output > 0.0) == (target > 0.5)).double().flatten()
    if output.ndim < 2:
        raise _refusal(f"{tuple(output.shape)} and {tuple(target.shape)}")
    said = output.argmax(dim=1)
    meant = target.argmax(dim=1) if output.shape == target.shape and target.is_floating_point() else target
    if said.shape != meant.shape or meant.is_floating_point():
        raise _refusal(f"{tuple(output.shape)} and {tuple(target.shape)}")
    counted = meant != IGNORED
    return (said == meant)[counted].double()


def _refusal(what: str) -> InputError:
    return InputError(
        f"the accuracy of an output and a target of {what} is not known",
        where="--metric accuracy",
        what_to_do="give a function of your own: --metric mine.py:function",
    )
