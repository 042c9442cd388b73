"""The self-check where it is hardest: parts that are quiet on the sample, and half precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from refusals import Table, analysis, mlp


class Gated(nn.Module):
    """A weight-normed branch that is switched on by the first input: off in some batches, on in others."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(5, 6)
        self.b = nn.Linear(5, 6)
        if normed:
            self.b = nn.utils.parametrizations.weight_norm(self.b)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(x)) + x[:, :1] * torch.relu(self.b(x)))


def gated_batches(on: int, count: int = 40) -> list[tuple[Tensor, Tensor]]:
    """``count`` batches of the same distribution; the gate is 1 in batch ``on`` and 0 in all others."""
    generator = torch.Generator().manual_seed(1)
    data = []
    for i in range(count):
        x, y = torch.randn(40, 5, generator=generator), torch.randint(0, 3, (40,), generator=generator)
        x[:, 0] = float(i == on)
        data.append((x, y))
    return data


@pytest.mark.parametrize(
    ("on", "full"),
    [
        pytest.param(on, full, marks=() if full == (on == 7) else pytest.mark.slow)
        for on in (1, 7, 23)
        for full in (False, True)
    ],
)
def test_a_wrong_product_that_only_some_batches_show_is_still_refused(on: int, full: bool) -> None:
    objective = lh.Objective(Gated(normed=True), gated_batches(on), nn.CrossEntropyLoss())
    with pytest.raises(lh.CheckError, match="weight_norm") as caught:
        lh.analyze(objective, full=full)
    assert "b (" in caught.value.where


@pytest.mark.parametrize("on", [*(pytest.param(on, marks=pytest.mark.slow) for on in (1, 7)), 23])
def test_a_right_one_is_analysed(on: int) -> None:
    result = lh.analyze(lh.Objective(Gated(normed=False), gated_batches(on), nn.CrossEntropyLoss()))
    assert result.converged
    assert result.blocks["b.weight"].eigenvalues[0] > 0.0


def test_skip_failed_leaves_out_what_only_some_batches_show() -> None:
    objective = lh.Objective(Gated(normed=True), gated_batches(7), nn.CrossEntropyLoss())
    result = lh.analyze(objective, full=False, skip_failed=True)
    assert result.blocks["b.parametrizations.weight.original1"].status.startswith("refused")
    assert result.blocks["a.weight"].ok and not result.converged


@pytest.mark.filterwarnings("ignore::layerhess.errors.LayerhessWarning")
def test_weight_norm_is_caught_in_half_precision() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3)).bfloat16()
    data = (torch.randn(30, 6).bfloat16(), torch.randint(0, 3, (30,)))
    with pytest.raises(lh.CheckError, match="weight_norm"):
        lh.analyze(lh.Objective(model, data, nn.CrossEntropyLoss()))


@pytest.mark.filterwarnings("ignore::layerhess.errors.LayerhessWarning")
def test_live_blocks_are_not_called_zero_in_half_precision() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(40, 10), torch.randint(0, 3, (40,))
    truth = lh.analyze(lh.Objective(model, (x, y), nn.CrossEntropyLoss()))
    result = lh.analyze(lh.Objective(model.bfloat16(), (x.bfloat16(), y), nn.CrossEntropyLoss()))
    for name, block in result.blocks.items():
        assert not block.status.startswith("zero"), name
        # The weights themselves were rounded to 8 bits: that is not the bound's business, hence the 5 %.
        slack = 0.05 * truth.blocks[name].eigenvalues[0]
        assert abs(block.eigenvalues[0] - truth.blocks[name].eigenvalues[0]) <= block.error_bounds[0] + slack


# -- refused in words --------------------------------------------------------------------------------------------------

TABLE = Table()
case = TABLE.case


class NormOfZero(nn.Module):
    """A finite loss and gradient whose second derivative is not: the root of a squared zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x - x.detach()).square().sum(1, keepdim=True).sqrt()


case("NaN: the second derivative only", "NaN or infinite", "sqrt")(analysis(model=lambda: mlp(NormOfZero())))


@pytest.mark.parametrize("name", TABLE)
def test_bad_data_and_losses_are_refused_in_words(name: str) -> None:
    TABLE.check(name)
