"""What autograd gives is the derivative of the loss: honest networks pass, kinks and all; others are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from layerhess.checks.gradient import GradientCheck
from layerhess.curvature.counters import Counters
from references.dense import flat_parameters, rows_of_hessian
from witness import refused, untouched
from wrong_gradients import CE, RIGHT, WRONG, Hidden, Net, X, Y, function, hooked, normalised, quantised

kinked_or_smooth = pytest.mark.parametrize("act", [torch.relu, torch.tanh], ids=["relu", "tanh"])


@kinked_or_smooth
@pytest.mark.parametrize("kind", WRONG)
def test_a_gradient_of_something_else_is_refused_with_its_cause_and_a_way_out(
    kind: str, act: Callable[[Tensor], Tensor]
) -> None:
    change, cause = WRONG[kind]
    for dtype, operator in ((torch.float32, "hessian"), (torch.float64, "gauss_newton")):
        model = Net(change, act).to(dtype)
        with refused(model, "not the gradient of the loss", cause, "--stop-gradients constant") as caught:
            lh.analyze(lh.Objective(model, (X.to(dtype), Y), CE), operator=operator, full=False)
        assert "first.weight" in caught.value.where and len(str(caught.value)) <= 400


@kinked_or_smooth
def test_blocks_whose_gradient_is_right_are_analysed(act: Callable[[Tensor], Tensor]) -> None:
    model = Net(normalised, act)
    analysis = lh.analyze(lh.Objective(model, (X, Y), CE), skip_failed=True)
    refused_blocks = {name for name, block in analysis.blocks.items() if block.status.startswith("refused")}
    assert refused_blocks == {"first.weight", "first.bias"}
    assert analysis.full is not None and analysis.full.status.startswith("refused")


@kinked_or_smooth
@pytest.mark.parametrize("kind", RIGHT)
def test_honest_functions_pass(kind: str, act: Callable[[Tensor], Tensor]) -> None:
    for dtype in (torch.float32, torch.float64):
        model = Net(RIGHT[kind], act).to(dtype)
        analysis = lh.analyze(lh.Objective(model, (X.to(dtype), Y), CE))
        assert analysis.converged
        assert any(check.name == "first derivative" and "agrees" in check.detail for check in analysis.checks)


def test_units_that_sit_on_a_kink_are_no_fault() -> None:
    """A zero bias on blank inputs: at the weights themselves the loss has no derivative."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.zeros_(model[0].bias)
    blank = X.clone()
    blank[:8] = 0.0
    assert lh.analyze(lh.Objective(model, (blank, Y), CE)).converged


class _Steep(nn.Linear):
    """Behind it the next is as steep: a step of 1e-7 moves the loss across many kinks."""

    scale = 1.0  # of the gradient

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.detach() + self.scale * (self.weight - self.weight.detach())
        return F.relu6(F.linear(x, weight, self.bias))


def _steep(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [_Steep(64, 64) for _ in range(12)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=3.5 * (2 / 64) ** 0.5)
        nn.init.uniform_(layer.bias, -1.0, 3.0)
    return nn.Sequential(*layers, nn.Linear(64, 3)).double()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_many_kinks_beside_the_weights_are_no_fault(seed: int) -> None:
    model = _steep(seed)
    data = torch.randn(16, 64).double(), torch.randint(3, (16,))
    found = {}
    for scale in (1.0, 1.01):
        model[3].scale = scale
        objective = lh.Objective(model, data, CE)
        with objective.session():
            checked = objective.narrowed(list(objective.batches()))
            found[scale] = GradientCheck(checked, list(checked.parameters), 0, Counters()).disagreement()
    assert not found[1.0].tensors and found[1.0].worst is not None and found[1.0].worst <= 5e-7
    assert "3.weight" in found[1.01].tensors


class _Waves(nn.Module):
    """A loss that is stiff and smooth: its slope is another at a step of a wave's length."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        return (self.frequency * x).sin()


@pytest.mark.parametrize(("dtype", "frequency"), [*((torch.float32, f) for f in (2e3, 1e4, 1e5)), (torch.float64, 1e5)])
@pytest.mark.parametrize("seed", range(3))
def test_a_stiff_loss_is_no_fault(dtype: torch.dtype, frequency: float, seed: int) -> None:
    """Differences at two of the larger steps may agree by chance, far from the slope."""
    torch.manual_seed(seed)
    model = nn.Sequential(_Steep(8, 16), _Waves(frequency), nn.Linear(16, 3)).to(dtype)
    data = torch.randn(16, 8, dtype=dtype), torch.randint(3, (16,))
    refused = {}
    for scale in (1.0, 1.05):
        model[0].scale = scale
        objective = lh.Objective(model, data, CE)
        with objective.session():
            checked = objective.narrowed(list(objective.batches()))
            refused[scale] = GradientCheck(checked, list(checked.parameters), 0, Counters()).disagreement().tensors
    assert refused[1.05] and not refused[1.0]


@kinked_or_smooth
def test_a_loss_whose_gradient_is_right_here_but_not_its_derivative(act: Callable[[Tensor], Tensor]) -> None:
    """The divergence from one's own detached output is 0 everywhere, with gradient 0; its Hessian is not Fisher's."""

    def own_divergence(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        logs = F.log_softmax(model(batch[0]), 1)
        own = F.kl_div(logs, logs.detach(), log_target=True, reduction="sum")
        return own + F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

    model = Net(lambda z: z, act)
    with refused(model, "finite differences", "detach() in the loss"):
        lh.analyze(lh.Objective(model, (X, Y), lh.batch_loss(own_divergence)))


@pytest.mark.parametrize("name", ["SignSTE", "MaxSpike", "ClampedSpike", "ReluBackward0"])
def test_a_custom_function_is_believed_nothing_for_its_name(name: str) -> None:
    """In a smooth network the blocks before it have no licence, and its second derivative is looked at."""
    custom = type(name, (torch.autograd.Function,), {
        "forward": staticmethod(lambda ctx, z: (ctx.save_for_backward(z), z * z)[1]),
        "backward": staticmethod(lambda ctx, g: 2 * g * ctx.saved_tensors[0].detach()),
    })  # fmt: skip
    model = Net(custom.apply, torch.relu)
    with refused(model, "finite differences", f"({name})"):
        lh.analyze(lh.Objective(model, (X, Y), CE), full=False)
    allowed = lh.analyze(lh.Objective(model, (X, Y), CE), full=False, skip_failed=True)
    assert {n for n, block in allowed.blocks.items() if "factors" in block.path} <= {"last.weight", "last.bias"}


# -- constants by request ----------------------------------------------------------------------------------------------


def test_stopped_gradients_are_constants_on_request() -> None:
    """DQN: the target does not count. The Hessian of the loss with that target written down as numbers."""
    following = torch.randn(12, 6, generator=torch.Generator().manual_seed(1)).double()

    def td(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        target = 0.3 + 0.9 * model(batch[1]).max(1).values.detach()
        chosen = model(batch[0]).gather(1, Y[:, None]).squeeze(1)
        return F.mse_loss(chosen, target, reduction="sum"), len(target)

    model = Net(lambda z: z, torch.relu).double()
    x = X.double()
    with torch.no_grad():
        target = 0.3 + 0.9 * model(following).max(1).values

    def loss(flat: Tensor) -> Tensor:
        given, start = {}, 0
        for name, p in model.named_parameters():
            given[name] = flat[start : start + p.numel()].view(p.shape)
            start += p.numel()
        return F.mse_loss(torch.func.functional_call(model, given, (x,)).gather(1, Y[:, None]).squeeze(1), target)

    truth = rows_of_hessian(loss, flat_parameters(model))
    objective = lh.Objective(model, (x, following), lh.batch_loss(td), stop_gradients="constant")
    with untouched(model):
        analysis = lh.analyze(objective, top=2, bottom=1)
    assert analysis.full is not None and analysis.converged
    values = np.linalg.eigvalsh(truth)[::-1]
    for got, bound, wanted in zip(
        analysis.full.eigenvalues, analysis.full.error_bounds, values[[0, 1, -1]].tolist(), strict=True
    ):
        assert abs(got - wanted) <= bound + 1e-12
    assert analysis.settings["stop_gradients"] == "constant"
    assert "with stopped gradients held constant" in str(analysis)
    assert any("with stopped gradients held constant" in note for note in analysis.notes)


def test_a_straight_through_quantiser_has_the_curvature_at_its_quantised_weights() -> None:
    class Quantised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, quantised(self.weight), self.bias)

    torch.manual_seed(0)
    model = nn.Sequential(Quantised(6, 8), nn.Tanh(), Quantised(8, 3)).double()
    rounded = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    rounded.load_state_dict({n: torch.round(4 * v) / 4 if "weight" in n else v for n, v in model.state_dict().items()})
    found = lh.analyze(lh.Objective(model, (X.double(), Y), CE, stop_gradients="constant"), top=2)
    wanted = lh.analyze(lh.Objective(rounded, (X.double(), Y), CE), top=2)
    for name, block in wanted.blocks.items():
        bound = block.error_bounds + found.blocks[name].error_bounds
        assert (abs(block.eigenvalues - found.blocks[name].eigenvalues) <= bound).all()


def test_a_backward_that_is_the_gradient_of_nothing_stays_refused() -> None:
    """Asymmetric: rows of the Jacobian of a vector field that no function has for its gradient."""
    swirl = function(torch.sin, lambda g, z: g * z.cos() + z.roll(1, 1).cos() * g.roll(1, 1) * 0.5)
    model = Net(swirl, torch.tanh).double()
    with refused(model, "asymmetric"):
        lh.analyze(lh.Objective(model, (X.double(), Y), CE, stop_gradients="constant"))


def test_the_choice_is_checked_and_kept_by_variants() -> None:
    model = Net(lambda z: z, torch.tanh)
    with refused(model, "stop_gradients", "'refuse' or 'constant'"):
        lh.Objective(model, (X, Y), CE, stop_gradients="ignore")
    objective = lh.Objective(model, (X, Y), CE).with_stop_gradients("constant")
    for variant in (objective, objective.with_mode("eval"), objective.with_batch_size(3), objective.subset(5)):
        assert variant.stop_gradients == "constant"


# -- the figure itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 1.0 + 1e-7, 1.0 + 1e-3, 2.0])
def test_the_figure_is_the_relative_error_of_the_gradient(factor: float) -> None:
    scaled = function(torch.sin, lambda g, z: factor * g * z.cos())
    model = nn.Sequential(nn.Linear(6, 3), Hidden(scaled)).double()
    objective = lh.Objective(model, (X.double(), Y), CE)
    objective.data = [objective.data]
    with untouched(model), objective.session():
        found = GradientCheck(objective, list(objective.parameters), 0, Counters()).disagreement()
    error = (factor - 1.0) / factor
    assert found.worst == pytest.approx(error, rel=3e-3, abs=1e-7)
    assert set(found.tensors) == (set(objective.parameters) if error > 5e-7 else set())


def test_a_weak_detach_in_a_weak_block_is_seen() -> None:
    """Off by 2e-3 in a block whose gradient is a thousandth of the whole."""

    class Weak(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.m, self.b = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, z: Tensor) -> Tensor:
            size = 1.0 + 0.005 * self.m.weight.norm().detach()
            return self.b(torch.relu(self.m(torch.relu(self.a(z)))) / size)  # type: ignore[no-any-return]

    for seed in (128, 189):
        torch.manual_seed(seed)
        x, y = torch.randn(20, 5).double(), torch.randint(3, (20,))
        model = Weak().double()
        with refused(model, "stop_gradients='constant'"):
            lh.analyze(lh.Objective(model, (x, y), CE), full=False)


class Sometimes(nn.Module):
    """Units that one example wakes, or an expert that one example is sent to; what they do is not differentiated."""

    def __init__(self, expert: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.hidden, self.last = nn.Linear(6, 8), Hidden(hooked), nn.Linear(6, 3)
        self.expert = expert
        with torch.no_grad():
            self.first.weight.abs_()
            self.first.bias.fill_(-0.1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.last(x)
        if not self.expert or bool((x[:, 0] > 0).any()):
            z = z + self.hidden(torch.relu(self.first(x)))[:, :3]
        return z  # type: ignore[no-any-return]


@pytest.mark.parametrize("little", [True, False])
@pytest.mark.parametrize("expert", [False, True])
def test_a_gradient_that_the_sample_does_not_show_is_looked_at_where_it_is(
    expert: bool, little: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not little:
        monkeypatch.setattr("layerhess.checks.sample.WHOLE", 0)
    x, y = -torch.rand(60, 6, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    x[27] += 1.0
    data = [(x[:20], y[:20]), (x[20:40], y[20:40]), (x[40:], y[40:])]
    for change in (hooked, lambda z: z):
        model = Sometimes(expert)
        model.hidden.change = change
        objective = lh.Objective(model, data, CE)
        if change is hooked:
            with refused(model, "block 'first.weight' is not the gradient of the loss", "a tensor hook in hidden"):
                lh.analyze(objective, full=False)
        else:
            assert lh.analyze(objective, full=False).converged


@pytest.mark.parametrize("operator", ["gauss_newton", "empirical_fisher"])
def test_the_gradient_of_nothing_is_refused_whatever_the_matrix(operator: str) -> None:
    rolled = function(torch.tanh, lambda g, z: g * (1 - torch.tanh(z.roll(1, 1)) ** 2))
    for dtype in (torch.float32, torch.float64):
        model = Net(rolled, lambda z: z).to(dtype)
        objective = lh.Objective(model, (X.to(dtype), Y), CE, stop_gradients="constant")
        with refused(model, "asymmetric"):
            lh.analyze(objective, operator=operator)


def test_a_stopped_value_without_a_gradient_has_the_same_way_out() -> None:
    def squared(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        output = model(batch[0])
        return F.cross_entropy(output, batch[1], reduction="sum") + (output - output.detach()).square().sum(), 12

    model = Net(lambda z: z, torch.relu)
    with refused(model, "detach() in the loss", "stop_gradients='constant'"):
        lh.analyze(lh.Objective(model, (X, Y), lh.batch_loss(squared)))


class TwoDetaches(nn.Module):
    """One is plain in the gradient of ``middle``; the other is far below the limit in that of ``first``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.first(x))
        z = z * (1.0 + 1e-7 * self.first.weight.square().sum().detach())
        z = self.middle(z) * (1.0 + self.middle.weight.norm().detach())
        return self.last(torch.tanh(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_one_gradient_is_wrong_the_others_are_judged_strictly(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = TwoDetaches().to(dtype)
    objective = lh.Objective(model, (X.to(dtype), Y), CE)
    found = lh.analyze(objective, blocks="weight", full=False, skip_failed=True)
    refused = {name for name, s in found.blocks.items() if s.status.startswith("refused")}
    assert refused == {"first.weight", "middle.weight"}
    double = TwoDetaches().double()
    double.load_state_dict(model.state_dict())
    head = flat_parameters(double.last)

    def loss(flat: Tensor) -> Tensor:
        parts = {"last.weight": flat[:15].view(3, 5), "last.bias": flat[15:]}
        return CE(torch.func.functional_call(double, parts, (X.double(),)), Y)

    true = np.linalg.eigvalsh(rows_of_hessian(loss, head)[:15, :15])[-1]
    last = found.blocks["last.weight"]
    assert abs(last.eigenvalues[0] - true) <= last.error_bounds[0] + 1e-14


class Confident(nn.Module):
    """One weight, and probabilities within 5e-5 of 1: the loss's log of 1 - p has lost five digits."""

    def __init__(self, z: float) -> None:
        super().__init__()
        self.weight, self.z = nn.Parameter(torch.ones(1, dtype=torch.float64)), z

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x * self.weight + self.z)


@pytest.mark.parametrize("z", [10.0, 12.0])
def test_a_loss_that_is_rounded_more_than_it_seems_is_not_held_against_its_gradient(z: float) -> None:
    """At one step two differences agree by chance, and are off by 1e-6 and 1e-5."""
    x, y = torch.tensor([[0.5], [-0.3], [0.9]]).double(), torch.tensor([[1.0], [1.0], [0.0]]).double()
    found = lh.analyze(lh.Objective(Confident(z), (x, y), nn.BCELoss())).full
    e = np.exp(-x.numpy() - z)
    true = float(np.mean(x.numpy() ** 2 * e / (1.0 + e) ** 2))
    assert found is not None and abs(found.eigenvalues[0] - true) <= found.error_bounds[0] + 1e-8 * true


@pytest.mark.parametrize("rounds", [True, False])
def test_torchs_own_quantisers_are_not_passed_because_no_step_of_float32_shows_their_derivative(rounds: bool) -> None:
    """The module of eager-mode quantisation-aware training has 256 levels, and works in float32 only."""
    torch.manual_seed(0)
    quantiser = torch.ao.quantization.FusedMovingAvgObsFakeQuantize(quant_min=0, quant_max=255, dtype=torch.quint8)
    model = nn.Sequential(nn.Linear(5, 6), quantiser, nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(12, 5), torch.arange(12) % 3
    model(x)
    quantiser.disable_observer()
    if not rounds:
        quantiser.disable_fake_quant()
        plain = nn.Sequential(model[0], nn.ReLU(), model[3])
        found, other = (lh.analyze(lh.Objective(m, (x, y), nn.CrossEntropyLoss())) for m in (model, plain))
        assert found.full is not None and other.full is not None
        assert abs(found.full.eigenvalues[0] - other.full.eigenvalues[0]) < 1e-5
        return
    for operator in ("hessian", "empirical_fisher"):
        with pytest.raises(lh.CheckError, match="not the gradient of the loss.*fake_quant.*in 1 .*stop_gradients"):
            lh.analyze(lh.Objective(model, (x, y), nn.CrossEntropyLoss()), operator=operator)
    held = lh.Objective(model, (x, y), nn.CrossEntropyLoss(), stop_gradients="constant")
    assert lh.analyze(held).full is not None
