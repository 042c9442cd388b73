"""Random small networks with their data, loss and question: ``draw(seed)`` gives the same one every time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import layerhess as lh
import own_gradients
import random_layers
from random_losses import LOSSES, Loss

MOST_PARAMETERS = {False: 150, True: 450}  # of ordinary and of wide networks
TOKENS = 7
SHARES = {"flat": 0.45, "sequence": 0.3, "maps": 0.1, "image": 0.15}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
SCHEMES: tuple[Any, ...] = (
    "parameter", "parameter", "weight", "module", "depth:1", "depth:2", {"early": "*stages.0*", "head": "head*"},
)  # fmt: skip
OPERATORS = ("hessian", "hessian", "hessian", "gauss_newton", "empirical_fisher")
Batch = tuple[Tensor, Tensor]


class Network(nn.Module):
    """An embedding or nothing, stages, features, a head; with one faulty stage where ``wrong`` names one."""

    def __init__(
        self, form: str, tokens: bool, width: int, classes: int, draw: np.random.Generator, wrong: str
    ) -> None:
        super().__init__()
        self.form, self.pooling = form, ("mean", "last", "max")[draw.integers(3)]
        self.per_place = form == "sequence" and bool(draw.random() < 0.4)
        self.embedding = nn.Embedding(TOKENS, width) if tokens else None
        makers, embedded, stages = random_layers.STAGES[form], width, []
        number = int(draw.integers(1, 4 if form == "flat" else 3))
        place = int(draw.integers(number + 1)) if form in ("flat", "sequence") else number + 1
        for i in range(number):
            if wrong and i == place:
                stages.append(own_gradients.WRONG[wrong](width))
            stage, width = makers[draw.integers(len(makers))](width, draw)
            stages.append(stage)
        self.stages = nn.Sequential(*stages)
        self.features = own_gradients.WRONG[wrong](width) if wrong and place >= number else nn.Identity()
        tied = tokens and self.per_place and width == embedded
        self.head = nn.Linear(width, TOKENS if tied else classes, bias=bool(draw.random() < 0.7))
        if tied:
            assert self.embedding is not None
            self.head.weight = self.embedding.weight
        self.out: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.embedding is not None:
            x = self.embedding(x)
        x = self.stages(x)
        if self.form in ("maps", "image"):
            x = self._pooled(x.flatten(2).transpose(1, 2))
        elif self.form == "sequence" and not self.per_place:
            x = self._pooled(x)
        z = self.head(self.features(x))
        return self.out(z.transpose(1, 2) if self.per_place else z)

    def _pooled(self, x: Tensor) -> Tensor:
        return x.amax(1) if self.pooling == "max" else x.mean(1) if self.pooling == "mean" else x[:, -1]


@dataclass
class Drawn:
    """A network, its data and what is asked of it.

    Attributes:
        model: in ``dtype``. batches: (inputs, target) in ``dtype``. loss: from the table. wrong: the name of the faulty
            stage, or empty. constant: stopped gradients are held constant by request.
        data, objective_options: how the Objective gets the batches. question: of ``analyze``.
        words: what was drawn, for the report of a fault.
    """

    seed: int
    model: Network
    batches: list[Batch]
    loss: Loss
    dtype: torch.dtype
    wrong: str
    constant: bool
    data: Any
    objective_options: dict[str, Any]
    question: dict[str, Any]
    words: str

    def objective(self) -> lh.Objective:
        classes = self.model.head.out_features
        return lh.Objective(self.model, self.data, self.loss.made(self.dtype, classes), **self.objective_options)


def draw(seed: int) -> Drawn:
    """The network of a seed; one with too many parameters is drawn again, from the same stream."""
    stream = np.random.default_rng([21, seed])
    torch.manual_seed(int(stream.integers(2**31)))
    wide = bool(stream.random() < 0.25)
    while True:
        drawn = _attempt(seed, stream, wide)
        trainable = sum(p.numel() for p in drawn.model.parameters() if p.requires_grad)
        if trainable <= MOST_PARAMETERS[wide]:
            return drawn


def _attempt(seed: int, stream: np.random.Generator, wide: bool) -> Drawn:
    dtype = (torch.float32, torch.float64)[stream.integers(2)]
    wrong = str(stream.choice(list(own_gradients.WRONG))) if stream.random() < 0.12 else ""
    form = str(stream.choice(list(SHARES), p=list(SHARES.values())))
    tokens = form == "sequence" and bool(stream.random() < 0.5)
    width = int(stream.integers(2, 5)) if form in ("flat", "sequence") else int(stream.integers(1, 3))
    width *= 3 if wide else 1
    loss = LOSSES[stream.integers(len(LOSSES))]
    model = Network(form, tokens, width, int(stream.integers(2, 5)), stream, wrong).double()
    model.out = loss.head()
    scales = _rescale(model, stream)
    batches, factor = _batches(model, form, tokens, width, loss, stream)
    training = _prepare_norms(model, batches, stream)
    model = model.to(dtype)
    batches = [(_cast(x, dtype), _cast(y, dtype)) for x, y in batches]
    data, options = _presented(model, batches, training, stream)
    question = _question(model, training, loss, stream)
    constant = wrong in own_gradients.STOPPED and stream.random() < 0.4
    if constant:
        options["stop_gradients"] = "constant"
    words = (
        f"{dtype}, {form}{' of tokens' if tokens else ''}, {loss.name}, batches {[len(x) for x, _ in batches]}, "
        f"weights {scales}, data x {factor:.3g}, {'train' if training else 'eval'}, {wrong or 'honest'}"
        f"{' held constant' if constant else ''}, {question}"
    )
    return Drawn(seed, model, batches, loss, dtype, wrong, constant, data, options, question, words)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _log_uniform(stream: np.random.Generator) -> float:
    """Between 1e-3 and 1e3."""
    return float(10.0 ** stream.uniform(-3, 3))


@torch.no_grad()
def _rescale(model: nn.Module, stream: np.random.Generator) -> str:
    """Mostly ordinary weights; sometimes one tensor, or all of them, by a factor of up to a thousand either way."""
    parameters = dict(model.named_parameters())
    kind = stream.random()
    chosen = [] if kind < 0.55 else [str(stream.choice(list(parameters)))] if kind < 0.85 else list(parameters)
    factor = _log_uniform(stream)
    for name, parameter in parameters.items():
        parameter.mul_(float(stream.uniform(0.5, 2.0)))
        if name in chosen:
            parameter.mul_(factor)
    return f"{chosen[0] if len(chosen) == 1 else 'all'} x {factor:.3g}" if chosen else "ordinary"


def _batches(
    model: Network, form: str, tokens: bool, width: int, loss: Loss, stream: np.random.Generator
) -> tuple[list[Batch], float]:
    generator = torch.Generator().manual_seed(int(stream.integers(2**31)))
    factor = _log_uniform(stream) if stream.random() < 0.25 else 1.0
    least = 2 if any(not isinstance(m, nn.LayerNorm) and "Norm" in type(m).__name__ for m in model.modules()) else 1
    sizes = [int(stream.integers(least, 8)) for _ in range(int(stream.integers(1, 5)))]
    if stream.random() < 0.1:
        sizes[0] *= 12
    shapes = {"flat": (width,), "sequence": (4, width), "maps": (width, 6), "image": (width, 4, 4)}
    made = []
    for size in sizes:
        if tokens:
            x = torch.randint(0, TOKENS, (size, 4), generator=generator)
        else:
            x = factor * torch.randn((size, *shapes[form]), generator=generator, dtype=torch.float64)
        classes = model.head.out_features
        made.append((x, loss.target(generator, (size, classes, 4) if model.per_place else (size, classes))))
    if not tokens and stream.random() < 0.2:  # one example far out
        made[stream.integers(len(made))][0][0] *= float(10.0 ** stream.uniform(0.5, 2.5))
    return made, factor


@torch.no_grad()
def _prepare_norms(model: nn.Module, batches: list[Batch], stream: np.random.Generator) -> bool:
    """Whether the model is left in train mode; BatchNorm has seen some data, or other data than these."""
    norms = [m for m in model.modules() if isinstance(m, BATCH_NORMS)]
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    model.train(bool(stream.random() < 0.5))
    return model.training


def _presented(
    model: nn.Module, batches: list[Batch], training: bool, stream: np.random.Generator
) -> tuple[Any, dict[str, Any]]:
    tied = training and any(isinstance(m, BATCH_NORMS) for m in model.modules())
    if len(batches) == 1 and stream.random() < 0.5:
        return batches[0], {}
    options: dict[str, Any] = {"batch_size": int(stream.integers(1, 5))} if stream.random() < 0.15 and not tied else {}
    return batches, options


def _question(model: Network, training: bool, loss: Loss, stream: np.random.Generator) -> dict[str, Any]:
    norms = training and any(isinstance(m, BATCH_NORMS) for m in model.modules())
    operator = OPERATORS[stream.integers(len(OPERATORS))]
    if (operator == "gauss_newton" and not loss.separate) or (operator == "empirical_fisher" and norms):
        operator = "hessian"
    scheme = SCHEMES[stream.integers(len(SCHEMES))]
    if isinstance(scheme, dict) and not list(model.stages[0].parameters()):  # type: ignore[index, union-attr]
        scheme = "parameter"
    asked: dict[str, Any] = {"blocks": scheme, "operator": operator, "seed": int(stream.integers(1000))}
    asked["top"], asked["bottom"] = int(stream.integers(1, 4)), int(stream.integers(0, 3))
    if stream.random() < 0.15:
        asked["top"], asked["bottom"] = 0, 1
    if stream.random() < 0.3:
        asked["tol"] = float(10.0 ** stream.uniform(-6, -1))
    for kind, share in (("trace", 0.4), ("diagonal", 0.3), ("density", 0.2), ("coupling", 0.25)):
        if stream.random() < share:
            asked[kind] = True
    if stream.random() < 0.25:
        asked["full"] = False
    if stream.random() < 0.15:
        asked["path"] = ("exact", "exact", "factors", "gram")[stream.integers(4)]
    if stream.random() < 0.15:
        asked["memory"] = 1_000_000  # the least that is taken
    if stream.random() < 0.1:
        asked["exclude"] = None
    if stream.random() < 0.05 and asked["top"] == 1 and not asked["bottom"]:
        asked["method"] = "power"
    return asked
