"""A model's own ``.loss``, as Hugging Face's models return it, as a pair (sum, count)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerhess.errors import InputError
from layerhess.objective import batches
from layerhess.objective.criteria import Pair, check_scalar
from layerhess.objective.evaluation import Judged, Seen, checked_tensor, gradients_on
from layerhess.objective.model_call import accepted

HF_IGNORE_INDEX = -100


class ModelLoss:
    """The ``.loss`` of a Hugging Face model: a mean over the labels that are not ignored, whose number is the count."""

    is_sum = False
    count_is_exact = False
    name = "the model's own .loss"

    def __init__(self) -> None:
        self._shifted: bool | None = None

    @gradients_on
    def __call__(self, model: nn.Module, batch: Any) -> Pair:
        """(loss_sum, count) of one batch."""
        return self._pair(model, batch, self._loss(model(**accepted(model, batch)), model))

    @gradients_on
    def with_result(self, model: nn.Module, batch: Any) -> tuple[Tensor, float, Any]:
        """The pair and all that the same forward pass returned."""
        result = model(**accepted(model, batch))
        return *self._pair(model, batch, self._loss(result, model)), result

    @gradients_on
    def with_output(self, model: nn.Module, batch: Any) -> Judged:
        """The pair and the ``.logits`` of the same forward pass.

        Raises:
            InputError: the model returns no ``.logits``.
        """
        result = model(**accepted(model, batch))
        loss = self._loss(result, model)
        logits = _field(result, "logits")
        output = checked_tensor(
            logits, "Gauss-Newton needs the model's .logits beside its .loss, and they are", "model"
        )
        return Judged(*self._pair(model, batch, loss), output)

    @gradients_on
    def surveyed(self, model: nn.Module, batch: Any, where: str) -> Seen:
        """The pair, if the batch is a mapping and the model returns a scalar ``.loss``."""
        if not batches.is_mapping(batch):
            raise InputError(
                "no loss was given, and a batch is no mapping whose model output would carry a .loss",
                where=where,
                what_to_do="pass a criterion as the third argument of lh.Objective, for example "
                "torch.nn.CrossEntropyLoss()",
            )
        result = model(**accepted(model, batch))
        logits = _field(result, "logits")
        # Nearly all such losses are cross entropies, whose second derivative is that of the normalisation.
        loss = self._loss(result, model)
        curved = _curved_directions(logits, batch.get("labels"), loss)
        return Seen(*self._pair(model, batch, loss), logits, lambda z: z.logsumexp(dim=-1).sum(), curved=curved)

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
        named = accepted(model, batch)
        again = self._loss(model(**named), model).detach()
        without = self._loss(model(**{**named, "labels": ignored}), model).detach()
        if bool(again == self._loss(model(**named), model)):  # else the loss is random, and this decides nothing
            self._shifted = bool(again == without)
        return bool(again == without)


def _curved_directions(logits: Any, labels: Any, loss: Tensor) -> int | None:
    """See :class:`Seen`: known where the loss has the value of a cross entropy, of each label or of the next one."""
    if not (isinstance(logits, Tensor) and isinstance(labels, Tensor) and labels.dtype == torch.long):
        return None
    if labels.shape != logits.shape[:-1]:
        return None
    pairs = [(logits, labels)] + ([(logits[..., :-1, :], labels[..., 1:])] if labels.ndim >= 2 else [])
    for numbers, wanted in pairs:
        flat = numbers.detach().reshape(-1, numbers.shape[-1]).double()
        value = float(F.cross_entropy(flat, wanted.reshape(-1), ignore_index=HF_IGNORE_INDEX))
        if abs(value - float(loss.detach())) <= 1e-3 * abs(value):
            return int((wanted != HF_IGNORE_INDEX).sum()) * (numbers.shape[-1] - 1)
    return None


def _field(result: Any, name: str) -> Any:
    """A named part of what a Hugging Face model returned, None if it has none."""
    return result.get(name) if batches.is_mapping(result) else getattr(result, name, None)
