"""Computes one loss for every item of a batch; the empirical Fisher is made of their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from layerhess.errors import InputError
from layerhess.objective import batches
from layerhess.objective.evaluation import Evaluation, gradients_on
from layerhess.objective.losses import CriterionLoss, batch_loss

LEVELS = ("item", "token")


@gradients_on
def item_losses(evaluation: Evaluation, model: nn.Module, batch: Any, level: str) -> tuple[Tensor, float]:
    """The losses of a batch's items, which add up to its loss sum, and its count.

    A criterion of ``torch.nn`` gives them all from one forward pass; another callable on (output, target), and a
    ``batch_loss`` with ``output=``, is called once an item on slices of one output. A model's own ``.loss`` and a plain
    ``batch_loss`` run the whole model once an item, which is slower.

    Args:
        evaluation: of the objective. batch: prepared. level: "item" (dimension 0 of the batch), or "token": every
            counted term of a cross entropy or NLL is an item of its own.

    Returns:
        ((m,) losses with graph, count of the whole batch).

    Raises:
        InputError: a batch that cannot be cut into items; the token level of another loss.
    """
    if level == "token":
        refuse_without_tokens(evaluation)
    if isinstance(evaluation, CriterionLoss):
        output, target = evaluation.output_and_target(model, batch)
        count = evaluation.criterion(output, target)[1]
        losses = evaluation.criterion.losses(output, target)
        if losses is None:
            return _sliced((output, target), lambda part: evaluation.criterion(*part)[0]), count
        if level == "token":
            return losses.reshape(-1), count
        items = _items(batch, losses)  # Hugging Face labels (N, T) were flattened: a sequence is one item
        return losses.reshape(items, losses.numel() // max(items, 1)).sum(1), count
    if isinstance(evaluation, batch_loss) and evaluation.output is not None:
        output = evaluation.output(model, batch)
        count = evaluation.judge(output, batch)[1]
        return _sliced((output, batch), lambda part: evaluation.judge(*part)[0]), count
    with torch.no_grad():
        count = evaluation(model, batch)[1]
    return _sliced(batch, lambda part: evaluation(model, part)[0]), count


def refuse_without_tokens(evaluation: Evaluation) -> None:
    """Refuse the token level of a loss that has no tokens.

    Raises:
        InputError: the loss is neither a cross entropy nor NLL.
    """
    if not isinstance(evaluation, CriterionLoss) or not evaluation.criterion.has_classes:
        raise InputError(
            f"the token level takes each counted term of a cross entropy or NLL as an item, and the loss is "
            f"{evaluation.name}",
            where="empirical_fisher:token",
            what_to_do="use the item level ('empirical_fisher'), or torch.nn.CrossEntropyLoss() as the criterion",
        )


def _items(batch: Any, losses: Tensor) -> int:
    if losses.ndim == 0:
        return 1
    if batches.is_mapping(batch) and isinstance(batch.get("labels"), Tensor):
        return int(batch["labels"].shape[0])
    return int(losses.shape[0])


def _sliced(whole: Any, loss: Callable[[Any], Tensor]) -> Tensor:
    """(m,) the loss of each slice of ``whole`` along dimension 0."""
    size = batches.leading_size(whole)
    if size is None:
        raise InputError(
            "the empirical Fisher needs one gradient for each item, and the items of a batch cannot be told apart: "
            f"{batches.uncut(whole)}",
            where="data",
            what_to_do="put the items along dimension 0 of every tensor, or use another operator",
        )
    if size == 0:
        return torch.zeros(0)
    return torch.stack([loss(batches.take(whole, slice(i, i + 1))) for i in range(size)])
