"""The model zoo: one table of named small models with losses and data, for every engine, operator and estimator.

``CASES`` holds the table; ``Case.build(dtype, seed)`` makes a fresh ``(model, data, loss, kwargs)`` ready for
``Objective(model, data, loss, **kwargs)``. Batches are unequal wherever there is more than one, so that a mean of batch
means is wrong in every case. ``Case.totals`` writes the loss of one batch out by hand, as a sum and a count, for the
references: it shares nothing with the library's own criteria.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
import zoo_models as nets
from zoo_losses import (
    IGNORED,
    Totals,
    binary_logit_totals,
    binary_totals,
    class_weights,
    cross_entropy_totals,
    masked_token_totals,
    next_token_totals,
    nll_totals,
    poisson_totals,
    sentence_totals,
    squared_totals,
    weighted_examples_totals,
    weighted_smoothed_totals,
)


class Built(NamedTuple):
    """What ``Objective`` needs: ``Objective(model, data, loss, **kwargs)``."""

    model: nn.Module
    data: Any
    loss: Any
    kwargs: dict[str, Any]

    def objective(self) -> lh.Objective:
        """The same as an ``Objective``; without a loss where the model's own is to be used."""
        arguments = (self.model, self.data) if self.loss is None else (self.model, self.data, self.loss)
        return lh.Objective(*arguments, **self.kwargs)


@dataclass(frozen=True)
class Case:
    """One row.

    ``tolerance``: how far products may be from the reference, relative. ``inherent``: what the loss itself leaves out,
    relative to the Hessian's norm: a ``transformers`` loss is computed in float32, and torch's second derivative of
    ``BCELoss`` divides by p (1 - p) + 1e-12. ``zero``: parameters whose diagonal block is exactly zero. ``unused``:
    those no output depends on. ``smooth``: no kinks.
    """

    name: str
    build: Callable[[torch.dtype, int], Built]
    totals: Totals
    tolerance: float = 1e-10
    inherent: float = 0.0
    zero: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    smooth: bool = True
    tags: frozenset[str] = field(default_factory=frozenset)

    def __repr__(self) -> str:
        return self.name


def batches_of(data: Any) -> list[Any]:
    """The batches of ``data`` as a list: a tuple or a mapping is one batch."""
    return list(data) if isinstance(data, list) else [data]


# --- data -----------------------------------------------------------------------------------------------------------


class _Source:
    """Seeded data whose float32 and float64 versions are the same numbers (up to the cast)."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(7919 + seed)

    def real(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def classes(self, count: int, *shape: int, low: int = 0) -> Tensor:
        return torch.randint(low, count, shape, generator=self.generator)

    def bits(self, *shape: int) -> Tensor:
        return torch.randint(0, 2, shape, generator=self.generator).to(self.dtype)


def _ignore_some(target: Tensor, share: float, source: _Source) -> Tensor:
    """Drops a share of the targets, never the first of all: something is left in every batch."""
    drop = torch.rand(target.shape, generator=source.generator) < share
    drop.view(-1)[0] = False
    return target.masked_fill(drop, IGNORED)


def _classified(source: _Source, sizes: Iterable[int], shape: tuple[int, ...], classes: int) -> list[Any]:
    return [(source.real(n, *shape), source.classes(classes, n)) for n in sizes]


def _tokens(source: _Source, sizes: Iterable[int], vocabulary: int) -> list[Any]:
    """Token batches (N, 6) with next-token targets; half of the second batch's are ignored, none of the first's."""
    batches = []
    for share, n in zip((0.0, 0.6, 0.3), sizes, strict=False):
        tokens = source.classes(vocabulary, n, 6)
        batches.append((tokens, _ignore_some(source.classes(vocabulary, n, 6), share, source)))
    return batches


def _language(source: _Source, sizes: Iterable[int], labels: str) -> list[Any]:
    """Mapping batches for ``transformers`` models, right-padded to unequal lengths: labels are -100 on the padding."""
    batches = []
    for longest, n in zip((6, 4, 5), sizes, strict=False):
        lengths = source.classes(longest + 1, n, low=2)
        lengths[0] = longest
        mask = (torch.arange(longest) < lengths[:, None]).long()
        ids = source.classes(11, n, longest, low=1) * mask
        if labels == "sentence":
            target = source.classes(3, n)
        else:
            target = (ids if labels == "next" else source.classes(11, n, longest)).masked_fill(mask == 0, IGNORED)
            if labels == "masked":
                target = _ignore_some(target, 0.5, source)
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": target})
    return batches


# --- building -------------------------------------------------------------------------------------------------------


def grow(make: Callable[[], nn.Module], dtype: torch.dtype, seed: int) -> nn.Module:
    """A model with seeded parameters away from every special value (no zero bias, no unit scale), as ``dtype``.

    The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.add_(0.2 * torch.randn(parameter.shape))
            for name, buffer in model.named_buffers():
                if name.endswith("running_mean"):
                    buffer.copy_(0.3 * torch.randn(buffer.shape))
                elif name.endswith("running_var"):
                    buffer.copy_(0.5 + torch.rand(buffer.shape))
    return model.to(dtype)


def _case(
    name: str,
    make: Callable[[], nn.Module],
    data: Callable[[_Source], Any],
    loss: Callable[[torch.dtype], Any],
    totals: Totals,
    *,
    training: bool = True,
    kwargs: dict[str, Any] | None = None,
    **facts: Any,
) -> Case:
    def build(dtype: torch.dtype, seed: int) -> Built:
        model = grow(make, dtype, seed).train(training)
        return Built(model, data(_Source(dtype, seed)), loss(dtype), dict(kwargs or {}))

    return Case(name, build, totals, **facts)


def _mlp(activation: Callable[[], nn.Module], outputs: int, *tail: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 7), activation(), nn.Linear(7, 4), activation(), nn.Linear(4, outputs), *(t() for t in tail)
    )


def _normed_cnn(normalise: Callable[[int], nn.Module], activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), normalise(4), activation(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


def _wide_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(48, 4),
    )  # fmt: skip


def _odd_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.Tanh(),
        nn.Conv2d(4, 4, 2, dilation=2, groups=4), nn.SiLU(),
        nn.ConvTranspose2d(4, 2, 2), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip


def _per_batch(totals: Totals) -> Callable[[torch.dtype], Any]:
    """The library's way to a loss of one's own: a function of model and batch that returns a sum and a count."""
    return lambda dtype: lh.batch_loss(lambda model, batch: totals(model, batch))


def _criterion(make: Callable[[], Any]) -> Callable[[torch.dtype], Any]:
    return lambda dtype: make()


def _no_loss(dtype: torch.dtype) -> None:
    return None


def _images(classes: int, sizes: tuple[int, ...] = (6, 3, 4)) -> Callable[[_Source], Any]:
    return lambda s: _classified(s, sizes, (1, 6, 6), classes)


def _vectors(width: int, classes: int, sizes: tuple[int, ...] = (8, 3, 5)) -> Callable[[_Source], Any]:
    return lambda s: _classified(s, sizes, (width,), classes)


def _targets(width: int, outputs: int, sizes: tuple[int, ...] = (7, 4)) -> Callable[[_Source], Any]:
    return lambda s: [(s.real(n, width), s.real(n, outputs)) for n in sizes]


def _bits(s: _Source) -> Any:
    return [(s.real(n, 5), s.bits(n, 2)) for n in (6, 5, 2)]


def _sequences(classes: int) -> Callable[[_Source], Any]:
    return lambda s: _classified(s, (5, 3), (4, 3), classes)


def _frames(s: _Source) -> Any:
    return _classified(s, (4, 2), (3, 4), 3)


def _words(s: _Source) -> Any:
    return [(s.classes(10, n, 4), s.classes(3, n)) for n in (6, 4)]


def _weighted_labels(s: _Source) -> Any:
    return [(s.real(n, 5), _ignore_some(s.classes(4, n), 0.3, s)) for n in (8, 5)]


_CE = _criterion(nn.CrossEntropyLoss)
_MSE = _criterion(nn.MSELoss)
_kinked: dict[str, Any] = {"smooth": False}
_attention_key_bias = ("mix.key.bias",)
_hugging_face: dict[str, Any] = {"tags": frozenset({"transformers"})}
_own_loss: dict[str, Any] = {"tolerance": 1e-6, "inherent": 1e-6, "tags": frozenset({"transformers", "own loss"})}
_bert_key = ("bert.encoder.layer.0.attention.self.key.bias",)

CASES: tuple[Case, ...] = (
    _case("mlp-relu-ce", partial(_mlp, nn.ReLU, 4), _vectors(5, 4), _CE, cross_entropy_totals, **_kinked),
    _case("mlp-tanh-mse", partial(_mlp, nn.Tanh, 2), _targets(5, 2), _MSE, squared_totals),
    _case("mlp-gelu-bce-logits", partial(_mlp, nn.GELU, 2), _bits,
          lambda dtype: nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.5, 1.5], dtype=dtype)), binary_logit_totals),
    _case("mlp-tanh-bce", partial(_mlp, nn.Tanh, 2, nn.Sigmoid), _bits, _criterion(nn.BCELoss), binary_totals,
          inherent=1e-11),
    _case("mlp-silu-nll-weights", partial(_mlp, nn.SiLU, 4, partial(nn.LogSoftmax, dim=1)), _vectors(5, 4),
          lambda dtype: nn.NLLLoss(weight=class_weights(dtype)), nll_totals),
    _case("mlp-softplus-poisson", partial(_mlp, nn.Softplus, 1),
          lambda s: [(s.real(n, 5), s.classes(5, n, 1).to(s.dtype)) for n in (9, 4)],
          _criterion(nn.PoissonNLLLoss), poisson_totals),
    _case("mlp-gelu-smoothing-weights-ignored", partial(_mlp, nn.GELU, 4), _weighted_labels,
          lambda dtype: nn.CrossEntropyLoss(weight=class_weights(dtype), label_smoothing=0.2),
          weighted_smoothed_totals),
    _case("mlp-layernorm-one-batch",
          lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)),
          lambda s: (s.real(11, 5), s.classes(3, 11)), _CE, cross_entropy_totals),
    _case("mlp-rmsnorm-batch-size", lambda: nn.Sequential(nn.Linear(5, 6), nn.RMSNorm(6), nn.SiLU(), nn.Linear(6, 3)),
          _vectors(5, 3, (9, 4)), _CE, cross_entropy_totals, kwargs={"batch_size": 4}),
    _case("cnn-batchnorm-eval", partial(_normed_cnn, nn.BatchNorm2d), _images(3), _CE, cross_entropy_totals,
          training=False, **_kinked),
    _case("cnn-batchnorm-mode-eval", partial(_normed_cnn, nn.BatchNorm2d, nn.GELU), _images(3), _CE,
          cross_entropy_totals, kwargs={"mode": "eval"}),
    _case("cnn-batchnorm-train", partial(_normed_cnn, nn.BatchNorm2d), _images(3), _CE, cross_entropy_totals,
          zero=("0.bias",), **_kinked),
    _case("cnn-batchnorm-train-tanh", partial(_normed_cnn, nn.BatchNorm2d, nn.Tanh), _images(3), _CE,
          cross_entropy_totals, zero=("0.bias",)),
    _case("cnn-groupnorm", partial(_normed_cnn, partial(nn.GroupNorm, 2), nn.Tanh), _images(3), _CE,
          cross_entropy_totals),
    _case("cnn-instancenorm", partial(_normed_cnn, partial(nn.InstanceNorm2d, affine=True), nn.SiLU), _images(3), _CE,
          cross_entropy_totals, zero=("0.bias",)),
    _case("cnn-residual-eval", nets.ResidualCNN, _images(4), _CE, cross_entropy_totals, training=False, **_kinked),
    _case("cnn-residual-train", nets.ResidualCNN, _images(4, (6, 4)), _CE, cross_entropy_totals, **_kinked),
    _case("cnn-groups-stride-dilation", _odd_convolutions,
          lambda s: [(s.real(n, 2, 6, 6), s.real(n, 2)) for n in (4, 3)], _MSE, squared_totals),
    _case("lstm", partial(nets.Recurrent, nn.LSTM), _sequences(3), _CE, cross_entropy_totals),
    _case("gru", partial(nets.Recurrent, nn.GRU), _sequences(3), _CE, cross_entropy_totals),
    _case("transformer-tied-ignore", nets.TiedTransformer, lambda s: _tokens(s, (4, 3, 2), 9), _CE,
          cross_entropy_totals, zero=("attention.key.bias",)),
    _case("attention-sdpa", partial(nets.AttentionClassifier, "sdpa"), _frames, _CE, cross_entropy_totals,
          zero=_attention_key_bias),
    _case("attention-multihead", partial(nets.AttentionClassifier, "multihead"), _frames, _CE, cross_entropy_totals),
    _case("attention-encoder-layer", partial(nets.AttentionClassifier, "encoder"), _frames, _CE, cross_entropy_totals),
    _case("gpt2-own-loss", nets.gpt2, lambda s: _language(s, (3, 2), "next"), _no_loss, next_token_totals, **_own_loss),
    _case("gpt2-logits", nets.gpt2, lambda s: _language(s, (3, 2), "next"), _per_batch(next_token_totals),
          next_token_totals, **_hugging_face),
    _case("bert-words-own-loss", partial(nets.bert, "words"), lambda s: _language(s, (3, 2), "masked"), _no_loss,
          masked_token_totals, zero=_bert_key, **_own_loss),
    _case("bert-words-logits", partial(nets.bert, "words"), lambda s: _language(s, (3, 2), "masked"),
          _per_batch(masked_token_totals), masked_token_totals, zero=_bert_key, **_hugging_face),
    _case("bert-sentence-criterion", partial(nets.bert, "sentence"), lambda s: _language(s, (3, 4), "sentence"), _CE,
          sentence_totals, zero=_bert_key, **_hugging_face),
    _case("tied-used-twice", nets.SharedTwice, _vectors(4, 3, (6, 4)), _CE, cross_entropy_totals),
    _case("partly-frozen", nets.PartlyFrozen, _targets(4, 2), _MSE, squared_totals),
    _case("root-parameters", nets.RootParameters, _targets(4, 3), _MSE, squared_totals),
    _case("unused-branch", nets.WithUnusedBranch, _vectors(4, 3, (6, 3)), _CE, cross_entropy_totals,
          unused=("unused.weight", "unused.bias")),
    _case("two-inputs", nets.TwoInputs, lambda s: [((s.real(n, 3), s.real(n, 4)), s.real(n, 2)) for n in (5, 3)],
          _MSE, squared_totals),
    _case("embedding-words", nets.WordBag, _words,
          _CE, cross_entropy_totals),
    _case("embedding-padding", partial(nets.WordBag, padding=0), _words, _CE, cross_entropy_totals,
          tags=frozenset({"padding"})),
    _case("weighted-examples", partial(_mlp, nn.Tanh, 1),
          lambda s: [{"x": s.real(n, 5), "y": s.real(n, 1), "weight": s.real(n).abs() + 0.1} for n in (6, 3)],
          _per_batch(weighted_examples_totals), weighted_examples_totals),
    _case("mlp-tanh-wide", lambda: nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 15), nn.Tanh(),
                                                 nn.Linear(15, 3)),
          _vectors(10, 3, (40, 25)), _CE, cross_entropy_totals, tags=frozenset({"large"})),
    _case("cnn-relu-wide", _wide_cnn, _images(4, (20, 12)), _CE, cross_entropy_totals, training=False,
          tags=frozenset({"large"}), **_kinked),
)  # fmt: skip


BY_NAME: dict[str, Case] = {case.name: case for case in CASES}

# Language models, the dearest of all, that differ in what is made of their output only.
_TWINS = (
    ("gpt2-own-loss", "gpt2-logits"),
    ("bert-words-own-loss", "bert-words-logits", "bert-sentence-criterion"),
)


def twins(turn: int) -> list[Case]:
    """The language models that a sweep leaves to the slow tests: all but one of each sort, another one each turn."""
    return [BY_NAME[name] for names in _TWINS for place, name in enumerate(names) if place != turn % len(names)]


def dtypes_in_turn(cases: Iterable[Case], leave: Iterable[Case] = ()) -> list[Any]:
    """Parameters (case, dtype): one dtype of each case in turn runs always, the other with the slow tests.

    Of the cases in ``leave``, both do.
    """
    left = list(leave)
    return [
        pytest.param(
            case, dtype, id=f"{case}-{str(dtype).removeprefix('torch.')}", marks=() if now else pytest.mark.slow
        )
        for place, case in enumerate(cases)
        for number, dtype in enumerate((torch.float64, torch.float32))
        for now in [place % 2 == number and case not in left]
    ]
