"""Functions rewritten for products: the same values and derivatives as torch's, and a right third derivative."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import layerhess as lh
from layerhess.curvature.double_backward.mode import Rewritten
from references.stable_functions import stable_functions

WEIGHT, BIAS = torch.linspace(0.5, 1.5, 6).double(), torch.linspace(-1.0, 1.0, 6).double()
MASK = torch.ones(4, 6, dtype=torch.bool).triu(2)
SEEN = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)  # one row sees nothing
ADDED = torch.linspace(-1.0, 1.0, 16).view(4, 4)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu by tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "log of a sigmoid": F.logsigmoid,
    "softmax": lambda x: F.softmax(x, dim=-1),
    "softmax along the middle": lambda x: x.softmax(1),
    "softmax with a dtype": lambda x: torch.softmax(x, -1, dtype=x.dtype),
    "softmax, masked": lambda x: x.masked_fill(MASK, float("-inf")).softmax(-1),
    "attention": lambda x: _attention(x),
    "attention, causal": lambda x: _attention(x, is_causal=True, scale=0.3),
    "attention, masked": lambda x: _attention(x, attn_mask=SEEN),
    "attention, a mask that is added": lambda x: _attention(
        x, attn_mask=torch.linspace(-1.0, 1.0, 16).view(4, 4).to(x)
    ),
    "log softmax": lambda x: F.log_softmax(x, 1),
    "layer norm": lambda x: F.layer_norm(x, (6,)),
    "layer norm, large eps": lambda x: F.layer_norm(x, (6,), eps=0.5),
    "layer norm over two dimensions": lambda x: F.layer_norm(x, (4, 6)),
    "group norm": lambda x: F.group_norm(x, 2, WEIGHT[:4].to(x), BIAS[:4].to(x)),
    "group norm of images": lambda x: F.group_norm(x.view(-1, 4, 2, 3), 2, None, BIAS[:4].to(x)).view_as(x),
    "group norm, channels last": lambda x: F.group_norm(_channels_last(x), 2, WEIGHT[:4].to(x)).reshape(x.shape),
    "group norm of vectors": lambda x: F.group_norm(x.flatten(0, 1), 3).view_as(x),
    "instance norm": lambda x: F.instance_norm(x, weight=WEIGHT[:4].to(x)),
    "instance norm, fixed": lambda x: F.instance_norm(
        x, BIAS[:4].to(x), WEIGHT[:4].to(x), BIAS[:4].to(x), None, use_input_stats=False
    ),
    "batch norm in train mode": lambda x: F.batch_norm(x, None, None, WEIGHT[:4].to(x), BIAS[:4].to(x), True),
    "batch norm in train mode, channels last": lambda x: F.batch_norm(
        _channels_last(x), None, None, training=True
    ).reshape(x.shape),
}


def _attention(x: Tensor, **options: Any) -> Tensor:
    """torch's fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(x, x.sin(), x.flip(-1), **options)


def _channels_last(x: Tensor) -> Tensor:
    return x.view(-1, 4, 2, 3).contiguous(memory_format=torch.channels_last)


def _in_dtype(name: str, x: Tensor) -> Tensor:
    """The function with its weights in the dtype of x."""
    weight, bias = WEIGHT.to(x), BIAS.to(x)
    if name == "batch norm":
        return F.batch_norm(x, bias[:4], weight[:4], weight[:4], bias[:4])
    chosen = {"weight": (weight, None), "bias": (None, bias), "both": (weight, bias)}[name.split(", ")[1]]
    return F.layer_norm(x, (6,), *chosen)


WEIGHED = ("layer norm, weight", "layer norm, bias", "layer norm, both", "batch norm")
FUNCTIONS |= {name: partial(_in_dtype, name) for name in WEIGHED}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=list(FUNCTIONS))


def _rewritten(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with Rewritten():
            return function(x)

    return run


def _two_orders(function: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Value, gradient along fixed weights, and the derivatives of <h, gradient> in x and in those weights."""
    x = x.clone().requires_grad_()
    g = torch.cos(torch.arange(x.numel(), dtype=x.dtype)).view(x.shape).requires_grad_()
    h = torch.sin(torch.arange(x.numel(), dtype=x.dtype) + 1.0).view(x.shape)
    y = function(x)
    (first,) = torch.autograd.grad(y, x, g, create_graph=True)
    second = torch.autograd.grad(first, [x, g], h, materialize_grads=True)
    return [y.detach(), first.detach(), *second]


@every_function
def test_values_and_two_derivatives_are_those_of_torch(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x = 3.0 * torch.randn(3, 4, 6, dtype=torch.float64)
    x[0, 0, 0], x[0, 1, 0] = 0.0, -40.0
    for ours, theirs in zip(_two_orders(_rewritten(function), x), _two_orders(function, x), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-12)


@every_function
def test_second_derivatives_are_those_of_finite_differences(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(_rewritten(function), x)


@every_function
def test_float32_is_as_close_as_torchs_own(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(2)
    x = 2.0 * torch.randn(5, 4, 6)
    x[0, 0, 0], x[1, 0, 0] = 30.0, -30.0
    exact = _two_orders(function, x.double())
    for ours, theirs, right in zip(_two_orders(_rewritten(function), x), _two_orders(function, x), exact, strict=True):
        size = right.abs().max()
        assert (ours - right).abs().max() <= max(4.0 * (theirs - right).abs().max(), 1e-6 * size)


def test_saturated_units_have_derivatives_with_all_their_digits() -> None:
    x = torch.tensor([-300.0, -30.0, -9.0, 0.0, 9.0, 30.0, 300.0]).double()
    e = torch.exp(-2.0 * x.abs())
    steep = 4.0 * e / (1 + e) ** 2
    g, h = torch.cos(torch.arange(7.0).double()), torch.sin(torch.arange(7.0).double() + 1.0)
    _, first, bent, slope = _two_orders(_rewritten(torch.tanh), x)
    torch.testing.assert_close(first, g * steep, rtol=1e-13, atol=0)
    torch.testing.assert_close(slope, h * steep, rtol=1e-13, atol=0)
    torch.testing.assert_close(bent, -2.0 * g * h * x.sign() * steep * (1 - e) / (1 + e), rtol=1e-12, atol=0)


@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_inside_of_torchs_module_keeps_its_digits(need_weights: bool) -> None:
    """Of two places, whose scores are 30 apart: what is left of p (1 - p) is 1e-13."""
    module = nn.MultiheadAttention(1, 1, dtype=torch.float64)
    with torch.no_grad():
        module.in_proj_weight.fill_(1.0)
        module.in_proj_bias.zero_()
    x, g = torch.tensor([[5.0], [11.0]], dtype=torch.float64), torch.tensor([[1.0], [-2.0]], dtype=torch.float64)

    def second() -> Tensor:
        weight = module.in_proj_weight
        y = module(x, x, x, need_weights=need_weights)[0]
        (slope,) = torch.autograd.grad((y * g).sum(), weight, create_graph=True)
        return torch.stack([torch.autograd.grad(s, weight, retain_graph=True)[0][:2] for s in slope[:2, 0]])

    before = F.scaled_dot_product_attention, F.softmax
    with Rewritten():
        ours = second()
    assert (F.scaled_dot_product_attention, F.softmax) == before
    with sdpa_kernel(SDPBackend.MATH):
        theirs = second()
        with stable_functions():
            exact = second()
    off, torchs = ((made - exact).norm() / exact.norm() for made in (ours, theirs))
    assert off < 1e-13 and torchs > 1e-5


def test_attention_that_somebody_else_put_into_torchs_module_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = nn.MultiheadAttention(4, 2, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    torchs = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **kwargs: 0.5 * torchs(*args, **kwargs))
    theirs = module(x, x, x, need_weights=False)[0]
    with Rewritten():
        made = module(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(made, theirs, rtol=1e-12, atol=0)


def test_the_gradient_of_batch_norm_is_right_whatever_the_layout_of_what_comes_back() -> None:
    """torch's own (2.13) is wrong in eval mode for a single example whose gradient is not contiguous."""
    torch.manual_seed(0)
    norm, h = nn.BatchNorm2d(2).double().eval(), torch.randn(1, 2, 3, 3).double().requires_grad_()
    back = torch.randn(1, 9, 2).double().transpose(1, 2).view(1, 2, 3, 3)  # as of the last of nine places
    with Rewritten():
        slope = torch.autograd.grad(norm(h), norm.weight, back)[0]
    torch.testing.assert_close(slope, (back * h.detach() / (1.0 + norm.eps) ** 0.5).sum((0, 2, 3)))


def test_every_function_is_intercepted_as_modules_call_it() -> None:
    modules = [nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.LayerNorm(6)]
    for module in modules:
        with Rewritten():
            made = module(torch.randn(2, 6, requires_grad=True))
        assert "Backward" in type(made.grad_fn).__name__ and "Gelu" not in str(made.grad_fn), module
        assert "NativeLayerNorm" not in str(made.grad_fn) and "Silu" not in str(made.grad_fn)
    x = torch.randn(2, 6, requires_grad=True)
    with Rewritten():
        for made in (F.softmax(x, -1), torch.softmax(x, -1), x.softmax(-1), nn.Softmax(-1)(x)):
            assert "SoftmaxBackward0" not in str(made.grad_fn)
        assert "SoftmaxBackward0" in str(F.softmax(x, -1, dtype=torch.float64).grad_fn)
        assert "SoftmaxBackward0" in str(torch.softmax(x, -1, torch.float64).grad_fn)


@every_function
def test_third_derivatives_are_those_of_finite_differences(function: Callable[[Tensor], Tensor]) -> None:
    """Of <second derivative, direction> along one direction; torch's own are wrong for three of the norms."""
    generator = torch.Generator().manual_seed(3)
    x, h, u, v = (torch.randn(2, 4, 6, dtype=torch.float64, generator=generator) for _ in range(4))

    def second(x: Tensor) -> Tensor:
        y = _rewritten(function)(x)
        g = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape)
        (first,) = torch.autograd.grad((y.sin() * g).sum(), x, create_graph=True)
        return torch.autograd.grad((first.sin() * h).sum(), x, create_graph=True)[0]

    leaf = x.requires_grad_()
    (third,) = torch.autograd.grad((second(leaf) * u).sum(), leaf)
    step = 1e-5
    ahead, behind = ((second((x.detach() + s * v).requires_grad_()) * u).sum().detach() for s in (step, -step))
    assert torch.allclose((third * v).sum(), (ahead - behind) / (2.0 * step), rtol=1e-6)


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(6), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4), nn.BatchNorm1d(4)], ids=str
)
def test_forward_mode_and_transforms_are_right_through_norms(norm: nn.Module) -> None:
    """Reverse over forward, which is wrong through torch's own, against central differences."""
    norm = norm.double()
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    generator = torch.Generator().manual_seed(4)
    x, v, u, g = (torch.randn(3, 4, 6, dtype=torch.float64, generator=generator) for _ in range(4))

    def slope(x: Tensor) -> Tensor:
        with Rewritten():
            return torch.func.jvp(lambda x: (norm(x).sin() * g).sum(), (x,), (v,))[1]

    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(slope(leaf), leaf)
    step = 1e-5
    assert torch.allclose((found * u).sum(), (slope(x + step * u) - slope(x - step * u)) / (2.0 * step), rtol=1e-6)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_norms_keep_layout_and_running_statistics(last: bool) -> None:
    x = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    calls: list[Callable[[list[Tensor]], Tensor]] = [
        lambda s: F.group_norm(x, 2),
        lambda s: F.instance_norm(x, *s, momentum=0.3),
        lambda s: F.batch_norm(x, *s, training=True, momentum=0.3),
    ]
    for call in calls:
        ours, theirs = ([torch.zeros(4).double(), torch.ones(4).double()] for _ in range(2))
        with Rewritten():
            made = call(ours)
        expected = call(theirs)
        assert made.stride() == expected.stride()
        torch.testing.assert_close([made, *ours], [expected, *theirs])


def test_in_place_half_precision_and_packed_tensors_stay_as_they_are() -> None:
    x = torch.randn(3, 6)
    with Rewritten():
        y = x.clone()
        assert F.silu(y, inplace=True) is y and torch.equal(y, F.silu(x))
        half = F.gelu(x.bfloat16().requires_grad_())
        assert "Gelu" in str(half.grad_fn)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            assert "Gelu" in str(F.gelu(x.clone().requires_grad_()).grad_fn)


class _Recomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8), nn.SiLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(checkpoint(self.inner, x, use_reentrant=False))


def test_recomputed_activations_give_the_same_products() -> None:
    torch.manual_seed(0)
    model = _Recomputed().double()
    plain = nn.Sequential(*model.inner, model.head)
    data = (torch.randn(9, 5, dtype=torch.float64), torch.randint(0, 3, (9,)))
    found = lh.Hessian(lh.Objective(model, data, nn.CrossEntropyLoss())).to_dense()
    same = lh.Hessian(lh.Objective(plain, data, nn.CrossEntropyLoss())).to_dense()
    assert torch.allclose(found, same, rtol=1e-10, atol=1e-13)


class _Energy(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), act, nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("act", [nn.SiLU(), nn.GELU(), nn.Softmax(-1)], ids=str)
@pytest.mark.parametrize("through", ["analyze", "Hessian"])
def test_losses_that_differentiate_the_network_themselves_still_work(act: nn.Module, through: str) -> None:
    """Matching forces takes a third derivative."""
    torch.manual_seed(0)
    model = _Energy(act).double()
    data = (torch.randn(12, 3, dtype=torch.float64), torch.randn(12, 3, dtype=torch.float64))

    @torch.enable_grad()
    def forces(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        x, f = batch
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return ((g - f) ** 2).sum(), len(x)

    weight = model.net[2].weight
    total, count = forces(model, data)
    (g,) = torch.autograd.grad(total / count, weight, create_graph=True)
    rows = [torch.autograd.grad(entry, weight, retain_graph=True)[0].flatten() for entry in g.flatten()]
    dense = torch.stack(rows).detach()
    objective = lh.Objective(model, data, lh.batch_loss(forces))
    if through == "analyze":
        found = lh.analyze(objective, blocks="weight").blocks["net.2.weight"]
        assert abs(found.eigenvalues[0] - float(torch.linalg.eigvalsh(dense)[-1])) <= found.error_bounds[0] + 1e-12
    else:
        block = lh.Hessian(objective, blocks="weight").block("net.2.weight").to_dense()
        assert torch.allclose(block, dense, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(8), nn.BatchNorm1d(8), nn.BatchNorm1d(8).eval(), nn.GroupNorm(2, 8)], ids=str
)
def test_where_a_norm_stays_torchs_own_a_wrong_third_derivative_is_refused(norm: nn.Module) -> None:
    """Of LayerNorm and of BatchNorm in train mode, under checkpoints; the others' are right."""
    torch.manual_seed(0)
    parts = nn.Sequential(nn.Linear(3, 8), norm, nn.Tanh())

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts, self.head = parts, nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Any:
            return self.head(checkpoint(self.parts, x, use_reentrant=False))

    def slopes(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        x = batch[0].clone().requires_grad_()
        (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return g.square().sum(), len(x)

    model = Checkpointed().double()
    data = (torch.randn(9, 3, dtype=torch.float64),)
    objective = lh.Objective(model, data, lh.batch_loss(slopes))
    if isinstance(norm, nn.GroupNorm) or not norm.training:
        plain = lh.Objective(nn.Sequential(*parts, model.head), data, lh.batch_loss(slopes))
        dense = lh.Hessian(objective).to_dense()
        torch.testing.assert_close(dense, lh.Hessian(plain).to_dense())
    else:
        with pytest.raises(
            lh.InputError, match=f"through {'Layer' if isinstance(norm, nn.LayerNorm) else 'Batch'}Norm"
        ):
            lh.analyze(objective)


def test_what_layer_norm_returns_may_be_overwritten() -> None:
    class Modulated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
            self.norm = nn.LayerNorm(8, elementwise_affine=False)

        def forward(self, x: Tensor, overwrite: bool = True) -> Tensor:
            z = self.norm(self.a(x))
            if overwrite:
                z *= 1.5
                z += 0.1
                return self.b(z)
            return self.b(z * 1.5 + 0.1)

    torch.manual_seed(0)
    model = Modulated().double()
    x, y = torch.randn(9, 5, dtype=torch.float64), torch.randint(0, 3, (9,))
    found = lh.Hessian(lh.Objective(model, (x, y), nn.CrossEntropyLoss()), blocks="weight").block("a.weight").to_dense()
    (g,) = torch.autograd.grad(F.cross_entropy(model(x, False), y), model.a.weight, create_graph=True)
    rows = [torch.autograd.grad(entry, model.a.weight, retain_graph=True)[0].flatten() for entry in g.flatten()]
    assert torch.allclose(found, torch.stack(rows), rtol=1e-9, atol=1e-12)


def test_transforms_forward_mode_and_out_arguments_meet_torchs_own_functions() -> None:
    x, w = torch.randn(3, 6), torch.randn(4, 6)
    with Rewritten():
        assert torch.func.vmap(lambda w: F.layer_norm(x, (6,), w))(w).shape == (4, 3, 6)
        assert torch.func.vmap(lambda w: F.gelu(x) * w.sum())(w).shape == (4, 3, 6)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            assert torch.autograd.forward_ad.unpack_dual(F.silu(dual)).tangent is not None
        buffer = torch.empty(3, 6)
        assert torch.softmax(x, -1, out=buffer) is buffer
    assert "Silu" in str(F.silu(x.requires_grad_()).grad_fn)
