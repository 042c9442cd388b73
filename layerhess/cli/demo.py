"""The demo's model and data: a small residual ReLU network, trained on the spot on real handwritten digits.

Everything here is ordinary PyTorch; the analysis gets only the trained model and the training batches, the plan of its
bits the test digits too. The network is small (about 6,000 parameters), so that training it and analysing all its
parameters on the whole training set takes a minute or two on two slow cores. It has what real networks have:
convolutions, BatchNorm, residual connections, a strided stage with a projected shortcut, a linear head.

The data are the 1,797 digits of 8 x 8 pixels that come with scikit-learn (Alpaydin and Kaynak, 1998, UCI Machine
Learning Repository: Optical Recognition of Handwritten Digits); nothing is downloaded.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from layerhess.errors import InputError
from layerhess.linalg.stochastic.density import Density
from layerhess.objective.objective import Objective

EPOCHS = 20
TRAINING_BATCH = 64
ANALYSIS_BATCH = 512
PEAK_LEARNING_RATE = 0.2
WEIGHT_DECAY = 2e-3
TEST_SHARE = 0.2
SPLIT_SEED = 0
PLANNED = {"options": (2, 3, 4, 8), "budget": "4bit"}
ASKED = {"trace": True, "density": Density(probes=4), "coupling": True, "sampling": True}  # beside eigenvalues


@dataclass(frozen=True)
class DemoProblem:
    """A trained model with the data it was trained on, ready for `lh.Objective`.

    Attributes:
        model: the trained network, in eval mode, float32, on the CPU.
        batches: the whole training set in order, as (images, labels) pairs: images (n, 1, 8, 8) float32 in [-1, 1],
            labels (n,) int64 in 0..9; every batch has 512 examples except the last, smaller one.
        train_accuracy: share of the training examples the model gets right, in eval mode, between 0 and 1.
        test_accuracy: the same for the held-out examples.
        seconds: wall-clock seconds that loading and training took.
        names: for each parameter, by its name in `model.named_parameters()`, what it is in plain words.
        held_out: the test set, in batches of the same form; None where there is none.
    """

    model: nn.Module
    batches: list[tuple[Tensor, Tensor]]
    train_accuracy: float
    test_accuracy: float
    seconds: float
    names: dict[str, str]
    held_out: list[tuple[Tensor, Tensor]] | None = None

    @property
    def examples(self) -> int:
        """Number of training examples."""
        return sum(len(labels) for _, labels in self.batches)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def in_float64(self) -> Objective:
        """Mean cross entropy of a copy in float64: decided where float32 leaves open which side of a kink one is on."""
        batches = [(images.double(), labels) for images, labels in self.batches]
        return Objective(copy.deepcopy(self.model).double(), batches, nn.CrossEntropyLoss())


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each with BatchNorm, and a shortcut around them (He and others, 2016).

    Maps (n, channels_in, h, w) to (n, channels_out, h / stride, w / stride). Where the shape changes, the shortcut is
    a 1 x 1 convolution with BatchNorm; elsewhere it is the input itself.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(shortcut(x) + residual(x)), (n, channels_out, h / stride, w / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.shortcut(x))


class DigitNet(nn.Module):
    """A residual ReLU network for 8 x 8 digits: images (n, 1, 8, 8) in, logits (n, 10) out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(8)
        self.block1 = ResidualBlock(8, 8)
        self.block2 = ResidualBlock(8, 16, stride=2)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, 10) of the images x (n, 1, 8, 8)."""
        x = functional.relu(self.stem_bn(self.stem(x)))
        x = self.block2(self.block1(x))
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def build(seed: int = 0, report: Callable[[str], None] | None = None) -> DemoProblem:
    """Load the digits, train the network, and return both.

    The split into training and test examples is stratified and always the same; `seed` decides the initial weights and
    the order of the examples. Training runs in one thread: small batches gain nothing from more, and each time the
    result is the same. On another processor, whose last digits differ, other weights come out of it. The caller's
    random state and number of threads are left as they were.

    Args:
        seed: seed of the initial weights and of the order of the training examples.
        report: called with lines of plain text (the data, every fifth epoch, the result); None prints nothing.

    Returns:
        The trained problem; see `DemoProblem` for shapes and units.

    Raises:
        InputError: scikit-learn, which contains the data, is not installed.
    """
    tell = report if report is not None else _quiet
    started = time.perf_counter()
    (train_x, train_y), (test_x, test_y) = _digits()
    tell(f"{len(train_y)} handwritten digits to train on, {len(test_y)} held out")
    with _one_thread(), torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        model = DigitNet()
        _train(model, train_x, train_y, tell)
        model.eval()
        train_accuracy, test_accuracy = _accuracy(model, train_x, train_y), _accuracy(model, test_x, test_y)
    seconds = time.perf_counter() - started
    tell(f"trained in {seconds:.0f} s: {train_accuracy:.1%} of the training and {test_accuracy:.1%} of the test digits")
    batches, held_out = _batches(train_x, train_y), _batches(test_x, test_y)
    return DemoProblem(model, batches, train_accuracy, test_accuracy, seconds, _names(model), held_out)


def objective(seed: int = 0) -> Objective:
    """Return the demo as an `Objective`, for `layerhess analyze layerhess.cli.demo:objective` and for experiments.

    Trains the network again at each call (see `build` for the time it takes and the errors it raises); the loss is the
    mean cross entropy over the whole training set.
    """
    problem = build(seed)
    return Objective(problem.model, problem.batches, nn.CrossEntropyLoss())


def _batches(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The examples in order, 512 at a time."""
    return list(zip(torch.split(x, ANALYSIS_BATCH), torch.split(y, ANALYSIS_BATCH), strict=True))


def _quiet(line: str) -> None:
    """Ignore a line of progress."""


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute in one thread; restores the number of threads at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return ((train images, labels), (test images, labels)): (n, 1, 8, 8) float32 in [-1, 1] and (n,) int64."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise InputError(
            "the demo's digits come with scikit-learn, which is not installed",
            where="layerhess.cli.demo",
            what_to_do="install it with: pip install 'layerhess[demo]' (or: pip install scikit-learn)",
        ) from error
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=labels
    )
    return (_pixels(train_x), torch.tensor(train_y)), (_pixels(test_x), torch.tensor(test_y))


def _pixels(images: object) -> Tensor:
    """Turn (n, 64) grey values of 0..16 into (n, 1, 8, 8) float32 in [-1, 1]."""
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8.0 - 1.0


def _train(model: nn.Module, x: Tensor, y: Tensor, tell: Callable[[str], None]) -> None:
    """Train in place: SGD with Nesterov momentum and the one-cycle learning rate (Smith and Topin, 2018)."""
    steps = -(-len(y) // TRAINING_BATCH)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=PEAK_LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=EPOCHS * steps)
    model.train()
    for epoch in range(1, EPOCHS + 1):
        total = 0.0
        for chosen in torch.split(torch.randperm(len(y)), TRAINING_BATCH):
            loss = functional.cross_entropy(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        if epoch % 5 == 0:
            tell(f"epoch {epoch} of {EPOCHS}: mean training loss {total / len(y):.4f}")
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of the images x that the model labels y."""
    return float((model(x).argmax(dim=1) == y).double().mean())


def _names(model: nn.Module) -> dict[str, str]:
    """Describe each parameter in plain words."""
    names = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=module_name, recurse=False):
            if isinstance(module, nn.Conv2d):
                side = module.kernel_size[0]
                words = f"{side} x {side} convolution, {module.in_channels} to {module.out_channels} channels"
            elif isinstance(module, nn.BatchNorm2d):
                words = "BatchNorm scale" if name.endswith("weight") else "BatchNorm shift"
            else:
                words = "linear head, weights" if name.endswith("weight") else "linear head, biases"
            names[name] = f"{words} ({parameter.numel()} numbers)"
    return names
