"""The zoo's losses written out by hand, as (sum, count) of one batch: nothing is shared with the library's criteria."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Call = Callable[..., Any]
Totals = Callable[[Call, Any], tuple[Tensor, Tensor | float]]
IGNORED = -100


def cross_entropy_totals(call: Call, batch: Any) -> tuple[Tensor, Tensor]:
    """Cross entropy of logits (N, C) or (N, C, T) over the targets that are not ignored."""
    inputs, target = batch
    return _token_totals(call(inputs), target)


def weighted_smoothed_totals(call: Call, batch: Any) -> tuple[Tensor, Tensor]:
    """Class weights and label smoothing: the smoothing spreads over all classes with *their* weights."""
    x, target = batch
    weights, smoothing = class_weights(x.dtype), 0.2
    minus_log = -torch.log_softmax(call(x), dim=1)
    kept = target != IGNORED
    minus_log, target = minus_log[kept], target[kept]
    hard = weights[target] * minus_log[torch.arange(len(target)), target]
    soft = (minus_log * weights).sum(1) / len(weights)
    return ((1 - smoothing) * hard + smoothing * soft).sum(), weights[target].sum()


def nll_totals(call: Call, batch: Any) -> tuple[Tensor, Tensor]:
    """Negative log likelihood of log probabilities with class weights."""
    x, target = batch
    weights = class_weights(x.dtype)
    picked = call(x)[torch.arange(len(target)), target]
    return -(weights[target] * picked).sum(), weights[target].sum()


def squared_totals(call: Call, batch: Any) -> tuple[Tensor, int]:
    """Squared error: the denominator counts entries, not examples."""
    inputs, target = batch
    output = call(*inputs) if isinstance(inputs, tuple) else call(inputs)
    return (output - target).pow(2).sum(), target.numel()


def binary_logit_totals(call: Call, batch: Any) -> tuple[Tensor, int]:
    """Binary cross entropy of logits, each positive weighted by 1.5."""
    x, target = batch
    z = call(x)
    return (1.5 * target * F.softplus(-z) + (1 - target) * F.softplus(z)).sum(), target.numel()


def binary_totals(call: Call, batch: Any) -> tuple[Tensor, int]:
    """Binary cross entropy of probabilities."""
    x, target = batch
    p = call(x)
    return -(target * p.log() + (1 - target) * (1 - p).log()).sum(), target.numel()


def poisson_totals(call: Call, batch: Any) -> tuple[Tensor, int]:
    """Poisson negative log likelihood of log rates, without the constant."""
    x, target = batch
    rate = call(x)
    return (rate.exp() - target * rate).sum(), target.numel()


def next_token_totals(call: Call, batch: Any) -> tuple[Tensor, Tensor]:
    """Causal language model: the logits at a place predict the label of the next place."""
    logits = call(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return _token_totals(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:])


def masked_token_totals(call: Call, batch: Any) -> tuple[Tensor, Tensor]:
    """Masked language model: a label, where there is one, belongs to its own place."""
    logits = call(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return _token_totals(logits.transpose(1, 2), batch["labels"])


def sentence_totals(call: Call, batch: Any) -> tuple[Tensor, Tensor]:
    """One class per sentence."""
    logits = call(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return _token_totals(logits, batch["labels"])


def weighted_examples_totals(call: Call, batch: Any) -> tuple[Tensor, Tensor]:
    """A loss no criterion knows: a log-cosh error of each example with a weight of its own."""
    error = (call(batch["x"]) - batch["y"]).squeeze(1)
    return (batch["weight"] * torch.log(torch.cosh(error))).sum(), batch["weight"].sum()


def _token_totals(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    kept = target != IGNORED
    minus_log = -torch.log_softmax(logits, dim=1)
    picked = minus_log.gather(1, target.clamp_min(0).unsqueeze(1)).squeeze(1)
    return torch.where(kept, picked, torch.zeros_like(picked)).sum(), kept.sum()


def class_weights(dtype: torch.dtype) -> Tensor:
    """Of four classes, for the losses that weigh them."""
    return torch.tensor([0.5, 2.0, 1.25, 0.75], dtype=torch.float64).to(dtype)
