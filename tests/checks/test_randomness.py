"""A loss that differs from call to call: the module that draws random numbers, or keeps a state, is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from refusals import Table, Y, analysis, mlp

TABLE = Table()
case = TABLE.case


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


@pytest.mark.parametrize("name", TABLE)
def test_models_that_cannot_be_analysed_are_refused_in_words(name: str) -> None:
    TABLE.check(name)


@pytest.mark.parametrize("active", [True, False])
def test_dropout_behind_a_head_of_zeros_is_seen(active: bool) -> None:
    """No mask changes the loss at these weights, and all of them its curvature."""
    torch.manual_seed(0)
    head = nn.Linear(5, 3)
    nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), head).double().train(active)
    x, y = torch.randn(12, 4).double(), torch.arange(12) % 3
    objective = lh.Objective(model, (x, y), nn.CrossEntropyLoss())
    for call in (lambda: lh.analyze(objective), lambda: lh.Hessian(objective).to_dense()):
        if active:
            with pytest.raises(lh.InputError, match="the loss is random") as caught:
                call()
            assert "2" in caught.value.where
        else:
            call()
