"""Error bounds of networks so sure of their classes that a few undecided examples carry all the curvature.

The truth is the dense float64 Hessian of the float32 weights and inputs. The cross entropy is written as log1p of the
other classes' odds, which has the digits of 1 - p.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh

Loss = Callable[[Tensor, Tensor], Tensor]
FULL = "(full model)"


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))


def confident(seed: int, scale: float, labels: str = "own") -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network whose logits are ``scale`` times too large, inputs, and its own classes or random ones."""
    torch.manual_seed(seed)
    model, x = network(), torch.randn(60, 7)
    with torch.no_grad():
        model[-1].weight.mul_(scale)  # type: ignore[operator]
        y = model(x).argmax(dim=1) if labels == "own" else torch.randint(4, (60,))
    return model, x, y


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    top = z.detach().argmax(dim=1, keepdim=True)
    over = z - z.gather(1, top)
    others = over.exp().scatter(1, top, 0.0).sum(dim=1)
    return (torch.log1p(others) - over.gather(1, y[:, None])[:, 0]).mean()


def truth(model: nn.Module, x: Tensor, y: Tensor, loss: Loss = cross_entropy) -> dict[str, np.ndarray]:
    """Eigenvalues of every block and of the whole model, from the largest down."""
    copied = network().double()
    copied.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    shapes = {name: p.shape for name, p in copied.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]
    inputs, target = x.double(), y.double() if y.is_floating_point() else y

    def of_weights(flat: Tensor) -> Tensor:
        parts = {n: v.view(s) for (n, s), v in zip(shapes.items(), flat.split(sizes), strict=True)}
        return loss(torch.func.functional_call(copied, parts, (inputs,)), target)

    flat = torch.cat([p.detach().reshape(-1) for p in copied.parameters()])
    whole = torch.autograd.functional.hessian(of_weights, flat, vectorize=True)
    ends = np.cumsum(sizes)
    blocks = {n: whole[e - k : e, e - k : e] for n, e, k in zip(shapes, ends, sizes, strict=True)} | {FULL: whole}
    return {name: np.linalg.eigvalsh(block.numpy())[::-1] for name, block in blocks.items()}


def excesses(found: lh.Analysis, true: dict[str, np.ndarray]) -> dict[str, float]:
    """Block -> its largest distance from a true eigenvalue (the k-th, if complete), in error bounds."""
    made = {}
    for name, spectrum in {**found.blocks, **({} if found.full is None else {FULL: found.full})}.items():
        exact, values = true[name], spectrum.eigenvalues
        near = np.abs(exact[None] - values[:, None]).min(axis=1)
        off = np.abs(exact[: len(values)] - values) if spectrum.complete else near
        off = np.where(off <= 1e-13 * np.abs(exact).max(), 0.0, off)  # the reference is float64 as well
        made[name] = float((off / np.maximum(spectrum.error_bounds, 1e-300)).max())
    return made


def broken(
    seeds: range, scales: tuple[float, ...], path: str, labels: str, top: int = 1, batch: int | None = None
) -> tuple[int, list[str]]:
    """How many spectra there were, and those that lie outside of their bounds."""
    count, wrong = 0, []
    for seed in seeds:
        for scale in scales:
            model, x, y = confident(seed, scale, labels)
            data = (x, y) if batch is None else list(zip(x.split(batch), y.split(batch), strict=True))
            objective = lh.Objective(model, data, nn.CrossEntropyLoss())
            try:
                found = lh.analyze(objective, path=path, full=path in ("exact", "auto"), top=top)
            except (lh.CheckError, lh.InputError):  # float32 has lost symmetry, or the factors: no number is given
                continue
            made = excesses(found, truth(model, x, y))
            count += len(made)
            wrong += [f"{seed}, {scale:g}, {name}: {ratio:.3g}" for name, ratio in made.items() if ratio > 1.0]
    return count, wrong


@pytest.mark.parametrize("path", ["exact", "auto", "factors", "gram"])
def test_bounds_hold_where_few_examples_carry_the_curvature(path: str) -> None:
    count, wrong = broken(range(2), (30.0, 300.0, 3e3, 1e4), path, "own")
    assert count >= 20 and not wrong


@pytest.mark.parametrize("path", ["exact", "gram"])
def test_bounds_hold_with_labels_that_the_network_is_sure_are_wrong(path: str) -> None:
    count, wrong = broken(range(190, 192), (30.0, 100.0, 1e3), path, "random")
    assert count >= 20 and not wrong


@pytest.mark.parametrize("path", ["exact", "auto", "gram"])
def test_bounds_hold_for_several_pairs(path: str) -> None:
    count, wrong = broken(range(2), (100.0, 1e3), path, "own", top=3)
    assert count >= 12 and not wrong


def test_bounds_hold_for_many_batches() -> None:
    count, wrong = broken(range(2), (100.0, 300.0), "auto", "own", batch=7)
    assert count >= 15 and not wrong


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["own", "random"])
@pytest.mark.parametrize("path", ["exact", "auto", "gram"])
def test_bounds_hold_over_many_networks(path: str, labels: str) -> None:
    count, wrong = broken(range(200, 240), (1.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4), path, labels)
    assert count >= 800 and not wrong


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bce", "poisson"])
def test_bounds_hold_for_other_curved_losses(kind: str) -> None:
    criterion = nn.BCEWithLogitsLoss() if kind == "bce" else nn.PoissonNLLLoss()
    done = 0
    for seed in range(12):
        for scale in (1.0, 10.0, 30.0, 100.0):
            model, x, _ = confident(seed, scale)
            target = (model(x).detach() > 0).float()
            for path in ("exact", "gram"):
                try:
                    found = lh.analyze(lh.Objective(model, (x, target), criterion), path=path, full=False)
                except lh.InputError:  # an exponential of more than float32 holds
                    continue
                done += 1
                assert max(excesses(found, truth(model, x, target, criterion)).values()) <= 1.0, (seed, scale, path)
    assert done >= 80


def test_what_float32_cannot_see_has_a_bound_all_the_same() -> None:
    model, x, y = confident(2, 1e5)  # every class is sure to 1e-45
    true = truth(model, x, y)
    found = lh.analyze(lh.Objective(model, (x, y), nn.CrossEntropyLoss()), path="exact")
    for name, spectrum in found.blocks.items():
        assert spectrum.status.startswith("zero") and 0.0 < spectrum.error_bounds[0] < 1e-30
        assert true[name][0] <= spectrum.error_bounds[0]
