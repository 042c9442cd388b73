"""Does this machine differentiate twice correctly? Small networks, each against differences of its own gradients.

The references do not use the library: gradients come from plain autograd, are held against differences of the loss, and
their own differences are what a product with the Hessian has to be (central, extrapolated by Richardson 1911). Products
in float32, which take other kernels, are held against those in float64.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from layerhess.analysis.verification import verified
from layerhess.checks.second_derivative import named_operations
from layerhess.curvature.data_pass import FULL
from layerhess.curvature.matrices import HESSIAN
from layerhess.curvature.operator import UncheckedOperator
from layerhess.errors import LayerhessError
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import preserved_random_state
from layerhess.objective.torch_version import FAULTS

STEP = 5e-4  # of each parameter, along random signs
TOLERANCE = 1e-6  # relative; differences in float64 agree to 1e-8 or better
SINGLE_TOLERANCE = 1e-3  # of float32, which is right to 1e-5; what was seen to be wrong is off by 1e-2 and more
DIRECTIONS = 2
RIGHT, REFUSED, WRONG = "right", "wrong here, and refused by the self-check", "WRONG"


Made = tuple[nn.Module, tuple[Tensor, Tensor], nn.Module]  # a network, its batch, its loss
Layers = Callable[[], list[nn.Module]]


KNOWN = tuple(fault.what for fault in FAULTS if fault.refused)


@dataclass(frozen=True)
class Case:
    """A network with its data, float64."""

    name: str
    make: Callable[[], Made]

    @property
    def known_wrong(self) -> bool:
        """Torch gets its second derivative wrong; the self-check then has to refuse it."""
        return self.name.startswith(KNOWN)


@dataclass(frozen=True)
class Finding:
    """What came out of a case.

    Attributes:
        name, device: of the case. outcome: "right", "wrong here, and refused by the self-check", or "WRONG ...".
        error, single_error: relative, of the worst product, in float64 and in float32; NaN where there is none.
        known_wrong: as in :class:`Case`.
        ok: right, or known to be wrong and refused. detail: a sentence.
    """

    name: str
    device: str
    outcome: str
    error: float
    single_error: float
    known_wrong: bool
    ok: bool
    detail: str = ""


class _Sequence(nn.Module):
    """Tokens or rows through a recurrent or an attention layer, to class scores."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "lstm":
            self.inner: nn.Module = nn.LSTM(4, 5, batch_first=True)
        elif kind == "embedding":
            self.inner = nn.Embedding(7, 5)
        elif kind == "multihead":
            self.inner = nn.MultiheadAttention(4, 2, batch_first=True)
        else:
            self.inner = nn.Linear(4, 12)
        self.head = nn.Linear({"multihead": 4, "attention": 4}.get(kind, 5), 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "embedding":
            inner = torch.tanh(self.inner(x))
        elif self.kind == "lstm":
            inner = self.inner(x)[0]
        elif self.kind == "multihead":
            inner = self.inner(x, x, x)[0]
        else:  # two heads, each row sees those before it
            parts = self.inner(x).reshape(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
            inner = attended.transpose(1, 2).flatten(2)
        scores: Tensor = self.head(inner.mean(dim=1))
        return scores


class _Slopes(nn.Module):
    """The slopes of a network in its inputs: a loss of them has third derivatives in it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.inner(x).sum(), x, create_graph=True)[0]


class _Binary(nn.Module):
    """Binary cross entropy of the first score's probability."""

    def forward(self, scores: Tensor, classes: Tensor) -> Tensor:
        return functional.binary_cross_entropy(torch.sigmoid(scores[:, 0]), (classes == 1).to(scores))


def cases() -> list[Case]:
    """One for each kind of layer that the library treats in a way of its own, and those known to be wrong somewhere."""

    def dense(layers: Layers, loss: Callable[[], nn.Module] = nn.CrossEntropyLoss) -> Callable[[], Made]:
        return lambda: _classes(nn.Sequential(nn.Linear(4, 6), *layers(), nn.Linear(6, 3)), _rows(8, 4), loss())

    def image(layers: Layers, training: bool = True, examples: int = 5) -> Callable[[], Made]:
        def made() -> Made:
            network = nn.Sequential(*layers(), nn.Flatten(), nn.LazyLinear(3))
            model, data, loss = _classes(network, _rows(examples, 2, 5, 5))
            return model.train(training), data, loss

        return made

    def tokens(kind: str) -> Callable[[], Made]:
        def made() -> Made:
            rows = torch.arange(24).reshape(6, 4) % 7 if kind == "embedding" else _rows(6, 4, 4)
            return _classes(_Sequence(kind), rows)

        return made

    def smoothed() -> nn.Module:
        return nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]).double(), ignore_index=0, label_smoothing=0.1)

    def instance_norm() -> list[nn.Module]:
        return [nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.Tanh()]

    def batch_norm() -> list[nn.Module]:
        return [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh()]

    normalised = nn.utils.parametrizations.weight_norm
    return [
        Case("convolution", image(lambda: [nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh()])),
        Case("grouped convolution", image(lambda: [nn.Conv2d(2, 4, 3, groups=2, dilation=2, padding=2), nn.Tanh()])),
        Case("transposed convolution", image(lambda: [nn.ConvTranspose2d(2, 2, 3, stride=2), nn.Tanh()])),
        Case("batch norm, training", image(batch_norm)),
        Case("batch norm, evaluation", image(batch_norm, training=False)),
        Case("group norm", image(lambda: [nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh()])),
        Case("instance norm, single", image(instance_norm, examples=1)),
        Case("layer norm", dense(lambda: [nn.LayerNorm(6), nn.Tanh()])),
        Case("attention", tokens("attention")),
        Case("multi-head attention", tokens("multihead")),
        Case("LSTM", tokens("lstm")),
        Case("embedding", tokens("embedding")),
        Case("GELU", dense(lambda: [nn.GELU()])),
        Case("GELU, tanh", dense(lambda: [nn.GELU(approximate="tanh")])),
        Case("SiLU", dense(lambda: [nn.SiLU()])),
        Case("hard sigmoid", dense(lambda: [nn.Hardsigmoid(), nn.Tanh()])),
        Case("softplus", dense(lambda: [nn.Softplus()])),
        Case("softmax", dense(lambda: [nn.Softmax(dim=-1)])),
        Case("cross entropy", dense(lambda: [nn.Tanh()], smoothed)),
        Case("binary cross entropy", dense(lambda: [nn.Tanh()], _Binary)),
        Case("slopes in the loss", lambda: _classes(_Slopes(), _rows(8, 3))),
        Case("weight_norm", dense(lambda: [nn.Tanh(), normalised(nn.Linear(6, 6)), nn.Tanh()])),
        Case("weight_norm, old style", dense(lambda: [nn.Tanh(), _old_weight_norm(nn.Linear(6, 6)), nn.Tanh()])),
    ]


def run(device: torch.device) -> Iterator[Finding]:
    """The findings on one device, one after the other, and first a closed form. Random states stay as they were."""
    tests: list[Callable[[torch.device], Finding]] = [closed_form]
    tests += [functools.partial(examined, case) for case in cases()]
    for examine in tests:
        with preserved_random_state(), torch.inference_mode(False), torch.enable_grad(), _no_autocast(device):
            found = examine(device)
        yield found


def closed_form(device: torch.device) -> Finding:
    """Least squares: the Hessian is 2 X'X / n, by hand."""
    x = _rows(9, 4).to(device)
    wanted = 2.0 * x.T @ x / len(x)
    errors = []
    for dtype in (torch.float64, torch.float32):
        model, rows = nn.Linear(4, 1, bias=False).to(device, dtype), x.to(dtype)
        found = _products(_objective(model, (rows, rows[:, :1]), nn.MSELoss()), torch.eye(4, device=device))
        errors.append(float((found - wanted).norm() / wanted.norm()))
    return _judged("least squares, by hand", device, errors, False, lambda: "")


def examined(case: Case, device: torch.device) -> Finding:
    """A case on a device: is the gradient that of the loss, and the product that of the gradient?"""
    (model, data, loss), (twin, *_), (narrow, _, narrow_loss) = (_made(case, device) for _ in range(3))
    objective = _objective(model, data, loss)

    def refusal() -> str:
        hessian = UncheckedOperator(objective, HESSIAN)
        try:
            verified(objective, HESSIAN, {**hessian.blocks, FULL: hessian.full})
        except LayerhessError as error:
            return error.message
        return ""

    try:
        inputs = data[0].float() if data[0].is_floating_point() else data[0]
        single = _objective(narrow.float(), (inputs, data[1]), narrow_loss.float())
        errors = [_worst(twin, data, loss, objective), _of_single(single, objective)]
    except LayerhessError as refused:
        said, nothing = f"refused: {refused.message}", float("nan")
        return Finding(case.name, str(device), said, nothing, nothing, case.known_wrong, case.known_wrong, str(refused))
    except RuntimeError as failed:  # what another torch may no longer do at all
        said, nothing = f"{WRONG}, torch says: {str(failed).splitlines()[0][:120]}", float("nan")
        return Finding(case.name, str(device), said, nothing, nothing, case.known_wrong, False, str(failed))
    return _judged(case.name, device, errors, case.known_wrong, refusal)


def _judged(
    name: str, device: torch.device, errors: Sequence[float], known: bool, refusal: Callable[[], str]
) -> Finding:
    """``refusal``: what the self-check says; "" where it sees nothing."""
    double, single = errors
    if double <= TOLERANCE and single <= SINGLE_TOLERANCE:
        return Finding(name, str(device), RIGHT, double, single, known, True)
    said = refusal()
    outcome = f"{WRONG}, AND NOT NOTICED" if not said else REFUSED if known else f"{WRONG}, refused by the self-check"
    return Finding(name, str(device), outcome, double, single, known, bool(known and said), said)


def _made(case: Case, device: torch.device) -> Made:
    """The case, the same each time (not every module can be copied)."""
    torch.manual_seed(0)
    model, data, loss = case.make()
    return model.to(device), (data[0].to(device), data[1].to(device)), loss.to(device)


def _objective(model: nn.Module, data: tuple[Tensor, Tensor], loss: nn.Module) -> Objective:
    """The mean loss over one batch, which no other process has a share of."""
    made = Objective(model, data, loss)
    return made.narrowed(list(made.batches()))


def _products(objective: Objective, vectors: Tensor) -> Tensor:
    """Products of (s, P) vectors with the Hessian, (s, P) float64, unchecked."""
    hessian = UncheckedOperator(objective, HESSIAN)
    with objective.session(), named_operations(objective):
        return hessian.apply({FULL: (hessian.full, vectors)})[FULL]


def _of_single(single: Objective, objective: Objective) -> float:
    """The relative error of a product in float32."""
    v = _signs(objective.numel, single.device)[None]
    wanted, found = _products(objective, v), _products(single, v)
    return float((found - wanted).norm() / wanted.norm())


def _worst(twin: nn.Module, data: tuple[Tensor, Tensor], loss: nn.Module, objective: Objective) -> float:
    """The largest relative error of a gradient along a direction, and of a product."""
    start = nn.utils.parameters_to_vector(twin.parameters()).detach().clone()
    worst = 0.0
    for _ in range(DIRECTIONS):
        v = _signs(len(start), start.device)

        def at(step: float, along: Tensor = v) -> tuple[Tensor, Tensor]:
            nn.utils.vector_to_parameters(start + step * along, twin.parameters())
            value = loss(twin(data[0]), data[1])
            parts = torch.autograd.grad(value, list(twin.parameters()), materialize_grads=True)
            return value.detach(), nn.utils.parameters_to_vector(parts).detach()

        steps = [(at(h), at(-h), h) for h in (STEP, STEP / 2.0)]
        slopes, curves = ([(up[i] - down[i]) / (2.0 * h) for up, down, h in steps] for i in (0, 1))
        gradient = at(0.0)[1]
        slope, curve = ((4.0 * fine - coarse) / 3.0 for coarse, fine in (slopes, curves))
        worst = max(worst, float(abs(slope - gradient @ v) / gradient.norm()))
        worst = max(worst, float((_products(objective, v[None])[0] - curve).norm() / curve.norm()))
    return worst


def _classes(model: nn.Module, rows: Tensor, loss: nn.Module | None = None) -> Made:
    """The network, its batch, and a cross entropy over three classes, in float64."""
    model = model.double()
    model(rows)  # lazy layers learn their shapes, normalisations their statistics
    return model, (rows, torch.arange(len(rows)) % 3), loss or nn.CrossEntropyLoss()


def _old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def _no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """The references are made outside of sessions."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _signs(n: int, device: torch.device) -> Tensor:
    return (torch.randint(0, 2, (n,)) * 2.0 - 1.0).double().to(device)


def _rows(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)
