"""Losses that cannot be differentiated twice, or not at all: refused by the name of what is in the way."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import layerhess as lh
from faulty_functions import Applies, Once, kinked
from refusals import CE, PAIRS, Table, X, Y, analysis, mlp

LOSSES, MODELS = Table(), Table()
case = LOSSES.case

case("no dependence: detached", "does not depend on any trainable parameter", "detach()")(
    analysis(loss=lambda o, t: F.cross_entropy(o.detach(), t))
)
case("no dependence: a constant", "does not depend on any trainable parameter")(
    analysis([(X, Y)], lambda o, t: torch.tensor(1.0))
)


class UnderNoGrad(nn.Module):
    """Trainable layers behind no_grad, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.features(x).relu()
        return self.head(x)


case("no dependence: trainable layers under no_grad", "features", "requires_grad_(False)")(analysis(model=UnderNoGrad))


@pytest.mark.parametrize("name", LOSSES)
def test_bad_data_and_losses_are_refused_in_words(name: str) -> None:
    LOSSES.check(name)


# -- no second derivative ----------------------------------------------------------------------------------------------

case = MODELS.case

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


class Selective(Checkpointed):
    def forward(self, x: Tensor) -> Tensor:
        keep = functools.partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default])
        return checkpoint(lambda t: self.inner(torch.tanh(self.inner(t))), x, use_reentrant=False, context_fn=keep)  # type: ignore[no-any-return]


case("no second derivative: selective checkpointing", "selective activation", "context_fn")(
    analysis(model=lambda: mlp(Selective(5, False)))
)
REENTRANT = ("use_reentrant=False",)
case("no second derivative: reentrant checkpointing", "checkpointing", "2.inner", *REENTRANT)(
    analysis(model=lambda: mlp(Checkpointed(5, True)))
)
case(
    "no second derivative: reentrant checkpointing of the first layer", "0.inner", "gradients switched off", *REENTRANT
)(analysis(model=checkpointed_first))
for _mode in ("sum", "mean", "max"):
    case(
        f"no second derivative: EmbeddingBag, {_mode}",
        "embedding_bag",
        "0 (EmbeddingBag)",
        TWICE,
        "embedding and a sum",
    )(analysis((WORDS, Y), model=lambda mode=_mode: nn.Sequential(nn.EmbeddingBag(10, 5, mode=mode), nn.Linear(5, 3))))


class Distances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.eye(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x, self.centres)


case("no second derivative: cdist", "cdist", "2 (Distances)", TWICE)(
    analysis(model=lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Distances()))
)
_lengths = torch.full((2,), 6), torch.full((2,), 3)
case("no second derivative: CTC", "ctc_loss", "the loss", TWICE)(
    analysis(
        SERIES,
        lh.batch_loss(lambda m, b: (F.ctc_loss(m(b[0]).log_softmax(-1), b[1], *_lengths, reduction="sum"), 2)),
        lambda: nn.Linear(4, 5),
    )
)


class Function(nn.Module):
    """A module around a function of its input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(torch.tanh(self.first(x)), torch.eye(3, 5))


def fused(x: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(*[x[None, None]] * 3)[0, 0]


case("no second derivative: cdist in the model's own forward", "cdist", "(root) (Root)")(analysis(model=Root))
case("no second derivative: pdist, by a function", "pdist", "2.function_of (Function)")(
    analysis(model=lambda: mlp(nn.Sequential(OrderedDict(function_of=Function(lambda x: x * F.pdist(x).sum())))))
)
case("no second derivative: fused attention that the model insists on", "flash_attention", "2 (Function)", "MATH")(
    analysis(model=lambda: mlp(Function(fused)))
)
for _name, _loss in {"module": nn.MultiMarginLoss(), "function": lambda o, t: F.multi_margin_loss(o, t)}.items():
    case(f"no second derivative: multi_margin_loss, {_name}", "multi_margin_loss", "Where: the loss.")(
        analysis(loss=_loss)
    )
case("no derivative at all: igamma", "no derivative of igamma", "2 (Function)")(
    analysis(model=lambda: mlp(Function(lambda x: torch.igamma(x.exp(), x.exp() + 1.0))))
)


class Attends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        made = flex_attention(*[x[None, None]] * 3)
        assert isinstance(made, Tensor)
        return made[0, 0]


case("no derivative at all: FlexAttention on the CPU", "FlexAttention", "Where: 2 (", "scaled_dot_product_attention")(
    analysis(model=lambda: mlp(Attends()))
)


class Slopes(nn.Module):
    """Differentiates a network as force fields do in eval mode."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.energy, self.options = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), options

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        e = self.energy(x)
        return e + torch.autograd.grad(e.square().sum(), x, **self.options)[0][:, :3]


case("slopes whose graph is thrown away", "without create_graph=True", "(root) (Slopes)", "in eval mode too")(
    analysis(model=Slopes)
)


class InOneBatch(nn.Module):
    """cdist in a batch that is not in the self-check's sample."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(torch.cdist(h, torch.eye(3).to(h)) if float(x.abs().max()) < 1.0 else h)


case("no second derivative: cdist in one batch only", "cdist", "batch 3, (root) (InOneBatch)")(
    analysis([(X * 9.0, Y)] * 3 + [(0.01 * X / X.abs().max(), Y)] + [(X * 9.0, Y)] * 3, model=InOneBatch)
)
for _name, _model in {"smooth": lambda f: mlp(Applies(f)), "with kinks": kinked}.items():
    case(f"no second derivative: once_differentiable, {_name}", "2 (Once)", "once_differentiable")(
        analysis(model=lambda model=_model: model(Once))
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


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch, of reentrant checkpointing
@pytest.mark.parametrize("name", MODELS)
def test_models_that_cannot_be_analysed_are_refused_in_words(name: str) -> None:
    MODELS.check(name)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_group_norm_is_refused_where_torch_would_end_the_process() -> None:
    parts = nn.Sequential(nn.Conv2d(3, 4, 2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 3))
    x = torch.linspace(-1.0, 1.0, 12 * 27).sin().view(12, 3, 3, 3)
    last = x.contiguous(memory_format=torch.channels_last)
    with pytest.raises(lh.InputError, match="GroupNorm whose channels are last"):
        lh.analyze(lh.Objective(torch.jit.script(parts), (last, Y), CE))
    lh.analyze(lh.Objective(torch.jit.script(parts), (x, Y), CE), full=False)


class NativeGroupNorm(nn.GroupNorm):
    """Torch's own function, by its inner name, for which no other form is put in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return torch.native_group_norm(x, self.weight, self.bias, len(x), 4, 4, 2, self.eps)[0]


def test_the_module_of_a_group_norm_that_would_end_the_process_is_named() -> None:
    parts = nn.Sequential(nn.Conv2d(3, 4, 2), NativeGroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 3))
    x = torch.linspace(-1.0, 1.0, 12 * 27).sin().view(12, 3, 3, 3)
    with pytest.raises(lh.InputError, match="GroupNorm whose channels are last") as caught:
        lh.analyze(lh.Objective(parts, (x, Y), CE))
    assert caught.value.where == "1 (NativeGroupNorm)" and "F.group_norm" in caught.value.what_to_do


def test_slopes_that_are_constants_to_autograd_are_refused_by_their_call() -> None:
    with pytest.raises(lh.CheckError, match=r"autograd.grad\(\) without create_graph in \(root\) \(Slopes\)"):
        lh.analyze(lh.Objective(Slopes(retain_graph=True), PAIRS, CE), full=False)


def test_checkpointing_that_is_not_reentrant_just_works() -> None:
    plain, checkpointed = mlp(nn.Linear(5, 5)), mlp(Checkpointed(5, False))
    checkpointed[2].inner.load_state_dict(plain[2].state_dict())
    checkpointed[3].load_state_dict(plain[3].state_dict())
    vector = torch.linspace(-1.0, 1.0, 73)
    products = [lh.Hessian(lh.Objective(model, PAIRS, CE)).matvec(vector) for model in (plain, checkpointed)]
    torch.testing.assert_close(*products)
