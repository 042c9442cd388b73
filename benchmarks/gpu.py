"""Ours beside the peers on a GPU: `python -m benchmarks.gpu`, and small on a CPU, where there is none.

The top eigenvalue of every weight block and the top five of the full model, certified, of a ResNet-50 at 224 x 224 and
of GPT-2 small's shape (random weights and data, float32, TF32 off for everybody); the peers that are installed stop by
their own rule. One table: time in gradients over the same data, peak memory, and on how many targets a peer is off.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

import layerhess as lh
from layerhess.curvature.request import Request

from .device_timing import Measured, measured, synchronisations
from .models import GPT, ResNet50
from .ours import analyse, objective_of
from .peer import TOL, Values, deviation
from .peers import PEERS
from .timing import gradient, say, warm_up
from .workloads import RESULTS, Problem, Question, TokenCrossEntropy

__all__ = ["SHAPES", "Line", "Shape", "main", "problem_of"]


@dataclass(frozen=True)
class Shape:
    """A network and its data.

    Attributes:
        batch: (examples, generator) -> inputs and targets. examples, batches: how many in each, and of them.
    """

    model: Callable[[], nn.Module]
    batch: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    loss: Callable[[], nn.CrossEntropyLoss]
    examples: int
    batches: int


def _images(side: int, classes: int) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    def made(examples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(examples, 3, side, side, generator=generator)
        return x, torch.randint(classes, (examples,), generator=generator)

    return made


def _tokens(vocabulary: int, context: int) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    def made(examples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        ids = torch.randint(vocabulary, (examples, context + 1), generator=generator)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    return made


SHAPES = {
    "full": {
        "resnet50": Shape(ResNet50, _images(224, 1000), nn.CrossEntropyLoss, examples=32, batches=2),
        "gpt2": Shape(
            lambda: GPT(50257, d=768, layers=12, heads=12, context=1024, tied=True),
            _tokens(50257, 1024),
            TokenCrossEntropy,
            examples=2,
            batches=2,
        ),
    },
    "small": {
        "resnet50": Shape(lambda: ResNet50(4, (1, 1), 5), _images(24, 5), nn.CrossEntropyLoss, 4, 2),
        "gpt2": Shape(
            lambda: GPT(11, d=4, layers=1, heads=2, context=6, tied=True), _tokens(11, 6), TokenCrossEntropy, 2, 2
        ),
    },
}

QUESTIONS = {"blocks' top 1": Question(), "full top 5": Question(5, full=True)}


def problem_of(shape: Shape, question: Question, device: torch.device) -> Problem:
    """The same weights and data for every contestant; BatchNorm's statistics are those of the data."""
    torch.manual_seed(0)
    model = shape.model()
    generator = torch.Generator().manual_seed(1)
    batches = [shape.batch(shape.examples, generator) for _ in range(shape.batches)]
    model, batches = model.to(device), [(x.to(device), y.to(device)) for x, y in batches]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # averages over all batches seen
    with torch.no_grad():
        for x, _ in batches:
            model.train()(x)
    return Problem("gpu", model.eval(), batches, shape.loss(), question)


@dataclass
class Line:
    """One contestant's answer to one question.

    Attributes:
        seconds, memory: of each run. off: targets whose eigenvalues differ from our certified ones by more than twice
            the tolerance; for ours, targets that were not certified. note: why there is no answer.
    """

    network: str
    question: str
    contestant: str
    targets: int
    gradient: float
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    off: int | None = None
    note: str = ""
    values: Values = field(default_factory=dict)


def lines(network: str, shape: Shape, device: torch.device, peers: list[str], runs: int) -> Iterator[Line]:
    """Every contestant on one network; ours comes first, what it certified is what peers are held against."""
    for asked, question in QUESTIONS.items():
        problem = problem_of(shape, question, device)
        warm_up(problem)
        unit = statistics.median(measured(device, lambda problem=problem: gradient(problem)).seconds for _ in range(5))
        kinds = ("search", "unchecked") if question.full else ("search",)
        certified: Values = {}
        for copies in kinds:
            line = Line(network, asked, f"layerhess, copies {copies}", len(problem.targets), unit)
            own = dataclasses.replace(problem, question=dataclasses.replace(question, copies=copies))
            answer = _run(line, device, runs, lambda own=own: analyse(own))
            if answer is not None:
                line.off, line.values = len(answer.value.unconverged), answer.value.values
                certified = certified or answer.value.values
            yield line
        for key in peers:
            peer = PEERS[key]
            line = Line(network, asked, peer.title, len(problem.targets), unit)
            if peer.most is not None and question.k > peer.most:
                continue
            found = _run(line, device, runs, lambda peer=peer, problem=problem: peer.own(problem))
            if found is not None:
                line.values = found.value
                if certified:
                    line.off = sum(deviation(found.value[t], certified[t]) > 2 * TOL for t in found.value)
            yield line


def _run(line: Line, device: torch.device, runs: int, work: Callable[[], object]) -> Measured | None:
    """The last run; None, and why on the line, where it fails: other people's code may, and it costs no other line."""
    last = None
    for _ in range(runs):
        try:
            last = measured(device, work)
        except Exception as why:
            line.note = f"{type(why).__name__}: {str(why).strip().splitlines()[0] if str(why).strip() else 'no words'}"
            return None
        line.seconds.append(last.seconds)
        line.memory.append(last.memory)
    return last


def waits(network: str, shape: Shape, device: torch.device) -> str:
    """One sentence: does the host wait for the GPU inside a step, a product of all blocks on kept graphs?"""
    problem = problem_of(shape, Question(), device)
    operator = lh.Hessian(objective_of(problem), "weight", check=False).unchecked
    generator = torch.Generator().manual_seed(0)
    requests = {
        name: Request(block, torch.randn(1, block.numel, dtype=torch.float64, generator=generator).to(device))
        for name, block in operator.blocks.items()
    }
    with operator.session() as data_pass:
        data_pass.run(requests)  # makes the graphs
        found = synchronisations(device, lambda: data_pass.run(requests))
        kept = f"{data_pass.kept} of {len(problem.batches)} graphs kept"
    if found is None:
        return f"{network}: host synchronisations in a step ({kept}): not looked at, for want of a GPU"
    return f"{network}: host synchronisations in a step ({kept}): {len(found)}" + "".join(
        f"\n  {where}" for where in found
    )


def print_table(made: list[Line]) -> None:
    """One table for all."""
    heading = ["network", "question", "contestant", "gradients", "x ours", "seconds", "peak MiB", "off", "note"]
    rows = [heading]
    for line in made:
        first = next(other for other in made if (other.network, other.question) == (line.network, line.question))
        took = statistics.median(line.seconds) if line.seconds else None
        ratio = took / statistics.median(first.seconds) if took is not None and first.seconds else None
        rows.append(
            [
                line.network,
                line.question,
                line.contestant,
                "-" if took is None else f"{took / line.gradient:.1f}",
                "-" if ratio is None else f"{ratio:.2f}",
                "-" if took is None else f"{took:.3f}",
                f"{max(line.memory) / 2**20:.0f}" if line.memory else "-",
                "-" if line.off is None else f"{line.off} of {line.targets}",
                line.note,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 0 when done, 1 where ours has no answer or did not certify one, 2 for a device that is not."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--size", choices=list(SHAPES), help="default: full on a GPU, small on a CPU")
    p.add_argument("--networks", nargs="*", choices=list(SHAPES["full"]), default=list(SHAPES["full"]))
    p.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="default: all installed")
    p.add_argument("--examples", type=int, help="of each batch")
    p.add_argument("--batches", type=int)
    p.add_argument("--runs", type=int, default=3, help="runs whose median is taken (default 3)")
    options = p.parse_args(arguments)
    device = torch.device(options.device)
    if device.type not in ("cuda", "cpu") or (device.type == "cuda" and not torch.cuda.is_available()):
        say(f"no device {options.device} here: use --device cpu, or a PyTorch with CUDA and a GPU")
        return 2
    size = options.size or ("full" if device.type == "cuda" else "small")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    say(f"{name}, PyTorch {torch.__version__}, layerhess {lh.__version__}; {size} shapes")
    warnings.filterwarnings("ignore", message=".*backward\\(\\) with create_graph=True.*")  # PyHessian, once a layer
    made: list[Line] = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for network in options.networks:
            shape = SHAPES[size][network]
            changed = {"examples": options.examples, "batches": options.batches}
            shape = dataclasses.replace(shape, **{k: v for k, v in changed.items() if v is not None})
            say(waits(network, shape, device))
            for line in lines(network, shape, device, options.peers, options.runs):
                made.append(line)
                say(f"  {line.network}, {line.question}: {line.contestant} {line.note or 'done'}")
                write(made, name, size)
    print_table(made)
    return int(any(line.off != 0 for line in made if line.contestant.startswith("layerhess")))


STARTED = time.strftime("%Y%m%d-%H%M%S")


def write(made: list[Line], device: str, size: str) -> None:
    """Into benchmarks/results, after each line, as the whole takes long."""
    RESULTS.mkdir(exist_ok=True)
    record = {"device": device, "size": size, "torch": torch.__version__, "layerhess": lh.__version__}
    content = record | {"lines": [asdict(line) for line in made]}
    (RESULTS / f"gpu-{STARTED}.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    sys.exit(main())
