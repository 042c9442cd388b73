"""Networks that consist of repeated blocks, each as small as its kind allows, for tests of segments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from zoo_models import Attention

VOCABULARY, LENGTH = 7, 5


class Layer(nn.Module):
    """A pre-LayerNorm transformer layer; takes its mask by keyword and returns a tuple, as transformers' layers do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 2, fused=True, causal=True)
        self.inner = nn.Sequential(nn.Linear(width, width + 1), nn.GELU(), nn.Linear(width + 1, width))

    def forward(self, x: Tensor, *, scale: Tensor, flags: dict[str, Any]) -> tuple[Tensor, None, dict[str, Tensor]]:
        assert flags["none"] is None
        x = x + self.attention(self.first(x)) * scale
        x = x + self.inner(self.second(x))
        return x, None, {"mean": x.mean()}


class Tied(nn.Module):
    """A causal language model; its output layer is its embedding, the scale of its layers a parameter of its own."""

    def __init__(self, layers: int = 2, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.scale = nn.Parameter(torch.tensor(0.8))
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        x, total = self.embed(tokens), 0.0
        for layer in self.layers:
            x, _, beside = layer(x, scale=self.scale, flags={"none": None, "word": "w"})
            total = total + beside["mean"]
        return (x @ self.embed.weight.T + total).transpose(1, 2)


class Recycled(nn.Module):
    """One layer that is called three times, as in ALBERT."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 4)
        self.layer = Layer(4)
        self.out = nn.Linear(4, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for scale in torch.tensor([0.5, 1.0, 2.0], dtype=x.dtype):
            x = self.layer(x, scale=scale, flags={"none": None})[0]
        return self.out(x).transpose(1, 2)


class Residual(nn.Module):
    """Conv - BN - ReLU in place - conv - BN, plus the input, ReLU in place; on its first input it halves the image."""

    def __init__(self, wide: int, halve: bool = False) -> None:
        super().__init__()
        self.inner = nn.Conv2d(wide, wide, 3, padding=1, stride=1 + halve, bias=False)
        self.norm = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.outer = nn.Conv2d(wide, wide, 1, bias=False)
        self.shortcut = nn.AvgPool2d(2) if halve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.outer(self.relu(self.norm(self.inner(x))))
        return torch.tanh(inner) + self.shortcut(x)


def resnet() -> nn.Module:
    """Two stages of two residual blocks; BatchNorm in eval mode, with statistics of its own."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.Sequential(Residual(2), Residual(2)),
        nn.Sequential(Residual(2, halve=True), Residual(2)),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model


def plain(activation: Callable[[], nn.Module] = nn.SiLU) -> nn.Sequential:
    """Nine plain layers in a Sequential; one activation is there twice, the last works in place."""
    same = activation()
    layers = [nn.Linear(3, 4), same, nn.Linear(4, 4), same, nn.Linear(4, 4), nn.ReLU(inplace=True), nn.LayerNorm(4)]
    return nn.Sequential(*layers, nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))


@dataclass(frozen=True)
class Repeated:
    """One network, its batches, the loss by hand (see zoo_losses) and the segments that are to be found."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    targets: Callable[[int], Tensor]
    segments: tuple[str, ...]

    def build(self, dtype: torch.dtype = torch.float64, sizes: tuple[int, ...] = (3, 2)) -> lh.Objective:
        """The objective, seeded."""
        torch.manual_seed(0)
        model = self.make().to(dtype)
        inputs = [self.inputs(n) for n in sizes]
        data = [(x.to(dtype) if x.is_floating_point() else x, self.targets(len(x))) for x in inputs]
        return lh.Objective(model, data, nn.CrossEntropyLoss())


def _words(n: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (n, LENGTH))


def _classes(n: int) -> Tensor:
    return torch.randint(0, 3, (n,))


REPEATED = {
    "transformer": Repeated(Tied, _words, _words, ("layers.0", "layers.1")),
    "resnet": Repeated(resnet, lambda n: torch.randn(n, 1, 4, 4), _classes, ("1.0", "1.1", "2.0", "2.1")),
    "plain layers": Repeated(plain, lambda n: torch.randn(n, 3), _classes, ("0 to 3", "4 to 7", "8 to 9")),
}


def curved(outputs: Tensor, target: Tensor) -> Tensor:
    """Cross entropy, as a function of logits and classes."""
    return F.cross_entropy(outputs, target, reduction="sum")
