"""The losses of random networks: what the library is given, and the same written out by hand as (sum, count)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh

IGNORED = -100
Totals = Callable[[Tensor, Tensor], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Loss:
    """A loss on (output, target).

    Attributes:
        made: what the Objective gets, given dtype and number of classes. totals: (output, target) -> (sum, count) in
            plain torch. target: (generator, output shape) -> target. head: what follows the network's last stage.
        before_head: the totals from what goes into the head, where that loses no digits.
        count: of the whole data set, where that is not the sum of the batches' counts.
        separate: the library can tell network and loss apart. words: a refusal that says one of these is right where
            outputs saturate and the loss's own clamps are at work.
    """

    name: str
    made: Callable[[torch.dtype, int], Any]
    totals: Totals
    target: Callable[[torch.Generator, tuple[int, ...]], Tensor]
    head: Callable[[], nn.Module] = nn.Identity
    separate: bool = True
    before_head: Totals | None = None
    count: float | None = None
    words: tuple[str, ...] = ()


def class_weights(classes: int) -> Tensor:
    return torch.tensor([0.5, 2.0, 1.25, 0.75, 1.5, 1.0, 0.25][:classes], dtype=torch.float64)


def _classes(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)


def _some_ignored(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    target = _classes(generator, shape)
    gone = torch.rand(target.shape, generator=generator) < 0.3
    gone.reshape(-1)[0] = False
    return torch.where(gone, torch.full_like(target, IGNORED), target)


def _normal(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _binary(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).double()


def _between(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _signs(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return 2 * _binary(generator, shape) - 1


def _counts(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, 5, shape, generator=generator).double()


def _distribution(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).softmax(1)


def _picked(log_p: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    kept = target != IGNORED
    at = target.clamp_min(0)
    taken = log_p.gather(1, at.unsqueeze(1)).squeeze(1)
    w = torch.ones_like(taken) if weight is None else weight.to(taken.dtype)[at]
    w = torch.where(kept, w, torch.zeros_like(w))
    return -(torch.where(kept, taken, torch.zeros_like(taken)) * w).sum(), w.sum()


def _cross_entropy(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return _picked(z.log_softmax(1), y)


def _weighted(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return _picked(z.log_softmax(1), y, class_weights(z.shape[1]))


def _smoothed(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    hard, count = _picked(z.log_softmax(1), y)
    return 0.8 * hard - 0.2 * z.log_softmax(1).mean(1).sum(), count


def _soft(z: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return -(y * z.log_softmax(1)).sum(), z.numel() // z.shape[1]


def _nll(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return _picked(z, y)


def _squared(z: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return ((z - y) ** 2).sum(), z.numel()


def _absolute(z: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return (z - y).abs().sum(), z.numel()


def _huber(z: Tensor, y: Tensor, delta: float, over: float) -> tuple[Tensor, int]:
    e = (z - y).abs()
    return torch.where(e < delta, 0.5 * e * e, delta * (e - 0.5 * delta)).sum() / over, z.numel()


def _binary_logits(z: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return -(1.5 * y * F.logsigmoid(z) + (1 - y) * F.logsigmoid(-z)).sum(), z.numel()


def _binary_probabilities(p: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return -(torch.special.xlogy(y, p) + torch.special.xlog1py(1 - y, -p)).sum(), p.numel()


def _binary_before_sigmoid(z: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return -(y * F.logsigmoid(z) + (1 - y) * F.logsigmoid(-z)).sum(), z.numel()


def _binary_before_softmax(z: Tensor, y: Tensor) -> tuple[Tensor, int]:
    """log(1 - p_c) is the log of the sum over the other classes."""
    others = torch.eye(z.shape[1], dtype=torch.bool)
    spread = z.unsqueeze(1).expand(z.shape[0], z.shape[1], *z.shape[1:])
    hidden = others.reshape(1, *others.shape, *[1] * (z.dim() - 2))
    rest = spread.masked_fill(hidden, float("-inf")).logsumexp(2) - z.logsumexp(1, keepdim=True)
    return -(y * z.log_softmax(1) + (1 - y) * rest).sum(), z.numel()


def _poisson_log(z: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return (z.exp() - y * z).sum(), z.numel()


def _poisson(z: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return (z - y * (z + 1e-8).log()).sum(), z.numel()


def _divergence(z: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return (torch.special.xlogy(y, y) - y * z).sum(), z.shape[0]


def _soft_margin(z: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return -F.logsigmoid(y * z).sum(), z.numel()


def _gaussian(z: Tensor, y: Tensor) -> tuple[Tensor, int]:
    """The softplus of the other outputs are the variances. A callable's item is an entry of dimension 0."""
    variance = F.softplus(z.flip(1)) + 0.1
    return 0.5 * (variance.log() + (z - y) ** 2 / variance).flatten(1).mean(1).sum(), len(z)


def gaussian_mean(z: Tensor, y: Tensor) -> Tensor:
    return F.gaussian_nll_loss(z, y, F.softplus(z.flip(1)) + 0.1)


def _log_cosh(z: Tensor, y: Tensor) -> tuple[Tensor, int]:
    e = z - y
    return (e - F.logsigmoid(2 * e) - math.log(2)).flatten(1).mean(1).sum(), len(z)


def log_cosh_mean(z: Tensor, y: Tensor) -> Tensor:
    total, count = _log_cosh(z, y)
    return total / count


def _log_of_probability(p: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return -p.gather(1, y.unsqueeze(1)).log().flatten(1).mean(1).sum(), len(p)


def _log_of_softmax(z: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return -z.log_softmax(1).gather(1, y.unsqueeze(1)).flatten(1).mean(1).sum(), len(z)


def log_of_probability_mean(p: Tensor, y: Tensor) -> Tensor:
    return -p.gather(1, y.unsqueeze(1)).log().mean()


def _focal(z: Tensor, y: Tensor) -> tuple[Tensor, int]:
    log_p = z.log_softmax(1).gather(1, y.unsqueeze(1))
    return -((1 - log_p.exp()) ** 2 * log_p).sum(), len(y)


def _focal_of_model(model: nn.Module, batch: Any) -> tuple[Tensor, Any]:
    return _focal(model(batch[0]), batch[1])


def _squared_of_output(z: Tensor, batch: Any) -> tuple[Tensor, Any]:
    return _squared(z, batch[1])


def _forward(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0])


def _log_softmax() -> nn.Module:
    return nn.LogSoftmax(1)


def _softmax() -> nn.Module:
    return nn.Softmax(1)


CLAMPED = ("BCELoss", "BCEWithLogits", "saturat", "probabilit")


def _weighted_cross_entropy(dtype: torch.dtype, classes: int) -> nn.Module:
    return nn.CrossEntropyLoss(weight=class_weights(classes).to(dtype))


def _weighted_logits(dtype: torch.dtype, classes: int) -> nn.Module:
    return nn.BCEWithLogitsLoss(pos_weight=torch.tensor(1.5, dtype=dtype))


def given(make: Callable[..., Any], *args: Any, **options: Any) -> Callable[[torch.dtype, int], Any]:
    """A loss that depends neither on the dtype nor on the number of classes."""
    return lambda dtype, classes: make(*args, **options)


def callable_(function: Callable[..., Any]) -> Callable[[torch.dtype, int], Any]:
    return lambda dtype, classes: function


LOSSES: tuple[Loss, ...] = (
    Loss("cross entropy", given(nn.CrossEntropyLoss), _cross_entropy, _classes),
    Loss("cross entropy, ignoring", given(nn.CrossEntropyLoss), _cross_entropy, _some_ignored),
    Loss("cross entropy, weighted", _weighted_cross_entropy, _weighted, _some_ignored),
    Loss("cross entropy, smoothed", given(nn.CrossEntropyLoss, label_smoothing=0.2), _smoothed, _classes),
    Loss("cross entropy, distributions", given(nn.CrossEntropyLoss), _soft, _distribution),
    Loss("NLL", given(nn.NLLLoss), _nll, _some_ignored, _log_softmax),
    Loss("MSE", given(nn.MSELoss), _squared, _normal),
    Loss("MSE, sum", given(nn.MSELoss, reduction="sum"), _squared, _normal, count=1.0),
    Loss("L1", given(nn.L1Loss), _absolute, _normal),
    Loss("Huber", given(nn.HuberLoss, delta=0.7), lambda z, y: _huber(z, y, 0.7, 1.0), _normal),
    Loss("SmoothL1", given(nn.SmoothL1Loss, beta=0.5), lambda z, y: _huber(z, y, 0.5, 0.5), _normal),
    Loss("BCE with logits", _weighted_logits, _binary_logits, _binary),
    Loss("BCE behind Sigmoid", given(nn.BCELoss), _binary_probabilities, _between, nn.Sigmoid,
         before_head=_binary_before_sigmoid, words=CLAMPED),
    Loss("BCE behind Softmax", given(nn.BCELoss), _binary_probabilities, _binary, _softmax,
         before_head=_binary_before_softmax, words=CLAMPED),
    Loss("Poisson", given(nn.PoissonNLLLoss), _poisson_log, _counts),
    Loss("Poisson behind Softplus", given(nn.PoissonNLLLoss, log_input=False), _poisson, _counts, nn.Softplus),
    Loss("KL divergence", given(nn.KLDivLoss, reduction="batchmean"), _divergence, _distribution, _log_softmax),
    Loss("soft margin", given(nn.SoftMarginLoss), _soft_margin, _signs),
    Loss("Gaussian, a callable", callable_(gaussian_mean), _gaussian, _normal),
    Loss("log-cosh, a callable", callable_(log_cosh_mean), _log_cosh, _normal),
    Loss("-log p behind Softmax, a callable", callable_(log_of_probability_mean), _log_of_probability, _classes,
         _softmax, before_head=_log_of_softmax),
    Loss("focal, a batch_loss", given(lh.batch_loss, _focal_of_model), _focal, _classes, separate=False),
    Loss("MSE, a batch_loss with output", given(lh.batch_loss, _squared_of_output, output=_forward), _squared, _normal),
)  # fmt: skip
