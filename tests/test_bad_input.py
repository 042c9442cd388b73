"""Bad input, through Python: a sentence with what, where and what to do, and the model untouched. One case per entry."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

import layerhess as lh
from witness import refused

Call = Callable[[], Any]
Case = Callable[[], tuple[nn.Module | None, Call]]
CASES: dict[str, tuple[Case, tuple[str, ...]]] = {}

CE = nn.CrossEntropyLoss()
generator = torch.Generator().manual_seed(0)
X = torch.randn(12, 4, generator=generator)
Y = torch.arange(12) % 3
PAIRS = [(X[:7], Y[:7]), (X[7:], Y[7:])]
P = 43  # parameters of mlp()


def mlp(*extra: nn.Module, outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), *extra, nn.Linear(5, outputs))


def case(name: str, *matches: str) -> Callable[[Case], Case]:
    """Enter a function that makes a model and a call, which must be refused with these words."""

    def enter(make: Case) -> Case:
        assert name not in CASES, name
        CASES[name] = make, matches
        return make

    return enter


def analysis(
    data: Any = PAIRS,
    loss: Any = CE,
    model: Callable[[], nn.Module] = mlp,
    options: dict[str, Any] | None = None,
    **arguments: Any,
) -> Case:
    """Refused while the objective is made or analysed."""

    def make() -> tuple[nn.Module, Call]:
        made = model()
        given = data() if callable(data) else data
        return made, lambda: lh.analyze(lh.Objective(made, given, loss, **(options or {})), **arguments)

    return make


# -- data --------------------------------------------------------------------------------------------------------------

for _name, _data in {
    "an empty list": [],
    "an empty tuple": (),
    "an empty mapping": {},
    "an empty loader": DataLoader(TensorDataset(X[:0], Y[:0]), batch_size=4),
    "batches without examples": (X[:0], Y[:0]),
}.items():
    case(f"empty data: {_name}", "data", "give|at least one|pass")(analysis(_data))
case("empty data: a mean over no examples", "no examples", "data")(
    analysis((X[:0], torch.zeros(0, 3)), lambda o, t: (o - t).square().mean())
)

for _name, _iterator in {
    "a generator": lambda: (pair for pair in PAIRS),
    "an iterator of a list": lambda: iter(PAIRS),
    "a map": lambda: map(tuple, PAIRS),
    "a zip": lambda: zip([X], [Y], strict=True),
}.items():
    case(f"one-shot: {_name}", "one-shot", "second pass", "DataLoader")(analysis(_iterator))


class Changing:
    """Other batches at every pass."""

    def __init__(self, *passes: Any) -> None:
        self.passes, self.number = passes, -1

    def __iter__(self) -> Iterator[Any]:
        self.number += 1
        return iter(self.passes[min(self.number, len(self.passes) - 1)])


class OneIterator:
    """Looks re-iterable, and hands out the same iterator each time."""

    def __init__(self) -> None:
        self.iterator = iter(PAIRS)

    def __iter__(self) -> Iterator[Any]:
        return self.iterator


case("second pass: empty", "changed between two passes", "empty")(analysis(lambda: Changing(PAIRS, [])))
case("second pass: the same iterator, used up", "changed between two passes", "empty")(analysis(OneIterator))
case("second pass: fewer batches", "changed between two passes", "7 where it was 12")(
    analysis(lambda: Changing(PAIRS, PAIRS[:1]))
)
case("second pass: more batches", "changed between two passes")(analysis(lambda: Changing(PAIRS[:1], PAIRS)))
case("second pass: other values", "changes from pass to pass")(analysis(lambda: Changing(PAIRS, [(X + 1.0, Y)])))


class Augmented(Dataset[Any]):
    """Every look at an example shows it differently."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        return X[i] + 0.1 * torch.randn(4), Y[i]


case("second pass: random augmentation", "changes from pass to pass", "without randomness")(
    analysis(DataLoader(Augmented(), batch_size=4))
)
case("second pass: another draw of examples", "changes from pass to pass")(
    analysis(DataLoader(TensorDataset(X, Y), batch_size=4, sampler=WeightedRandomSampler([1.0] * 12, 12)))
)
case("second pass: another batch dropped", "drop_last=False")(
    analysis(DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True, drop_last=True))
)

BOTH = ("(x, y)", "[(x1, y1), (x2, y2), ...]")
case("two bare tensors in a list", "ambiguous", *BOTH)(analysis([X, Y]))
case("a bare tensor", "without targets", *BOTH)(analysis(X))
case("three tensors in a tuple", "tuple of 3", "(inputs, target)")(analysis((X, Y, Y)))
case("data: None", "NoneType", *BOTH)(analysis(None))
case("data: a text", "str", *BOTH)(analysis("mnist"))
case("data: a number", "cannot be iterated", *BOTH)(analysis(5))
case("data: a dataset", "single examples", "DataLoader(dataset")(analysis(TensorDataset(X, Y)))
case("shuffled batches under BatchNorm in train mode", "BatchNorm", "shuffle=False")(
    analysis(DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True), model=lambda: mlp(nn.BatchNorm1d(5)))
)
case("batch_size under BatchNorm in train mode", "BatchNorm", "mode='eval'")(
    analysis(model=lambda: mlp(nn.BatchNorm1d(5)), options={"batch_size": 3})
)
case("batch_size without a common first dimension", "no common first dimension", "batch_size")(
    analysis([(X, Y[:5])], options={"batch_size": 3})
)

# -- the loss ----------------------------------------------------------------------------------------------------------

case("no scalar: one loss an example", "shape (7,), not a scalar", "batch 0", "batch_loss")(
    analysis(loss=lambda o, t: F.cross_entropy(o, t, reduction="none"))
)
case("no scalar: a number", "float, not a scalar")(analysis(loss=lambda o, t: F.cross_entropy(o, t).item()))
case("no scalar: nothing returned", "NoneType, not a scalar")(analysis(loss=lambda o, t: None))
case("no scalar: reduction='none'", "reduction='none'")(analysis(loss=nn.CrossEntropyLoss(reduction="none")))
case("no scalar: a partial function with reduction='none'", "reduction='none'")(
    analysis(loss=functools.partial(F.cross_entropy, reduction="none"))
)
case("a class instead of a criterion", "CrossEntropyLoss()", "parentheses")(analysis(loss=nn.CrossEntropyLoss))
case("a loss that cannot be called", "cannot be called")(analysis(loss="cross entropy"))
case("a criterion of three arguments", "input_lengths", "batch_loss")(analysis(loss=nn.CTCLoss()))
case("no loss for tuples", "no loss was given", "third argument")(analysis(loss=None))
case("no loss in the model's output", "returned no .loss")(analysis([{"input": X}], None))
case("a mapping without labels", "no 'labels'", "keys ['input']")(analysis([{"input": X}]))
case("an output that is no tensor", "returned tuple", "batch_loss")(analysis(model=lambda: nn.LSTM(4, 3)))
case("batch_loss: no pair", "not a pair", "(loss_sum, count)")(
    analysis(loss=lh.batch_loss(lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])))
)
for _count in (-1.0, float("nan"), float("inf")):
    case(f"batch_loss: a count of {_count}", f"count {_count}")(
        analysis(loss=lh.batch_loss(lambda model, batch, n=_count: (model(batch[0]).sum(), n)))
    )

case("no dependence: detached", "does not depend on any trainable parameter", "detach()")(
    analysis(loss=lambda o, t: F.cross_entropy(o.detach(), t))
)
case("no dependence: a constant", "does not depend on any trainable parameter")(
    analysis([(X, Y)], lambda o, t: torch.tensor(1.0))
)


class UnderNoGrad(nn.Module):
    """Trainable layers behind no_grad, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.features(x).relu()
        return self.head(x)


case("no dependence: trainable layers under no_grad", "features", "requires_grad_(False)")(analysis(model=UnderNoGrad))

NAN = float("nan")


def with_weight(value: float) -> nn.Module:
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = value
    return model


def with_buffer(value: float) -> nn.Module:
    model = mlp(nn.BatchNorm1d(5)).eval()
    model[2].running_var[0] = value
    return model


class LogOfNegative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x - 5.0)


case("NaN: in the second batch", "the loss is nan", "batch 1", "batch itself holds")(
    analysis([(X, Y), (X * NAN, Y)])
)
case("NaN: a weight", "the loss is nan", "batch 0", "the weight '2.weight'")(analysis(model=lambda: with_weight(NAN)))
case("NaN: a buffer", "the loss is nan", "'2.running_var'")(analysis(model=lambda: with_buffer(NAN)))
case("NaN: a module", "the loss is nan", "batch 0", "output of module '2'")(
    analysis(model=lambda: mlp(LogOfNegative()))
)
case("infinite: a weight", "batch 0", "the weight '2.weight'")(analysis(model=lambda: with_weight(float("inf"))))
case("infinite: the loss", "the loss is inf", "first seen in the loss")(
    analysis(loss=lambda o, t: F.cross_entropy(o, t) / torch.zeros(()))
)


class NormOfZero(nn.Module):
    """A finite loss and gradient whose second derivative is not: the root of a squared zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x - x.detach()).square().sum(1, keepdim=True).sqrt()


case("NaN: the second derivative only", "NaN or infinite", "sqrt")(analysis(model=lambda: mlp(NormOfZero())))

SUMMED = "is not the mean over its first dimension"
case("no mean: a sum", SUMMED, "batch 0", "batch_loss")(
    analysis(loss=lambda o, t: F.cross_entropy(o, t, reduction="sum"))
)
case("no mean: weights of its own", SUMMED)(analysis(loss=lambda o, t: (o * (t == 0)[:, None]).sum() / (t == 0).sum()))
case("no mean: split by batch_size", SUMMED)(
    analysis((X, Y), lambda o, t: F.cross_entropy(o, t, reduction="sum"), options={"batch_size": 5})
)


class OwnLoss(nn.Module):
    """Returns its loss, like a Hugging Face model, but summed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.layer(x), labels, reduction="sum")}


case("no mean: a model's own loss", SUMMED, "batch_loss")(
    analysis([{"x": X, "labels": Y}, {"x": X[:5], "labels": Y[:5]}], None, OwnLoss)
)

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
    analysis((X, ROWS[:, None]), nn.MSELoss(), lambda: mlp(nn.Sequential(), nn.Linear(5, 1), nn.Flatten(0), Expand()))
)


class Expand(nn.Module):
    """(N,) to (N, 5), for the last layer; undone by Squeeze."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, None].expand(-1, 5)


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
case("every target ignored", "every target is ignored", "ignore_index")(analysis((X, torch.full((12,), -100))))
case("every target ignored: by class weights of zero", "every target is ignored", "class weights")(
    analysis(loss=nn.CrossEntropyLoss(weight=torch.zeros(3)))
)

# -- the model ---------------------------------------------------------------------------------------------------------

case("no trainable parameters: none at all", "no trainable parameters", "Tanh")(analysis(model=nn.Tanh))
case("no trainable parameters: all frozen", "4 are frozen", "requires_grad_(True)")(
    analysis(model=lambda: mlp().requires_grad_(False))
)
case("complex parameters", "complex", "weight", "real and imaginary")(
    analysis(model=lambda: nn.Linear(4, 3, dtype=torch.complex64))
)
case("no module", "function, not a torch.nn.Module")(lambda: (None, lambda: lh.Objective(lambda x: x, PAIRS, CE)))
case("a lazy module", "no shape yet", "one batch")(lambda: (None, lambda: lh.Objective(nn.LazyLinear(3), PAIRS, CE)))
case("a model without values", "meta device")(
    lambda: (None, lambda: lh.Objective(nn.Linear(4, 3, device="meta"), PAIRS, CE))
)


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return mlp()


case("a model made in inference_mode", "inference_mode", "0.weight", "outside")(analysis(model=made_in_inference_mode))


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
    analysis((Y[:, None].expand(-1, 2), Y), model=lambda: nn.Sequential(nn.Embedding(3, 2, max_norm=0.1), nn.Flatten(), nn.Linear(4, 3)))
)


# -- options -----------------------------------------------------------------------------------------------------------

GLOBS = "model.named_parameters()"
case("pattern: matches nothing", "'foo*'", "no parameter", GLOBS)(analysis(blocks={"a": "foo*"}))
case("pattern: one of a list", "'zzz'", "no parameter")(analysis(blocks={"a": ["0.*", "zzz"]}))


def half_frozen() -> nn.Module:
    model = mlp()
    model[0].requires_grad_(False)
    return model


case("pattern: frozen parameters only", "frozen parameters only", "0.weight", "requires_grad_(True)")(
    analysis(model=half_frozen, blocks={"a": "0.*"})
)
case("pattern: no text", "a pattern of block 'a' is 5")(analysis(blocks={"a": 5}))
case("pattern: no text in a list", "a pattern of block 'a' is 5")(analysis(blocks={"a": ["0.*", 5]}))
case("overlapping groups", "'0.weight'", "'a' and 'b'", "disjoint")(analysis(blocks={"a": "0.*", "b": "*.weight"}))
case("blocks: none at all", "no trainable parameter is in any block")(analysis(blocks={}))
case("blocks: a function that leaves all out", "no trainable parameter is in any block")(
    analysis(blocks=lambda name, parameter: None)
)
case("blocks: a function that returns no name", "returned 3")(analysis(blocks=lambda name, parameter: 3))
case("blocks: a name that is taken", "'(full)'")(analysis(blocks={"(full)": "0.*"}))
case("blocks: an empty name", "''")(analysis(blocks=lambda name, parameter: ""))
for _scheme in ("layers", "", "depth", "depth:0", "depth:x", "depth:-1"):
    case(f"unknown scheme: {_scheme!r}", f"{_scheme!r}", "'depth:K'")(analysis(blocks=_scheme))
case("unknown scheme: no text", "NoneType", "'depth:K'")(analysis(blocks=None))
case("a scheme that leaves no block", "'weight'", "blocks='parameter'")(
    analysis((X, Y), model=lambda: nn.Sequential(nn.BatchNorm1d(4)).eval(), blocks="weight")
)
for _operator in ("hesian", None, 3):
    case(f"unknown operator: {_operator!r}", f"unknown operator {_operator!r}", "'hessian'")(
        analysis(operator=_operator)
    )
case("unknown method", "'qr'", "'lanczos'")(analysis(method="qr"))
case("unknown mode", "'train'", "'eval'")(analysis(options={"mode": "train"}))
case("power iteration for two", "one eigenvalue", "top=1")(analysis(method="power", top=2))
for _device in ("gpu", "cuda:99", "meta", 99, None):
    case(f"unknown device: {_device!r}", f"{_device!r} cannot be used", "'cpu'")(
        lambda device=_device: ((model := mlp()), lambda: lh.Objective(model, PAIRS, CE).to(device))
    )
for _tol in (0, -1e-3, float("nan"), 1.0, float("inf"), "small", None, True):
    case(f"tol: {_tol!r}", f"tol is {_tol!r}", "1e-3")(analysis(tol=_tol))
for _top in (-1, 1.5, "x", None, True):
    case(f"top: {_top!r}", f"top is {_top!r}", "integer")(analysis(top=_top))
case("k larger than the model: top", f"top={P + 1}", f"{P} trainable", f"at most {P}")(analysis(top=P + 1))
case("k larger than the model: bottom", f"bottom={P + 1}", f"at most {P}")(analysis(top=0, bottom=P + 1))
case("k larger than the model: eigsh", f"k is {P + 1}", f"1 <= k <= {P}")(
    lambda: ((model := mlp()), lambda: lh.eigsh(lh.Hessian(lh.Objective(model, PAIRS, CE)), k=P + 1))
)
case("nothing asked for", "nothing is asked for", "top=1")(analysis(top=0, bottom=0))
for _later in ("trace", "diagonal", "density", "coupling", "resume"):
    case(f"later work: {_later}", f"{_later} is not available yet", f"leave {_later} out")(analysis(**{_later: True}))
for _operator in ("gauss_newton", "empirical_fisher"):
    case(f"later work: {_operator}", "not available yet", "'hessian'")(analysis(operator=_operator))
for _argument, _value in {
    "max_passes": 0, "time_limit": 0.0, "seed": -1,
}.items():  # fmt: skip
    case(f"{_argument}: {_value}", f"{_argument} is {_value}")(analysis(**{_argument: _value}))
case("time_limit: NaN", "time_limit is nan")(analysis(time_limit=NAN))
case("out: no path", "out is int")(analysis(out=5))
for _size in (0, -3, 2.5, True, "8"):
    case(f"batch_size: {_size!r}", f"batch_size is {_size!r}", "integer >= 1")(analysis(options={"batch_size": _size}))
case("no objective", "Sequential, not an Objective", "lh.Objective(model, data, loss)")(
    lambda: ((model := mlp()), lambda: lh.analyze(model))
)
case("examples: none", "examples is 0")(lambda: ((model := mlp()), lambda: lh.Objective(model, PAIRS, CE).subset(0)))
case("examples: that cannot be told apart", "cannot be told apart", "batch 1")(
    lambda: ((model := mlp()), lambda: lh.Objective(model, [(X, Y), (X, Y[:5])], CE).subset(3))
)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_words_and_nothing_is_lost(name: str) -> None:
    make, matches = CASES[name]
    model, call = make()
    with refused(model, *(m for m in matches if "|" not in m)) as caught:
        call()
    for match in matches:
        assert any(part in str(caught.value) for part in match.split("|")) or "|" not in match
