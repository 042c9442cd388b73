"""Every criterion as a sum and a count: unequal batches give torch's own mean over all the data, exactly."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from layerhess.objective.criteria import Criterion
from outputs_and_targets import CLASSES, Scaled, classes, numbers
from refusals import Table, X, Y, analysis, mlp

SIZES = (5, 1, 3)
WEIGHTS = torch.tensor([0.5, 2.0, 1.25, 0.75], dtype=torch.float64)


class Example(NamedTuple):
    """All outputs and all targets of a data set."""

    output: Tensor
    target: Tensor


N = sum(SIZES)


def logits(ignored: int | None = None) -> Example:
    return Example(numbers(N, CLASSES), classes(N, ignored=ignored))


def sequences(ignored: int | None = None) -> Example:
    return Example(numbers(N, CLASSES, 6), classes(N, 6, ignored=ignored))


def log_probabilities(ignored: int | None = None) -> Example:
    return Example(numbers(N, CLASSES).log_softmax(1), classes(N, ignored=ignored))


def distributions() -> Example:
    return Example(numbers(N, CLASSES), numbers(N, CLASSES).softmax(1))


def values() -> Example:
    return Example(numbers(N, 3), numbers(N, 3))


def bits() -> Example:
    return Example(numbers(N, 3), torch.randint(0, 2, (N, 3)).double())


def probabilities() -> Example:
    return Example(torch.rand(N, 3, dtype=torch.float64), torch.rand(N, 3, dtype=torch.float64))


def signs() -> Example:
    return Example(numbers(N, 3), torch.randint(0, 2, (N, 3)).double() * 2 - 1)


def counts() -> Example:
    return Example(numbers(N, 3), torch.randint(0, 5, (N, 3)).double())


def log_pairs() -> Example:
    return Example(numbers(N, CLASSES).log_softmax(1), numbers(N, CLASSES).softmax(1))


def label_lists() -> Example:
    return Example(numbers(N, CLASSES), torch.tensor([[1, 3, -1, 0]] * N))


CRITERIA: dict[str, tuple[Callable[..., nn.Module], Callable[[], Example]]] = {
    "cross entropy": (nn.CrossEntropyLoss, logits),
    "cross entropy, ignored": (nn.CrossEntropyLoss, lambda: logits(-100)),
    "cross entropy, ignore_index=2": (functools.partial(nn.CrossEntropyLoss, ignore_index=2), logits),
    "cross entropy, weights": (functools.partial(nn.CrossEntropyLoss, weight=WEIGHTS), logits),
    "cross entropy, smoothing": (functools.partial(nn.CrossEntropyLoss, label_smoothing=0.2), lambda: logits(-100)),
    "cross entropy, everything": (
        functools.partial(nn.CrossEntropyLoss, weight=WEIGHTS, label_smoothing=0.2, ignore_index=-1),
        lambda: logits(-1),
    ),
    "cross entropy, sequences": (functools.partial(nn.CrossEntropyLoss, weight=WEIGHTS), lambda: sequences(-100)),
    "cross entropy, distributions": (nn.CrossEntropyLoss, distributions),
    "cross entropy, distributions, weights": (
        functools.partial(nn.CrossEntropyLoss, weight=WEIGHTS, label_smoothing=0.1),
        distributions,
    ),
    "nll": (nn.NLLLoss, log_probabilities),
    "nll, weights, ignored": (functools.partial(nn.NLLLoss, weight=WEIGHTS), lambda: log_probabilities(-100)),
    "nll, sequences": (functools.partial(nn.NLLLoss, weight=WEIGHTS), lambda: sequences(-100)),
    "mse": (nn.MSELoss, values),
    "l1": (nn.L1Loss, values),
    "smooth l1": (functools.partial(nn.SmoothL1Loss, beta=0.3), values),
    "huber": (functools.partial(nn.HuberLoss, delta=0.7), values),
    "bce": (nn.BCELoss, probabilities),
    "bce logits": (functools.partial(nn.BCEWithLogitsLoss, pos_weight=WEIGHTS[:3]), bits),
    "poisson": (functools.partial(nn.PoissonNLLLoss, full=True), counts),
    "soft margin": (nn.SoftMarginLoss, signs),
    "hinge embedding": (nn.HingeEmbeddingLoss, signs),
    "kl": (nn.KLDivLoss, log_pairs),
    "kl, batchmean": (functools.partial(nn.KLDivLoss, reduction="batchmean"), log_pairs),
    "multi label margin": (nn.MultiLabelMarginLoss, label_lists),
    "multi label soft margin": (functools.partial(nn.MultiLabelSoftMarginLoss, weight=WEIGHTS[:3]), bits),
    "multi margin": (functools.partial(nn.MultiMarginLoss, margin=0.6, weight=WEIGHTS), logits),
}

FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[], Example]]] = {
    "cross_entropy": (F.cross_entropy, lambda: logits(-100)),
    "cross_entropy, options": (
        functools.partial(F.cross_entropy, weight=WEIGHTS, label_smoothing=0.1, ignore_index=1),
        logits,
    ),
    "nll_loss": (functools.partial(F.nll_loss, weight=WEIGHTS), lambda: log_probabilities(-100)),
    "mse_loss": (F.mse_loss, values),
    "l1_loss": (F.l1_loss, values),
    "smooth_l1_loss": (functools.partial(F.smooth_l1_loss, beta=0.5), values),
    "huber_loss": (F.huber_loss, values),
    "binary_cross_entropy": (F.binary_cross_entropy, probabilities),
    "binary_cross_entropy_with_logits": (
        functools.partial(F.binary_cross_entropy_with_logits, pos_weight=WEIGHTS[:3]),
        bits,
    ),
    "poisson_nll_loss": (functools.partial(F.poisson_nll_loss, log_input=True), counts),
    "soft_margin_loss": (F.soft_margin_loss, signs),
    "kl_div": (functools.partial(F.kl_div, reduction="batchmean"), log_pairs),
}


def totals(loss: Any, example: Example, sizes: tuple[int, ...] = SIZES) -> tuple[float, float, bool]:
    """Sum of the batches' sums, of their counts, and whether the loss is itself a sum."""
    batches = list(zip(example.output.split(sizes), example.target.split(sizes), strict=True))
    objective = lh.Objective(Scaled(), batches, loss)
    with objective.session():
        pairs = [objective.terms(batch) for batch in objective.batches()]
    return sum(value.item() for value, _ in pairs), sum(count for _, count in pairs), objective.evaluation.is_sum


@pytest.mark.filterwarnings("ignore:reduction")  # torch's advice about KLDivLoss
@pytest.mark.parametrize("name", CRITERIA)
def test_unequal_batches_give_the_mean_that_torch_takes_over_everything(name: str) -> None:
    make, example = CRITERIA[name][0], CRITERIA[name][1]()
    total, count, is_sum = totals(make(), example)
    expected = float(make()(example.output, example.target))
    assert not is_sum
    assert total / count == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in CRITERIA if "batchmean" not in name])
def test_a_sum_stays_a_sum(name: str) -> None:
    make, example = CRITERIA[name][0], CRITERIA[name][1]()
    total, _, is_sum = totals(make(reduction="sum"), example)
    assert is_sum
    assert total == pytest.approx(float(make(reduction="sum")(example.output, example.target)), rel=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_their_partial_forms_are_known_too(name: str) -> None:
    loss, example = FUNCTIONS[name][0], FUNCTIONS[name][1]()
    total, count, _ = totals(loss, example)
    assert total / count == pytest.approx(float(loss(example.output, example.target)), rel=1e-12)
    options = {**getattr(loss, "keywords", {}), "reduction": "sum"}
    summed = functools.partial(getattr(loss, "func", loss), **options)
    total, _, is_sum = totals(summed, example)
    assert is_sum and total == pytest.approx(float(summed(example.output, example.target)), rel=1e-12)


def test_a_mean_of_batch_means_would_be_wrong() -> None:
    """What all this is for."""
    example = logits(-100)
    parts = zip(example.output.split(SIZES), example.target.split(SIZES), strict=True)
    means = torch.stack([F.cross_entropy(*part) for part in parts]).nan_to_num()
    exact = float(F.cross_entropy(*example))
    assert abs(float(means.mean()) - exact) > 0.05 * exact


def test_an_unknown_callable_is_a_mean_over_the_first_dimension() -> None:
    example = values()

    def focal(output: Tensor, target: Tensor) -> Tensor:
        return ((output - target).abs() ** 3).sum(1).mean()

    total, count, _ = totals(focal, example)
    assert count == N
    assert total / count == pytest.approx(float(focal(*example)), rel=1e-12)


def test_an_unknown_callable_without_a_hash_is_taken() -> None:
    class Loss:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, output: Tensor, target: Tensor) -> Tensor:
            return (output - target).square().mean()

    total, count, _ = totals(Loss(), values())
    assert count == N and total > 0.0


@pytest.mark.parametrize("empty", [0, 1, 2], ids=["first", "middle", "last"])
def test_an_empty_batch_among_others_adds_nothing(empty: int) -> None:
    sizes = tuple(0 if i == empty else N // 2 + i % 2 for i in range(3))
    example = Example(*(t[: sum(sizes)] for t in values()))
    for loss in (nn.MSELoss(), lambda o, t: (o - t).square().mean()):
        total, count, _ = totals(loss, example, sizes)
        assert total / count == pytest.approx(float(F.mse_loss(*example)), rel=1e-12)


def test_losses_that_cancel_are_no_failed_mean() -> None:
    """A signed loss may be nothing over a batch and large on its parts; rounding is judged by the parts."""
    model = nn.Linear(3, 1, bias=False)
    batches = []
    for _ in range(2):
        x, advantage = torch.randn(6, 3), 1e4 * torch.randn(6)
        squares = model(x).detach().square().squeeze(1)
        advantage[-1] = -(squares[:-1] * advantage[:-1]).sum() / squares[-1]
        batches.append((x, advantage))

    def policy_gradient(output: Tensor, advantage: Tensor) -> Tensor:
        return (output.square().squeeze(1) * advantage).mean()

    analysis = lh.analyze(lh.Objective(model, batches, policy_gradient))
    assert abs(analysis.loss) < 1.0 and abs(analysis.blocks["weight"].eigenvalues[0]) > 1e3


# -- refused in words --------------------------------------------------------------------------------------------------

TABLE = Table()
case = TABLE.case

case("no scalar: reduction='none'", "reduction='none'")(analysis(loss=nn.CrossEntropyLoss(reduction="none")))
case("no scalar: a partial function with reduction='none'", "reduction='none'")(
    analysis(loss=functools.partial(F.cross_entropy, reduction="none"))
)
case("a class instead of a criterion", "CrossEntropyLoss()", "parentheses")(analysis(loss=nn.CrossEntropyLoss))
case("a loss that cannot be called", "cannot be called")(analysis(loss="cross entropy"))
case("a criterion of three arguments", "input_lengths", "batch_loss")(analysis(loss=nn.CTCLoss()))
case("an output that is no tensor", "returned tuple", "batch_loss")(analysis(model=lambda: nn.LSTM(4, 3)))

ROWS = torch.arange(12.0)
LARGER = ("(12, 1)", "(12,)", "(12, 12)", "unsqueeze")
for _name, _loss in {
    "MSELoss": nn.MSELoss(),
    "mse_loss": F.mse_loss,
    "a partial function": functools.partial(F.smooth_l1_loss, beta=0.5),
    "a function of one's own": lambda o, t: (o - t).square().mean(),
    "an absolute error of one's own": lambda o, t: (o - t).abs().mean(),
}.items():
    case(f"enlarging broadcast: {_name}", *LARGER)(analysis((X, ROWS), _loss, lambda: mlp(outputs=1)))
case("enlarging broadcast: integer targets", *LARGER)(
    analysis((X, torch.arange(12)), lambda o, t: (o - t).square().mean(), lambda: mlp(outputs=1))
)
case("enlarging broadcast: the other way round", "(12,)", "(12, 1)", "(12, 12)")(
    analysis((X, ROWS[:, None]), nn.MSELoss(), lambda: nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)))
)

OUT = ("class index", "out of range", "batch 1")
FOUR = [(X, Y), (X, Y + 1)]
case("class index: too large", *OUT, "index 3", "3 classes", "0 to 2")(analysis(FOUR))
case("class index: negative", *OUT, "index -1", "ignore_index")(analysis([(X, Y), (X, Y - 1)]))
case("class index: for a partial function", *OUT)(
    analysis(FOUR, functools.partial(F.cross_entropy, label_smoothing=0.1))
)
case("class index: for a function of one's own", *OUT)(analysis(FOUR, lambda o, t: F.cross_entropy(o, t)))
case("class index: inside batch_loss", *OUT)(
    analysis(FOUR, lh.batch_loss(lambda m, b: (F.cross_entropy(m(b[0]), b[1], reduction="sum"), len(b[1]))))
)
case("class index: numbers with a fraction", "float32", "long()")(analysis((X, Y.float())))
case("targets of another length", "does not take", "(12, 3)", "(5,)", "batch 0")(analysis([(X, Y[:5])]))


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", TABLE)
def test_bad_data_and_losses_are_refused_in_words(name: str) -> None:
    TABLE.check(name)


DTYPES: dict[str, tuple[nn.Module, Any]] = {
    **{
        f"{type(loss).__name__} against {dtype}": (loss, torch.arange(6).view(6, 1).to(dtype) / 1)
        for loss in (nn.HuberLoss(), nn.SmoothL1Loss(), nn.MSELoss(), nn.L1Loss(), nn.PoissonNLLLoss())
        for dtype in (torch.float64, torch.float16)
    },
    **{
        f"{type(loss).__name__} against {dtype}": (loss, (torch.arange(6).view(6, 1) % 2).to(dtype))
        for loss in (nn.HuberLoss(), nn.MSELoss(), nn.BCEWithLogitsLoss(), nn.SoftMarginLoss(), nn.PoissonNLLLoss())
        for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool)
    },
    "cross entropy against int32": (nn.CrossEntropyLoss(), torch.arange(6, dtype=torch.int32) % 1),
    "cross entropy against float64": (nn.CrossEntropyLoss(weight=torch.ones(1)), torch.ones(6, 1).double()),
    "MultiMargin against int32": (nn.MultiMarginLoss(), torch.zeros(6, dtype=torch.int32)),
    "BCE with weights": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0])), torch.ones(6, 1).double()),
}  # fmt: skip


@pytest.mark.parametrize("name", DTYPES)
def test_a_target_of_another_dtype_gives_the_loss_and_gradient_of_float64(name: str) -> None:
    loss, target = DTYPES[name]
    output = torch.linspace(-1.5, 2.0, 6).view(6, 1)
    single, double = output.clone().requires_grad_(), output.double().requires_grad_()
    value, count = Criterion(loss)(single, target)
    indices = isinstance(loss, nn.MultiMarginLoss) or (name.endswith("int32") and "cross" in name)
    exact = copy.deepcopy(loss).double()(double, target.long() if indices else target.double())
    assert float(value.detach()) / count == pytest.approx(float(exact.detach()), rel=1e-6)
    (gradient,), (expected,) = torch.autograd.grad(value / count, single), torch.autograd.grad(exact, double)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-7)
    each = Criterion(loss).losses(output, target)
    assert each is not None and float(each.sum()) == pytest.approx(float(value.detach()), rel=1e-6)
