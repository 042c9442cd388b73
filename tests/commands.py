"""What the tests of the command line share: a folder with factories in it, and how a refusal looks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from layerhess.cli import main

Capture = pytest.CaptureFixture[str]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ESCAPE_LINE = re.compile(r"[^\n]*\x1b\[2K|\x1b\[\?25[lh]")  # a line that is drawn anew; the cursor

FACTORIES = '''
import sys, time
import torch
import layerhess as lh

def data(n=12):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, generator=g), torch.randn(n, 2, generator=g)

def make():
    print("printed by the factory")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    return lh.Objective(model, tuple(t.double() for t in data()), torch.nn.MSELoss())

class Holder:
    @staticmethod
    def make():
        return make()

def dropout():
    return lh.Objective(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5)), data(), torch.nn.MSELoss())

def slow():
    """Every pass takes a while, and there are many."""
    class Slow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(400, 2)
        def forward(self, x):
            time.sleep(0.01)
            return self.inner(x)
    torch.manual_seed(0)
    x = torch.randn(300, 400)
    return lh.Objective(Slow(), [(x[i:i + 10], torch.randn(10, 2)) for i in range(0, 300, 10)], torch.nn.MSELoss())

def raises():
    numbers = [1]
    return numbers[3]

def unset(): raise ModuleNotFoundError("set FOO first")
def nothing(): pass
def wants(argument): return argument
def leaves(): sys.exit(4)
def model_only(): return torch.nn.Linear(2, 2)
value = 3

def lazy_loss():
    def criterion(output, target):
        import no_such_package
    return lh.Objective(torch.nn.Linear(3, 2), data(), criterion)

def bad_loss():
    def criterion(output, target):
        raise ValueError("this loss fails")
    return lh.Objective(torch.nn.Linear(3, 2), data(), criterion)

def loss_leaves():
    def criterion(output, target):
        sys.exit(0)
    return lh.Objective(torch.nn.Linear(3, 2), data(), criterion)

def bad_shapes():
    return lh.Objective(torch.nn.Sequential(torch.nn.Linear(4, 2)), data(), torch.nn.MSELoss())

def bad_data():
    class Loader:
        def __iter__(self):
            raise KeyError("row 17")
    return lh.Objective(torch.nn.Linear(3, 2), Loader(), torch.nn.MSELoss())

def refused_input():
    return lh.Objective(torch.nn.Linear(3, 2), [], torch.nn.MSELoss())

def score(output, target):
    return -(output - target).square().mean(dim=1)

def broken_score(output, target):
    raise ValueError("no such class")

def nan_score(model):
    return float("nan")

def integers():
    model = torch.nn.Linear(3, 2)
    return lh.Objective(model, data(), lambda output, target: (output - target).square().mean() * float("nan"))

def tied():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(3, 3, bias=False)
            self.b = torch.nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight
        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))[:, :2]
    return lh.Objective(Tied(), data(), torch.nn.MSELoss())
'''


@contextlib.contextmanager
def working_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder is the current one; what a command imports from it is forgotten afterwards."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name, module in list(sys.modules.items()):
        if str(folder) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


@contextlib.contextmanager
def workplace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with factories in it; what a command imports is forgotten afterwards."""
    (folder / "mine.py").write_text(FACTORIES)
    (folder / "syntax.py").write_text("import torch\n\ndef make(:\n    pass\n")
    (folder / "imports.py").write_text("import torch\nimport no_such_package\n")
    (folder / "fails.py").write_text("x = 1\nx / 0\n")
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "inner.py").write_text("from mine import make\n")
    with working_in(folder, monkeypatch):
        yield folder


def refusal(capsys: Capture, *arguments: str) -> str:
    """Run a command that must be refused: exit code 2, no result, one sentence on stderr; returns the sentence."""
    code = main(list(arguments))
    streams = capsys.readouterr()
    assert code == 2, streams.err
    assert "Traceback" not in streams.err and "Saved in" not in streams.out
    line = streams.err.strip().splitlines()[-1]
    assert line.startswith("layerhess: ") and "What to do: " in line
    return line


def zero_weights() -> dict[str, torch.Tensor]:
    """A state dict for ``mine:make``: zeros, and ones for the last bias."""
    shapes = {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (2, 4)}
    return {name: torch.zeros(shape) for name, shape in shapes.items()} | {"2.bias": torch.ones(2)}


def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no report: that takes most of the time of a small run, and has tests of its own."""
    monkeypatch.setattr("layerhess.show.report.as_html", lambda analysis, plan=None: "<p>a report</p>")


def on_terminal(*arguments: str, cwd: Path, columns: int = 80, **environment: str) -> tuple[int, str]:
    """Run a command in a terminal of that width; its exit code and what the terminal was sent."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    surroundings = {k: v for k, v in ENVIRONMENT.items() if k not in ("COLUMNS", "NO_COLOR")} | {
        "TERM": "xterm-256color"
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "layerhess", *arguments], cwd=cwd, env=surroundings | environment, stdin=follower,
        stdout=follower, stderr=follower, close_fds=True,
    )  # fmt: skip
    os.close(follower)
    told = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux, once the other end is closed
            break
        if not part:
            break
        told += part
    os.close(leader)
    return process.wait(timeout=60), told.decode().replace("\r\n", "\n")


def seen(text: str) -> list[str]:
    """The lines of a terminal's text, without what is drawn over later and without colours."""
    return [ESCAPE.sub("", line.rpartition("\r")[2]) for line in ESCAPE_LINE.sub("", text).split("\n")]
