"""Models that cannot be analysed as they are: a sentence that names the module, and the model untouched."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import layerhess as lh
from refusals import CE, PAIRS, Table, Y, analysis, mlp
from witness import refused

TABLE = Table()
case = TABLE.case

# -- the model ---------------------------------------------------------------------------------------------------------

case("no trainable parameters: none at all", "no trainable parameters", "Tanh")(analysis(model=nn.Tanh))
case("no trainable parameters: all frozen", "4 are frozen", "requires_grad_(True)")(
    analysis(model=lambda: mlp().requires_grad_(False))
)
case("complex parameters", "complex", "weight", "real and imaginary")(
    analysis(model=lambda: nn.Linear(4, 3, dtype=torch.complex64))
)
case("no module", "function, not a torch.nn.Module")(lambda: (None, lambda: lh.Objective(lambda x: x, PAIRS, CE)))
case("a lazy module", "no shape yet", "one batch")(lambda: (None, lambda: lh.Objective(nn.LazyLinear(3), PAIRS, CE)))
case("a model without values", "meta device")(
    lambda: (None, lambda: lh.Objective(nn.Linear(4, 3, device="meta"), PAIRS, CE))
)


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return mlp()


case("a model made in inference_mode", "inference_mode", "0.weight", "outside")(analysis(model=made_in_inference_mode))


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, self.training)


class AlwaysNoisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-3 * torch.randn_like(x)


class NumPyNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-3 * np.random.rand()


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1.0 + 0.01 * self.calls)


class LastStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 5, 2, dropout=0.5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.unsqueeze(1).expand(-1, 3, -1))[0][:, -1])


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (1, 4)), layer, nn.Flatten(), nn.Linear(4, 3))


EVAL = "use mode='eval' (--eval)"
case("randomness: dropout", "random", "2 (Dropout)", EVAL)(analysis(model=lambda: mlp(nn.Dropout(0.5))))
case("randomness: dropout under a loss of one's own", "random", "2 (Dropout)")(
    analysis(loss=lambda o, t: F.cross_entropy(o, t), model=lambda: mlp(nn.Dropout(0.5)))
)
case("randomness: functional dropout", "random", "2 (FunctionalDropout)", EVAL)(
    analysis(model=lambda: mlp(FunctionalDropout()))
)
case("randomness: inside an LSTM", "random", "lstm (LSTM)", EVAL)(analysis(model=LastStep))
case("randomness: inside attention", "random", "1.self_attn (MultiheadAttention)", "1.dropout", EVAL)(
    analysis(model=attention)
)
case("randomness: RReLU", "random", "2 (RReLU)", EVAL)(analysis(model=lambda: mlp(nn.RReLU())))
case("randomness: noise in both modes", "random", "2 (AlwaysNoisy)", "remove the random numbers")(
    analysis(model=lambda: mlp(AlwaysNoisy()))
)
case("randomness: in eval mode as well", "random", "2 (AlwaysNoisy)", "remove the random numbers")(
    analysis(model=lambda: mlp(AlwaysNoisy()), options={"mode": "eval"})
)
case("randomness: from NumPy", "random", "2 (NumPyNoise)")(analysis(model=lambda: mlp(NumPyNoise())))
case("randomness: in the loss", "random", "in the loss", "remove the random numbers")(
    analysis(loss=lambda o, t: F.cross_entropy(o * (1.0 + 0.1 * torch.rand(())), t))
)
case("a state that changes at every call", "from call to call", "2 (Stateful)")(analysis(model=lambda: mlp(Stateful())))
case("weights that the forward pass changes", "0.weight", "max_norm")(
    analysis(
        (Y[:, None].expand(-1, 2), Y),
        model=lambda: nn.Sequential(nn.Embedding(3, 2, max_norm=0.1), nn.Flatten(), nn.Linear(4, 3)),
    )
)

# -- no second derivative ----------------------------------------------------------------------------------------------

TWICE = "differentiate twice"
WORDS = torch.arange(48).reshape(12, 4) % 10
SERIES = torch.linspace(-1.0, 1.0, 6 * 2 * 4).reshape(6, 2, 4), torch.tensor([[1, 2, 3], [3, 2, 4]])


class Checkpointed(nn.Module):
    """A layer under activation checkpointing."""

    def __init__(self, inputs: int, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = nn.Linear(inputs, 5), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


def checkpointed_first() -> nn.Module:
    return nn.Sequential(Checkpointed(4, True), nn.Tanh(), nn.Linear(5, 3))


REENTRANT = ("use_reentrant=False",)
case("no second derivative: reentrant checkpointing", "checkpointing", "2.inner", *REENTRANT)(
    analysis(model=lambda: mlp(Checkpointed(5, True)))
)
case(
    "no second derivative: reentrant checkpointing of the first layer", "0.inner", "gradients switched off", *REENTRANT
)(analysis(model=checkpointed_first))
for _mode in ("sum", "mean", "max"):
    case(f"no second derivative: EmbeddingBag, {_mode}", "0 (embedding_bag)", TWICE)(
        analysis((WORDS, Y), model=lambda mode=_mode: nn.Sequential(nn.EmbeddingBag(10, 5, mode=mode), nn.Linear(5, 3)))
    )


class Distances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.eye(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x, self.centres)


case("no second derivative: cdist", "2 (cdist)", TWICE)(
    analysis(model=lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Distances()))
)
_lengths = torch.full((2,), 6), torch.full((2,), 3)
case("no second derivative: CTC", "the loss (ctc_loss)", TWICE)(
    analysis(
        SERIES,
        lh.batch_loss(lambda m, b: (F.ctc_loss(m(b[0]).log_softmax(-1), b[1], *_lengths, reduction="sum"), 2)),
        lambda: nn.Linear(4, 5),
    )
)


class Once(torch.autograd.Function):
    """A sine that may be differentiated once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos()


class Cut(torch.autograd.Function):
    """A sine whose backward pass hides from autograd what it depends on, as a hand-written kernel does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (gradient * ctx.saved_tensors[0].cos()).detach()


class Applies(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.scale = function, nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.function.apply(x))


def kinked(function: Any) -> nn.Module:
    """With ReLU, so that finite differences do not apply."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), Applies(function), nn.Linear(5, 3))


for _name, _model in {"smooth": lambda f: mlp(Applies(f)), "with kinks": kinked}.items():
    case(f"no second derivative: once_differentiable, {_name}", "2 (Once)", "once_differentiable")(
        analysis(model=lambda model=_model: model(Once))
    )
    for _full in (True, False):
        case(f"wrong second derivative: a hand-written backward, {_name}, full={_full}", "2 (Cut)", "skip_failed")(
            analysis(model=lambda model=_model: model(Cut), full=_full)
        )


class Overwrites(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.exp()
        y += 1.0
        return y


case("an in-place operation on what the gradient needs", "output 0 of Exp", "new tensor")(
    analysis(model=lambda: mlp(Overwrites()))
)


class SparseLookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(10, 2))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.table, sparse=True).flatten(1)


case("a sparse gradient", "0.table", "sparse=False")(
    analysis((WORDS, Y), model=lambda: nn.Sequential(SparseLookup(), nn.Tanh(), nn.Linear(8, 3)))
)

# -- weight normalisation: torch's second derivative of it is wrong ----------------------------------------------------


def old(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def parametrised(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(layer)


def linear(normalise: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), normalise(nn.Linear(6, 3)))


def alone(normalise: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Identity(), nn.Identity(), normalise(nn.Linear(4, 3)))


def convolutional(normalise: Callable[[nn.Module], nn.Module]) -> nn.Module:
    layers = nn.Conv2d(1, 2, 1), nn.Tanh(), normalise(nn.Conv2d(2, 3, 2)), nn.Flatten(), nn.Linear(3, 3)
    return nn.Sequential(nn.Sequential(nn.Unflatten(1, (1, 2, 2)), layers[0]), *layers[1:])


def bigger(normalise: Callable[[nn.Module], nn.Module]) -> nn.Module:
    plain = [layer for _ in range(5) for layer in (nn.Linear(32, 32), nn.ReLU())]
    first = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32))
    return nn.Sequential(first, nn.ReLU(), normalise(nn.Linear(32, 32)), nn.ReLU(), *plain, nn.Linear(32, 3))


def normalised(make: Any, normalise: Any, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return make(normalise).to(dtype)


for _style in (old, parametrised):
    for _make in (linear, alone, convolutional, bigger):
        for _dtype in (torch.float32, torch.float64):
            _name = f"{_style.__name__}, {_make.__name__}, {str(_dtype).removeprefix('torch.')}"
            case(f"weight_norm: {_name}", "module 2 (", "weight_norm", "fold it")(
                analysis(
                    [(x.to(_dtype), y) for x, y in PAIRS],
                    model=lambda make=_make, style=_style, dtype=_dtype: normalised(make, style, dtype),
                )
            )


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch, of reentrant checkpointing
@pytest.mark.parametrize("name", TABLE)
def test_models_that_cannot_be_analysed_are_refused_in_words(name: str) -> None:
    TABLE.check(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("style", [old, parametrised])
def test_skip_failed_refuses_the_blocks_that_fail_and_analyses_the_rest(style: Any, dtype: torch.dtype) -> None:
    model = normalised(bigger, style, dtype)
    objective = lh.Objective(model, [(x.to(dtype), y) for x, y in PAIRS], CE)
    result = lh.analyze(objective, blocks="weight", skip_failed=True, tol=0.1)
    refused_blocks = {name for name, spectrum in result.blocks.items() if spectrum.status.startswith("refused")}
    assert refused_blocks and all(name.startswith("2.") for name in refused_blocks)
    assert result.full is not None and result.full.status.startswith("refused")
    for name, spectrum in result.blocks.items():
        assert spectrum.ok == (name not in refused_blocks)
        assert len(spectrum.eigenvalues) == (name not in refused_blocks)
    assert not result.converged
    assert any("refused by the self-check" in note for note in result.notes)
    assert {check.block for check in result.checks if not check.passed} == {*refused_blocks, "(full)"}


def test_skip_failed_gives_nothing_where_the_fault_cannot_be_located() -> None:
    """With a cut backward pass each diagonal block is symmetric, and wrong: only the whole gives it away."""
    result = lh.analyze(lh.Objective(kinked(Cut), PAIRS, CE), full=False, skip_failed=True)
    assert all(spectrum.status.startswith("refused") for spectrum in result.blocks.values())


def test_checkpointing_that_is_not_reentrant_just_works() -> None:
    plain, checkpointed = mlp(nn.Linear(5, 5)), mlp(Checkpointed(5, False))
    checkpointed[2].inner.load_state_dict(plain[2].state_dict())
    checkpointed[3].load_state_dict(plain[3].state_dict())
    vector = torch.linspace(-1.0, 1.0, 73)
    products = [lh.Hessian(lh.Objective(model, PAIRS, CE)).matvec(vector) for model in (plain, checkpointed)]
    torch.testing.assert_close(*products)


@pytest.mark.parametrize("scheme", [{"all": "*"}, {"first": "[01].*", "rest": "[2-9].*"}, "depth:1", "module"], ids=str)
@pytest.mark.parametrize("make", [linear, convolutional, bigger])
@pytest.mark.parametrize("style", [old, parametrised])
def test_weight_norm_is_named_whatever_the_blocks(style: Any, make: Any, scheme: Any) -> None:
    """In float32, and in a block with much else; in several seeds, since the check is a random one."""
    for seed in range(3):
        model = normalised(make, style, torch.float32)
        with refused(model, "module 2 (", "weight_norm", "fold it"):
            lh.analyze(lh.Objective(model, PAIRS, CE), blocks=scheme, full=False, seed=seed)


@pytest.mark.parametrize("style", [old, parametrised])
def test_blocks_that_weight_norm_does_not_touch_are_analysed(style: Any) -> None:
    model = normalised(bigger, style, torch.float64)
    objective = lh.Objective(model, [(x.double(), y) for x, y in PAIRS], CE)
    assert lh.analyze(objective, blocks={"biases": "*.bias"}, full=False).converged
    with refused(model, "(full)", "module 2 (", "weight_norm"):
        lh.analyze(objective, blocks={"biases": "*.bias"}, full=True)


def test_finite_differences_name_the_tensor_inside_a_block_of_many() -> None:
    """In one block of everything, each fault of a hand-written backward pass would drown."""
    model = mlp(Applies(Cut), nn.Tanh())
    with refused(model, "a self-check failed", "2 (Cut)"):
        lh.analyze(lh.Objective(model, PAIRS, CE), blocks={"all": "*"}, full=False)
