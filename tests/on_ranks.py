"""What the ranks of tests/objective/test_group.py compute; alone, the same functions give the reference."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import layerhess as lh
from layerhess.checks import heavy_examples, sample
from layerhess.curvature.data_pass import DataPass
from layerhess.linalg.eigen.krylov_basis import Basis
from layerhess.linalg.eigen.row_sum import RowSum

EXAMPLES, CUTS = 61, {1: [0, 61], 2: [0, 40, 61], 3: [0, 37, 61, 61]}  # the third of three ranks has no data


def place() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def examples() -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(EXAMPLES, 5, generator=drawn, dtype=torch.float64)
    y = torch.randint(0, 3, (EXAMPLES,), generator=drawn)
    y[::7] = -100  # unequal numbers of terms
    return x, y


def share(size: int = 8) -> list[Any]:
    """This rank's batches."""
    rank, ranks = place()
    x, y = (part[slice(*CUTS[ranks][rank : rank + 2])] for part in examples())
    return list(zip(x.split(size), y.split(size), strict=True)) if len(x) else []


def objective(size: int = 8, **options: Any) -> lh.Objective:
    return lh.Objective(network(), share(size), nn.CrossEntropyLoss(), **options)


def sampled() -> lh.Objective:
    """Twice as many examples, some of which occur twice, in batches of another size on every rank."""
    data: list[Any] = []
    for x, y in share(EXAMPLES):
        x, y = torch.cat([x, torch.where(x[:, :1] > 0.0, x + 1.0, x)]), torch.cat([y, y])
        size = 50 - 13 * place()[0]
        data += zip(x.split(size), y.split(size), strict=True)
    return lh.Objective(network(), data, nn.CrossEntropyLoss())


def subsets() -> list[list[float]]:
    """What rows this rank has of subsets, some of whose examples occur twice."""
    return [[float(row) for x, _ in sampled().subset(70, seed).batches() for row in x.sum(dim=1)] for seed in (0, 1)]


def numbers(analysis: lh.Analysis) -> dict[str, Any]:
    """Everything that must not depend on the number of ranks."""
    found: dict[str, Any] = {
        "loss": np.array([analysis.loss, analysis.loss_count, analysis.examples, analysis.gradient_norm])
    }
    for name, spectrum in {**analysis.blocks, "(full)": analysis.full}.items():
        if spectrum is None:
            continue
        found[f"{name} values"] = spectrum.eigenvalues
        if spectrum.sampling_sums.size:
            found[f"{name} sums"] = spectrum.sampling_sums
        if spectrum.trace is not None:
            found[f"{name} trace"] = np.array([spectrum.trace.value, spectrum.trace.standard_error])
            if np.isfinite(spectrum.trace.sampling_error):
                found[f"{name} sampling"] = np.append(spectrum.sampling_errors, spectrum.trace.sampling_error)
        if spectrum.diagonal is not None:
            found[f"{name} diagonal"] = np.concatenate([part.ravel() for part in spectrum.diagonal.value.values()])
    if analysis.coupling is not None:
        found["coupling"] = analysis.coupling.value
    if analysis.groups is not None:
        found["groups"] = analysis.groups.counts
        found["fingerprint"] = np.array([float(int(digit, 16)) for digit in analysis.groups.fingerprint])
    return found


def values() -> dict[str, dict[str, Any]]:
    """Eigenvalues and estimates on all paths."""
    found = {}
    for path in ("exact", "auto", "gram"):
        full = path != "gram"
        asked = {"trace": True, "diagonal": True, "coupling": True} if path == "exact" else {}
        blocks = "parameter" if path == "exact" else {"last": "2.*"}
        found[path] = numbers(lh.analyze(objective(), blocks=blocks, path=path, top=2, bottom=1, full=full, **asked))
    found["streamed"] = numbers(lh.analyze(objective(20), top=1, full=True, memory="1MB"))
    found["sampled"] = numbers(lh.analyze(sampled(), blocks="module", top=2, trace=lh.Trace(probes=2), sampling=True))
    x, y = examples()
    sampler = DistributedSampler(TensorDataset(x, y), place()[1], place()[0])  # fills shares up with repeated examples
    loader = DataLoader(sampler.dataset, 8, sampler=sampler)
    loaded = lh.Objective(network(), loader, nn.CrossEntropyLoss())
    found["loader"] = {"eigsh": lh.eigsh(lh.Hessian(loaded), 1).values}
    hessian = lh.Hessian(objective())
    drawn = torch.Generator().manual_seed(2)
    vector = torch.randn(hessian.shape[0], generator=drawn, dtype=torch.float64)
    pairs = lh.eigsh(hessian, 3, which="BE")
    found["operators"] = {
        "product": hessian.matvec(vector).numpy(),
        "eigsh": pairs.values,
        "trace": np.array([lh.trace(hessian.block("0.weight")).value]),
    }
    found["slices"] = sliced()
    return found


def sliced() -> dict[str, Any]:
    """Numbers of a slice and a surface."""
    line = lh.loss_slice(objective(), ("random", 0), points=5)
    plane = lh.loss_slice(objective(), (("random", 0), ("random", 1)), points=3)
    return {
        f"{name} {kind}": np.asarray(getattr(found, kind))
        for name, found in (("line", line), ("plane", plane))
        for kind in ("loss", "quadratic", "slope", "curvature")
    }


def refusals() -> dict[str, str]:
    """The sentences of what is refused, and what an analysis says after each: the ranks are still in step."""
    rank, _ = place()
    x, y = examples()
    loss = nn.CrossEntropyLoss()
    other = network()
    with torch.no_grad():
        other[2].bias += 0.1 * rank
    wrong = share()
    if rank == 1:
        wrong[1] = (wrong[1][0] * float("nan"), wrong[1][1])
    asked = {
        "same data": lambda: lh.analyze(lh.Objective(network(), [(x.roll(rank, 0), y.roll(rank, 0))], loss)),
        "other weights": lambda: lh.analyze(lh.Objective(other, share(), loss)),
        "NaN": lambda: lh.analyze(lh.Objective(network(), wrong, loss)),
        "raised": lambda: lh.analyze(lh.Objective(network(), Raising(rank), loss)),
        "broken": lambda: lh.analyze(lh.Objective(Broken(rank), share(), loss)),
        "between": lambda: lh.analyze(objective(), top=1 if rank == 0 else -1),
        "other question": lambda: lh.analyze(objective(), top=1 + rank),
        "other vector": lambda: lh.Hessian(objective()).matvec(torch.eye(66, dtype=torch.float64)[rank]),
        "other seed": lambda: lh.trace(lh.Hessian(objective()), seed=rank, probes=4),
        "other number": lambda: lh.eigsh(lh.Hessian(objective()), 1 + 2 * rank),
        "other threads": lambda: with_threads(1 + rank),
        "no room": lambda: without_room(rank),
        "no copy": lambda: without_copy(rank),
        "no room for rows": lambda: without_room_for_rows(rank),
        "interrupt": lambda: lh.analyze(lh.Objective(network(), Interrupting(rank), loss)),
    }
    found = {}
    for name, call in asked.items():
        try:
            call()
            found[name] = "nothing was raised"
        except (Exception, KeyboardInterrupt) as error:
            found[name] = f"{type(error).__name__}: {error}"
    normed = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)).double().eval()
    with torch.no_grad():
        for number, weight in enumerate(normed.parameters()):
            weight.copy_(torch.cos(torch.arange(weight.numel()) + number).view(weight.shape))
    normed[1].running_mean += rank  # as after training with DistributedDataParallel
    analysis = lh.analyze(lh.Objective(normed, share(), loss), blocks={"last": "2.*"}, full=False)
    kept = bool((normed[1].running_mean == rank).all())
    found["buffers"] = f"{analysis.blocks['last'].eigenvalues} {kept} {analysis.notes}"
    for where in ("nowhere", "in the survey", "in the self-check"):
        full = lh.analyze(lh.Objective(Starved(rank, where), share(), loss)).full
        notes = lh.analyze(lh.Objective(Starved(rank, where), share(), loss), full=False).notes
        found[f"starved {where}"] = f"{full.eigenvalues[0]:.9e} {[note for note in notes if 'ran out' in note]}"
    found["after"] = str(lh.analyze(objective(), full=False).converged)
    return found


def without_room(rank: int) -> None:
    """A solver of rank 1 finds no memory for its vectors."""
    real = Basis.append

    def append(self: Basis, *given: Any) -> torch.Tensor:
        raise MemoryError("no room")

    try:
        Basis.append = append if rank else real  # type: ignore[method-assign]
        lh.analyze(objective(), path="exact", blocks={"all": "*"})
    finally:
        Basis.append = real  # type: ignore[method-assign]


def without_copy(rank: int) -> None:
    """Rank 1 cannot copy the model to look for the examples that carry the eigenvalues; all go without."""
    known = heavy_examples.precision, sample.WHOLE

    def precision(*given: Any) -> torch.dtype:
        raise MemoryError("no room for a copy")

    try:
        sample.WHOLE = 0
        heavy_examples.precision = precision if rank else known[0]
        mine = [(a.float(), b) for a, b in share()]
        lh.analyze(lh.Objective(network(torch.float32), mine, nn.CrossEntropyLoss()), path="exact")
    finally:
        heavy_examples.precision, sample.WHOLE = known


def without_room_for_rows(rank: int) -> None:
    """A spectrum from rows does not fit into the memory of rank 1."""
    real = RowSum.decompose

    def decompose(self: RowSum, *given: Any) -> Any:
        raise MemoryError("no room")

    try:
        RowSum.decompose = decompose if rank else real  # type: ignore[method-assign]
        lh.analyze(objective(), path="gram", blocks={"last": "2.*"}, full=False)
    finally:
        RowSum.decompose = real  # type: ignore[method-assign]


def with_threads(number: int) -> None:
    """An analysis with so many threads."""
    torch.set_num_threads(number)
    try:
        lh.analyze(objective())
    finally:
        torch.set_num_threads(1)


class Raising:
    """Batches of which rank 1's second cannot be read."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __iter__(self) -> Any:
        for number, batch in enumerate(share()):
            if number == 1 and self.rank == 1:
                raise OSError("the file is gone")
            yield batch


class Starved(nn.Linear):
    """A model with which rank 1 runs out of memory for more than 4 examples at once."""

    def __init__(self, rank: int, where: str) -> None:
        torch.manual_seed(0)
        super().__init__(5, 3, dtype=torch.float64)
        self.most = 4 if rank == 1 and where != "nowhere" else 100
        self.graph_only = where == "in the self-check"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most and (torch.is_grad_enabled() or not self.graph_only):
            raise torch.OutOfMemoryError("CUDA out of memory, in this test")
        return super().forward(x)


class Broken(nn.Linear):
    """A model that runs on rank 0 only."""

    def __init__(self, rank: int) -> None:
        torch.manual_seed(0)
        super().__init__(5, 3, dtype=torch.float64)
        self.rank = rank

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.rank == 1:
            raise RuntimeError("no such kernel")
        return super().forward(input)


class Interrupting(Raising):
    """Batches in whose second pass Ctrl-C is pressed on rank 1."""

    passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        for batch in share():
            if self.passes == 2 and self.rank == 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch


def lost() -> None:
    """Rank 1 is killed in the middle of a pass."""
    rank, _ = place()

    class Killed(Interrupting):
        def __iter__(self) -> Any:
            self.passes += 1
            if self.passes == 2 and self.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield from share()

    lh.analyze(lh.Objective(network(), Killed(rank), nn.CrossEntropyLoss()))


def dies_late() -> None:
    """Rank 1 is killed or raises in its sixth pass, of a run that writes into a folder."""
    real = DataPass._collect

    def collect(self: DataPass, *given: Any) -> Any:
        if self.counters.phase == "solve" and self.counters.passes == 5 and place()[0] == 1:
            if os.environ["HOW"] == "raises":
                raise ValueError("worker broke")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *given)

    DataPass._collect = collect  # type: ignore[method-assign]
    lh.analyze(objective(), full=True, out=os.environ["OUT"])


def resumed() -> dict[str, Any]:
    """The same run, gone on with."""
    heard: list[str] = []
    nothing = SimpleNamespace(forecast=str, update=str, note=heard.append)
    analysis = lh.analyze(objective(), full=True, out=os.environ["OUT"], resume=True, progress=nothing)
    return {**numbers(analysis), "notes": heard}


def stuck() -> None:
    """Rank 1 does not come back from its data."""
    rank, _ = place()

    class Stuck(Interrupting):
        def __iter__(self) -> Any:
            self.passes += 1
            if self.passes == 2 and self.rank == 1:
                time.sleep(40.0)
            yield from share()

    lh.analyze(lh.Objective(network(), Stuck(rank), nn.CrossEntropyLoss()))
