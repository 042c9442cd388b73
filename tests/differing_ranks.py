"""What the ranks of tests/objective/test_differing_ranks.py are given: not the same."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import layerhess as lh
from commands import quick_report
from on_ranks import network, place, share

FOLDER = "DIFFERING_RANKS"  # the variable with a folder for results
CE = nn.CrossEntropyLoss


def narrow() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def relu() -> nn.Module:
    """The same parameters in another function."""
    made = network()
    made[1] = nn.ReLU()
    return made


def named() -> nn.Module:
    made = network()
    return nn.Sequential(*[made[0], made[1], nn.Identity(), made[2]])


def changed(**how: Any) -> nn.Module:
    made = network()
    for name, value in how.items():
        if name == "values":
            with torch.no_grad():
                made[0].bias += value
        elif name == "frozen":
            made[0].bias.requires_grad_(False)
    return made


class Scaled(nn.Module):
    """What its class does not tell: a factor, and how much of its input is detached."""

    def __init__(self, factor: float = 1.0, detached: float = 0.0) -> None:
        super().__init__()
        self.factor, self.detached = factor, detached

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * torch.tanh((1.0 - self.detached) * x + self.detached * x.detach())


def coded(factor: float) -> nn.Module:
    made = network()
    made[1] = Scaled(factor)
    return made


def detached(share: float) -> nn.Module:
    made = network()
    made[1] = Scaled(detached=share)
    return made


def leaky(slope: float) -> nn.Module:
    made = network()
    made[1] = nn.LeakyReLU(slope)
    return made


def with_norm(train: bool) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3)).double()
    return made.train(train)


def single() -> lh.Objective:
    return lh.Objective(network(torch.float32), [(x.float(), y) for x, y in share()], CE())


def objective(model: Callable[[], nn.Module] = network, loss: Any = None, **options: Any) -> lh.Objective:
    return lh.Objective(model(), share(), loss or CE(), **options)


def out(name: str) -> Path:
    return Path(os.environ[FOLDER], name)


# what differs -> the call of rank 0 and that of rank 1
ARGUMENTS: dict[str, tuple[Any, Any]] = {
    "top": (1, 2), "bottom": (0, 1), "seed": (0, 1), "blocks": ("module", "parameter"), "exclude": (0.05, None),
    "memory": ("1GiB", "2GiB"), "path": ("exact", "gram"), "trace": (False, True), "diagonal": (True, False),
    "density": (lh.Density(probes=2), lh.Density(probes=4)), "coupling": (False, True), "sampling": (False, True),
    "full": (True, False), "tol": (1e-3, 1e-4), "method": ("lanczos", "power"), "copies": ("search", "unchecked"),
    "operator": ("hessian", "gauss_newton"), "max_passes": (500, 3), "time_limit": (None, 100.0),
    "segments": ("auto", None), "skip_failed": (False, True), "resume": (True, False),
}  # fmt: skip
PATTERNS = ({"last": "2.*"}, {"last": "0.*"})
FUNCTIONS = (lambda name, parameter: name, lambda name, parameter: name[0])
OBJECTIVES: dict[str, tuple[Callable[[], lh.Objective], Callable[[], lh.Objective]]] = {
    "shape": (objective, lambda: objective(narrow)),
    "values": (objective, lambda: objective(lambda: changed(values=1e-6))),
    "dtype": (objective, single),
    "frozen": (objective, lambda: objective(lambda: changed(frozen=True))),
    "names": (objective, lambda: objective(named)),
    "function": (objective, lambda: objective(relu)),
    "loss": (objective, lambda: objective(loss=nn.MultiMarginLoss())),
    "weights of the loss": (objective, lambda: objective(loss=CE(label_smoothing=0.1))),
    "reduction": (objective, lambda: objective(loss=CE(reduction="sum"))),
    "code of the model": (lambda: objective(lambda: coded(1.0)), lambda: objective(lambda: coded(1.1))),
    "code of a derivative": (
        lambda: objective(lambda: detached(0.0), stop_gradients="constant"),
        lambda: objective(lambda: detached(0.5), stop_gradients="constant"),
    ),
    "slope": (lambda: objective(lambda: leaky(0.1)), lambda: objective(lambda: leaky(0.2))),
    "loss function": (
        objective,
        lambda: objective(loss=lambda output, target: nn.functional.cross_entropy(output, target)),
    ),
    "mode": (lambda: objective(lambda: with_norm(False)), lambda: objective(lambda: with_norm(True))),
    "mode asked for": (lambda: objective(mode="as-is"), lambda: objective(mode="eval")),
    "batch_size": (objective, lambda: objective(batch_size=3)),
    "stop_gradients": (objective, lambda: objective(stop_gradients="constant")),
}


@contextmanager
def other_version(package: str) -> Iterator[None]:
    real = importlib.metadata.version
    with pytest.MonkeyPatch.context() as monkeypatch:
        if package == "torch":
            monkeypatch.setattr(torch, "__version__", "0.0.1")
        monkeypatch.setattr(importlib.metadata, "version", lambda of: "0.0.1" if of == package else real(of))
        yield


def said(call: Callable[[], Any]) -> str:
    try:
        analysis = call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"nothing was raised {[float(one.eigenvalues[0]) for one in analysis.spectra() if len(one.eigenvalues)]}"


def everything() -> dict[str, str]:
    rank, _ = place()
    found = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick_report(monkeypatch)
        for name, given in ARGUMENTS.items():
            asked: dict[str, Any] = {"blocks": "module", "full": False, name: given[rank]}
            if name == "resume":
                asked["out"] = out("resume")
            found[name] = said(lambda asked=asked: lh.analyze(objective(), **asked))
        for name, blocks in {"patterns": PATTERNS, "functions": FUNCTIONS}.items():
            found[name] = said(lambda blocks=blocks: lh.analyze(objective(), blocks=blocks[rank], full=False))
        for name, make in OBJECTIVES.items():
            found[f"the {name}"] = said(lambda make=make: lh.analyze(make[rank](), full=False))
        for package in ("torch", "layerhess"):
            with other_version(package) if rank else pytest.MonkeyPatch.context():
                found[f"version of {package}"] = said(lambda: lh.analyze(objective(), full=False))
        for number in (0, 1):
            given = {"out": out(f"of rank {number}")} if rank == number else {}
            found[f"out of rank {number} only"] = said(lambda given=given: lh.analyze(objective(), full=False, **given))
        calls = (lambda: lh.analyze(objective()), lambda: lh.eigsh(lh.Hessian(objective()), 1))
        found["function called"] = said(calls[rank])
        found["after"] = said(lambda: lh.analyze(objective(), full=False))
    return found
