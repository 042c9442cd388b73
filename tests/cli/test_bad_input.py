"""Bad input, from the command line: exit code 2, a sentence with what, where, what to do, no result, no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import layerhess as lh
from commands import Capture, quick_report, refusal, working_in
from layerhess.cli import main

FACTORIES = '''
import warnings
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
import layerhess as lh

X = torch.linspace(-1.0, 1.0, 48).reshape(12, 4).sin()
Y = torch.arange(12) % 3
CE = nn.CrossEntropyLoss()

def mlp(*extra, outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), *extra, nn.Linear(5, outputs))

def objective(model=None, data=None, loss=CE):
    return lh.Objective(mlp() if model is None else model, [(X, Y)] if data is None else data, loss)

class Layer(nn.Module):
    """A module that applies a function."""
    def __init__(self, function):
        super().__init__()
        self.function = function
    def forward(self, *inputs):
        return self.function(*inputs)

def fine(): return objective()
def empty(): return objective(data=[])
def empty_batches(): return objective(data=(X[:0], Y[:0]))
def generator(): return objective(data=((X, Y) for _ in range(3)))
def two_tensors(): return objective(data=[X, Y])

def runs_dry():
    class Once:
        def __init__(self):
            self.left = [(X, Y)]
        def __iter__(self):
            left, self.left = self.left, []
            return iter(left)
    return objective(data=Once())

def changes():
    class Changing:
        passes = 0
        def __iter__(self):
            self.passes += 1
            return iter([(X * self.passes, Y)])
    return objective(data=Changing())

def no_scalar(): return objective(loss=lambda o, t: F.cross_entropy(o, t, reduction="none"))
def no_dependence(): return objective(loss=lambda o, t: F.cross_entropy(o.detach(), t))
def nan_batch(): return objective(data=[(X, Y), (X / 0.0 * 0.0, Y)])

def nan_weight():
    model = mlp()
    model[2].weight.data[0] = float("nan")
    return objective(model)

def nan_module(): return objective(mlp(Layer(lambda x: torch.log(x - 9.0))))
def infinite(): return objective(loss=lambda o, t: F.cross_entropy(o, t) / torch.zeros(()))
def no_mean(): return objective(data=[(X, Y), (X[:5], Y[:5])], loss=lambda o, t: F.cross_entropy(o, t, reduction="sum"))
def broadcast(): return objective(mlp(outputs=1), (X, X[:, 0]), nn.MSELoss())
def own_broadcast(): return objective(mlp(outputs=1), (X, X[:, 0]), lambda o, t: (o - t).square().mean())
def class_index(): return objective(data=[(X, Y), (X, Y + 1)])
def own_class_index(): return objective(data=[(X, Y), (X, Y + 1)], loss=lambda o, t: F.cross_entropy(o, t))
def all_ignored(): return objective(data=(X, Y * 0 - 100))
def frozen(): return objective(mlp().requires_grad_(False))
def complex_weights(): return objective(nn.Linear(4, 3, dtype=torch.complex64))
def dropout(): return objective(mlp(nn.Dropout(0.5)))
def functional_dropout(): return objective(mlp(Layer(F.dropout)))
def noise(): return objective(mlp(Layer(lambda x: x + 0.1 * torch.randn_like(x))))

def reentrant():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 5)
        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=True)
    return objective(mlp(Checkpointed()))

def embedding_bag(): return objective(nn.Sequential(nn.EmbeddingBag(9, 3, mode="sum")), (Y[:, None].expand(-1, 2), Y))
def cdist(): return objective(mlp(Layer(lambda x: torch.cdist(x, torch.eye(5)))))

def ctc():
    lengths = torch.full((2,), 6), torch.full((2,), 3)
    def loss(model, batch):
        return F.ctc_loss(model(batch[0]).log_softmax(-1), batch[1], *lengths, reduction="sum"), 2
    return objective(nn.Linear(4, 5), (X.reshape(6, 2, 4), Y[:6].reshape(2, 3) + 1), lh.batch_loss(loss))

def weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return objective(mlp(nn.utils.weight_norm(nn.Linear(5, 5))))

def weight_norm_parametrised(): return objective(mlp(nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))))

def hungry(most=5):
    def forward(x):
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return x
    return objective(mlp(Layer(forward)))

def starving(): return hungry(0)

def inference_model():
    with torch.inference_mode():
        return objective(mlp())

def compiled(): return objective(torch.compile(mlp(), backend="eager"))
def parallel(): return objective(nn.DataParallel(mlp()))
def half(): return lh.Objective(mlp().half(), [(X.half(), Y)], CE)
def under_no_grad():
    with torch.no_grad():
        return objective()
'''

REFUSED: dict[str, tuple[str, ...]] = {
    "empty": ("empty", "at least one"),
    "empty_batches": ("no examples",),
    "generator": ("one-shot", "DataLoader"),
    "two_tensors": ("ambiguous", "(x, y)", "[(x1, y1), (x2, y2), ...]"),
    "runs_dry": ("changed between two passes", "empty"),
    "changes": ("changes from pass to pass",),
    "no_scalar": ("not a scalar", "batch 0"),
    "no_dependence": ("does not depend on any trainable parameter",),
    "nan_batch": ("the loss is nan", "batch 1"),
    "nan_weight": ("the loss is nan", "'2.weight'"),
    "nan_module": ("the loss is nan", "batch 0", "module '2'"),
    "infinite": ("the loss is inf", "batch 0"),
    "no_mean": ("not the mean", "batch_loss"),
    "broadcast": ("(12, 1)", "(12,)", "(12, 12)", "unsqueeze"),
    "own_broadcast": ("(12, 1)", "(12,)", "(12, 12)", "unsqueeze"),
    "class_index": ("class index 3", "batch 1", "0 to 2"),
    "own_class_index": ("class index 3", "batch 1"),
    "all_ignored": ("every target is ignored", "ignore_index"),
    "frozen": ("no trainable parameters", "4 are frozen"),
    "complex_weights": ("complex", "weight"),
    "dropout": ("random", "2 (Dropout)", "--eval"),
    "functional_dropout": ("random", "2 (Layer)"),
    "noise": ("random", "2 (Layer)", "remove the random numbers"),
    "reentrant": ("checkpointing", "2.inner", "use_reentrant=False"),
    "embedding_bag": ("no second derivative", "of embedding_bag", "0 (EmbeddingBag)"),
    "cdist": ("no second derivative", "of cdist", "2 (Layer)"),
    "ctc": ("no second derivative", "ctc_loss"),
    "weight_norm": ("2 (Linear), weight_norm", "fold it"),
    "weight_norm_parametrised": ("2 (Linear), weight_norm", "fold it"),
    "starving": ("out of memory", "12 examples", "not even one example fits"),
    "inference_model": ("inference_mode", "outside"),
}

OPTIONS: dict[str, tuple[str, ...]] = {
    "--blocks nope": ("unknown block scheme 'nope'", "'depth:K'"),
    "--blocks a=zzz*": ("'zzz*'", "no parameter", "0.weight"),
    "--blocks a=0.* --blocks b=*.weight": ("'0.weight'", "two blocks", "disjoint"),
    "--operator nope": ("unknown operator 'nope'", "'hessian'"),
    "--device nope": ("'nope' cannot be used", "'cpu'"),
    "--tol 0": ("tol is 0", "1e-3"),
    "--tol -1": ("tol is -1", "1e-3"),
    "--tol nan": ("tol is nan", "1e-3"),
    "--top 44": ("top=44", "43 trainable parameters"),
    "--top 0 --bottom 44": ("bottom=44", "43 trainable parameters"),
    "--top 0": ("nothing is asked for", "top=1"),
    "--batch-size 0": ("batch_size is 0",),
    "--examples 0": ("examples is 0",),
    "--method nope": ("unknown method 'nope'",),
}

WORKS: dict[str, tuple[str, ...]] = {
    "compiled": ("was compiled",),
    "parallel": ("wrapped in DataParallel",),
    "half": ("float16", "10%"),
    "under_no_grad": (),
    "hungry": ("memory: it ran out, so batches were cut into pieces of 3 examples",),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with the factories and a result of earlier; reports are not drawn."""
    quick_report(monkeypatch)
    (tmp_path / "unusable.py").write_text(FACTORIES)
    with working_in(tmp_path, monkeypatch):
        yield tmp_path


def refused(here: Path, capsys: Capture, *arguments: str) -> str:
    """The sentence; nothing was written beside what was there."""
    before = sorted(p for p in here.rglob("*") if "__pycache__" not in p.parts)
    line = refusal(capsys, "analyze", *arguments, "--out", "run")
    assert "the result will be in" not in line or "note: " in line  # something was done before the refusal
    assert sorted(p for p in here.rglob("*") if "__pycache__" not in p.parts) == before
    assert "Where: " in line
    return line


@pytest.mark.filterwarnings("ignore:Using a target size", "ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_exits_with_two_and_a_sentence(here: Path, capsys: Capture, name: str) -> None:
    line = refused(here, capsys, f"unusable.py:{name}")
    for match in REFUSED[name]:
        assert match in line


@pytest.mark.parametrize("options", OPTIONS)
def test_bad_options_exit_with_two_and_a_sentence(here: Path, capsys: Capture, options: str) -> None:
    line = refused(here, capsys, "unusable:fine", *options.split())
    for match in OPTIONS[options]:
        assert match in line


@pytest.mark.parametrize("name", WORKS)
def test_what_only_needs_a_word_gets_it_and_works(here: Path, capsys: Capture, name: str) -> None:
    assert main(["analyze", f"unusable:{name}", "--out", "run", "--max-passes", "60"]) in (0, 1)
    said = capsys.readouterr().err
    for match in WORKS[name]:
        assert match in said
    assert lh.load(here / "run").blocks


def test_the_previous_result_survives_a_refusal(here: Path, capsys: Capture) -> None:
    assert main(["analyze", "unusable:fine", "-q", "--out", "run"]) == 0
    before = {p.name: p.read_bytes() for p in (here / "run").iterdir()}
    capsys.readouterr()
    refused(here, capsys, "unusable:dropout")
    assert {p.name: p.read_bytes() for p in (here / "run").iterdir()} == before


def test_eval_is_the_way_out_of_dropout(here: Path, capsys: Capture) -> None:
    assert main(["analyze", "unusable:dropout", "--eval", "-q", "--out", "run"]) == 0


def test_skip_failed_writes_the_rest_and_exits_with_one(here: Path, capsys: Capture) -> None:
    assert main(["analyze", "unusable:weight_norm_parametrised", "--skip-failed", "-q", "--out", "run"]) == 1
    refused_blocks = [n for n, s in lh.load(here / "run").blocks.items() if s.status.startswith("refused")]
    assert refused_blocks == ["2.parametrizations.weight.original1"]


@pytest.mark.parametrize(
    ("limit", "said"), [(["--max-passes", "1"], "max_passes=1 was reached"), (["--time-limit", "1e-9"], "time_limit")]
)
def test_limits_give_a_clearly_unfinished_result(here: Path, capsys: Capture, limit: list[str], said: str) -> None:
    assert main(["analyze", "unusable:fine", "--top", "2", *limit, "-q", "--out", "run"]) == 1
    analysis = lh.load(here / "run")
    assert said in analysis.partial and not analysis.converged
    assert said in capsys.readouterr().out
