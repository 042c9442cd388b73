"""The self-check catches weight normalisation by name, and cries wolf nowhere in the zoo."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from zoo import CASES, Case, dtypes_in_turn, grow, twins

PRECISIONS = (torch.float32, torch.float64)

every_case = pytest.mark.parametrize("case", CASES, ids=str)
both_precisions = pytest.mark.parametrize("dtype", PRECISIONS, ids=str)


def analyse_briefly(case: Case, dtype: torch.dtype, seed: int) -> lh.Analysis:
    """An analysis with all its checks and hardly any iterations: a refusal would raise."""
    return lh.analyze(
        case.build(dtype, seed).objective(), blocks="parameter", top=1, full=False, max_passes=3, seed=seed
    )


def assert_no_alarm(case: Case, dtype: torch.dtype, seed: int) -> None:
    analysis = analyse_briefly(case, dtype, seed)
    refused = [name for name, result in analysis.blocks.items() if "refused" in result.status.lower()]
    assert not refused


@pytest.mark.parametrize(("case", "dtype"), dtypes_in_turn(CASES, leave=[*twins(2), *CASES[::3]]))
def test_every_model_passes_its_checks(case: Case, dtype: torch.dtype) -> None:
    """The first seed is left to the tests of eigenvalues, where nothing is refused either: every third, in float32."""
    assert_no_alarm(case, dtype, seed=1)


def test_a_kink_beside_the_weights_is_not_taken_for_a_wrong_gradient() -> None:
    """It shifts the differences of all steps alike, here by 4e-4."""
    (case,) = (case for case in CASES if case.name == "cnn-relu-wide")
    assert_no_alarm(case, torch.float64, seed=482)


@pytest.mark.slow
@both_precisions
@every_case
def test_twenty_seeds_of_every_model_pass_their_checks(case: Case, dtype: torch.dtype) -> None:
    for seed in (0, *range(2, 20)):
        assert_no_alarm(case, dtype, seed)


# --- weight normalisation: torch's double backward through it is wrong, silently --------------------------------------


def old_style(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def parametrised(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(layer)


both_styles = pytest.mark.parametrize("normalise", [old_style, parametrised])


class Normalised(nn.Module):
    """A plain layer, one under weight normalisation, a plain head; linear or convolutional."""

    def __init__(self, normalise: Callable[[nn.Module], nn.Module], convolutional: bool) -> None:
        super().__init__()
        self.before = nn.Conv1d(2, 3, 1) if convolutional else nn.Linear(6, 5)
        self.weird = normalise(nn.Conv1d(3, 4, 3) if convolutional else nn.Linear(5, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.weird(torch.tanh(self.before(x))))
        return self.head(x.mean(-1) if x.dim() == 3 else x)


def normalised(normalise: Callable[[nn.Module], nn.Module], convolutional: bool, dtype: torch.dtype) -> lh.Objective:
    model = grow(lambda: Normalised(normalise, convolutional), dtype, seed=0)
    generator = torch.Generator().manual_seed(1)
    shape = (9, 2, 5) if convolutional else (9, 6)
    data = (torch.randn(shape, generator=generator).to(dtype), torch.randint(0, 3, (9,), generator=generator))
    return lh.Objective(model, data, nn.CrossEntropyLoss())


@both_styles
@both_precisions
@pytest.mark.parametrize("convolutional", [False, True], ids=["linear", "conv"])
def test_weight_norm_is_refused_and_its_module_is_named(
    normalise: Callable[[nn.Module], nn.Module], dtype: torch.dtype, convolutional: bool
) -> None:
    with pytest.raises(lh.CheckError) as refusal:
        lh.analyze(normalised(normalise, convolutional, dtype), blocks="parameter")
    said = f"{refusal.value} {refusal.value.where} {refusal.value.what_to_do}"
    assert "weird" in said
    assert "before" not in str(refusal.value.where)
    assert refusal.value.what_to_do


@both_styles
def test_the_rest_of_a_model_with_weight_norm_can_be_analysed(normalise: Callable[[nn.Module], nn.Module]) -> None:
    """``skip_failed`` refuses the blocks that failed and gives the others."""
    objective = normalised(normalise, False, torch.float64)
    analysis = lh.analyze(objective, blocks="parameter", full=False, skip_failed=True)
    statuses = {name: result.status.lower() for name, result in analysis.blocks.items()}
    refused = {name for name, status in statuses.items() if "refused" in status}
    assert refused
    assert all(name.startswith("weird.") for name in refused)
    for name in ("before.weight", "before.bias", "head.weight", "head.bias"):
        assert all(analysis.blocks[name].converged)


@both_styles
def test_a_refused_model_comes_back_as_it_was(normalise: Callable[[nn.Module], nn.Module]) -> None:
    objective = normalised(normalise, False, torch.float64)
    before = {name: value.clone() for name, value in objective.model.state_dict().items()}
    with pytest.raises(lh.CheckError):
        lh.analyze(objective)
    after = objective.model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in objective.model.parameters())


@pytest.mark.parametrize("operator", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("seed", range(3))
def test_what_rounding_leaves_of_a_bias_before_a_norm_is_not_held_against_it(seed: int, operator: str) -> None:
    """The norm divides it by the small standard deviation of its input, to 2e-13 of the full product and more."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.01 * torch.randn(4, 2, 5, 5, generator=generator).double()
    body = (nn.Conv2d(2, 3, 2, padding=1), nn.GroupNorm(3, 3), nn.Softplus(), nn.Flatten(), nn.Linear(108, 2))
    model = grow(lambda: nn.Sequential(*body), torch.float64, seed)
    objective = lh.Objective(model, (x, torch.randn(4, 2, generator=generator).double()), nn.MSELoss())
    analysis = lh.analyze(objective, operator=operator, max_passes=3, full=False)  # a failed check would raise
    bias = analysis.blocks["0.bias"]
    assert abs(bias.eigenvalues[0]) <= bias.error_bounds[0] < 1e-9


@pytest.mark.parametrize("activation", [nn.Tanh, nn.LeakyReLU])
def test_a_curvature_that_no_difference_can_show_is_not_held_against_a_block(activation: type[nn.Module]) -> None:
    """Far from its target a log-cosh is a straight line: 4e-21 for the last bias, and differences show exactly 0."""

    def log_cosh(z: Tensor, y: Tensor) -> Tensor:
        e = z - y
        return (e - nn.functional.logsigmoid(2 * e)).mean()

    model = grow(lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3), activation(), nn.Linear(3, 1)),
                 torch.float64, 0)  # fmt: skip
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)).double()
    analysis = lh.analyze(lh.Objective(model, (x, model(x).detach() + 24.0), log_cosh))
    assert abs(analysis.blocks["4.bias"].eigenvalues[0]) <= analysis.blocks["4.bias"].error_bounds[0] + 1e-20
