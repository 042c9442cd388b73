"""Models as training shards and wraps them, on two ranks; run by test_sharded_models.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.utils.data import DataLoader

import layerhess as lh
from layerhess.cli.prepare import prepared
from witness import bits

CE = nn.CrossEntropyLoss()


class Words(nn.Module):
    """An embedding tied to the head, a norm and two layers: 7 words of 5 numbers, which 2 ranks do not share evenly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 5)
        self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 5)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor(0.5))
        self.calls = 0
        self.double()

    def forward(self, words: Tensor) -> Tensor:
        self.calls += 1
        x = self.embedding(words)
        x = x + self.scale * self.down(torch.tanh(self.up(x)))
        return self.head(self.norm(x)).flatten(0, 1)


def words(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(0, 7, (count, 3), generator=generator)
    return inputs, (inputs * 2 + 1) % 7


def shares(count: int = 6) -> list[Any]:
    """This rank's examples as batches of two sequences; targets are flat, so batches are made here."""
    x, y = words(count)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return [(x[i : i + 1], y[i]) for i in range(rank, count, ranks)]


def whole(count: int = 6) -> list[Any]:
    x, y = words(count)
    return [(x[i : i + 1], y[i]) for i in range(count)]


def sharded(model: Words | None = None, **options: Any) -> nn.Module:
    model = model or Words()
    for layer in (model.up, model.down):
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def columns_and_rows() -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    return parallelize_module(Words(), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def columns() -> nn.Module:

    return parallelize_module(
        Words(), init_device_mesh("cpu", (2,)), {"up": ColwiseParallel(output_layouts=Replicate())}
    )


def both(shape: tuple[int, int]) -> nn.Module:
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))
    model = parallelize_module(Words(), mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return sharded(model, mesh=mesh["data"])


def left_unsharded() -> nn.Module:
    """After a forward pass without a backward pass FSDP2 holds the root's weights whole."""
    model = sharded()
    model(words()[0])
    assert not isinstance(model.norm.weight, DTensor)
    return model


def fully_unsharded() -> nn.Module:
    model = sharded(reshard_after_forward=False)
    model.unshard()
    return model


def columns_left_apart() -> nn.Module:
    """Its own forward pass fails: what comes out of the norm is a DTensor, which the head does not know."""
    return parallelize_module(Words(), init_device_mesh("cpu", (2,)), {"norm": SequenceParallel()})


def ddp() -> nn.Module:
    return nn.parallel.DistributedDataParallel(Words())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "FSDP2": sharded,
    "FSDP2 left unsharded": left_unsharded,
    "FSDP2 unsharded by hand": fully_unsharded,
    "FSDP2 in bfloat16": lambda: sharded(mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32)),
    "FSDP2 replicated": lambda: sharded(mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicas", "shards"))),
    "FSDP2 compiled": lambda: torch.compile(sharded(), backend="eager"),
    "columns and rows": columns_and_rows,
    "columns": columns,
    "not running": columns_left_apart,
    "FSDP2 around rows of one": lambda: both((2, 1)),
    "FSDP2 of one around rows": lambda: both((1, 2)),
    "DDP": ddp,
}


def products() -> dict[str, Any]:
    """Name -> (names of parameters, a product of the full model and blocks', is the model as it was?, numel, notes)."""
    found: dict[str, Any] = {}
    for name, make in MODELS.items():
        model = make()
        before = state(model)
        objective = lh.Objective(model, shares(), CE)
        operator = lh.Hessian(objective, {"norm": "norm.*", "tied": "head.weight", "up": "up.*"})
        made = operator.matvec(torch.linspace(-1, 1, objective.numel).double())
        tied = operator.block_matvec({"tied": torch.linspace(-1, 1, 35).double()})["tied"]
        untouched = state(model) == before
        found[name] = (list(objective.parameters), (made, tied), untouched, objective.numel, objective.notes)
    return found


def state(model: nn.Module) -> Any:
    """Kinds and bits of all that a rank holds, gradients included, in shards where FSDP2 holds weights whole."""
    inner = getattr(model, "_orig_mod", model)
    inner = getattr(inner, "module", inner)
    for module in inner.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    made: list[Any] = [inner.calls, inner.training]
    for name, tensor in (*inner.named_parameters(), *inner.named_buffers()):
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        grad = tensor.grad.to_local() if isinstance(tensor.grad, DTensor) else tensor.grad
        made.append((name, type(tensor).__name__, id(tensor), tensor.requires_grad, bits(own), bits(grad)))
    return made


def training_goes_on() -> dict[str, bool]:
    """A step after an analysis, and gradients from before it, are those of a model that was never analysed."""
    made = {}
    for name in ("FSDP2", "columns and rows"):
        ends = []
        for analysed in (True, False):
            model = MODELS[name]()
            optimizer = torch.optim.Adam(model.parameters(), 0.1)
            x, y = words()
            data = (x, y) if name == "columns and rows" else (x[dist.get_rank() :: 2], y[dist.get_rank() :: 2])
            for step in range(2):
                CE(model(data[0]), data[1].flatten()).backward()
                if analysed and step == 0:
                    lh.analyze(lh.Objective(model, shares(), CE), blocks="weight", max_passes=3, exclude=None)
                optimizer.step()
                optimizer.zero_grad()
            ends.append([bits(p.to_local() if isinstance(p, DTensor) else p) for p in model.parameters()])
        made[name] = ends[0] == ends[1]
    return made


def weights_that_change() -> list[Tensor]:
    """One objective of a model that is trained between two products."""
    model = sharded()
    objective = lh.Objective(model, shares(), CE)
    first = lh.Hessian(objective).to_dense()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
        model.scale.fill_(0.7)
    return [first, lh.Hessian(objective).to_dense()]


def same_data_on_all() -> dict[str, Any]:
    """Ranks of tensor parallelism are given the same data: it counts once, in errors of sampling too."""
    found = lh.analyze(lh.Objective(columns_and_rows(), whole(), CE), blocks="module", full=False, sampling=True)
    objective = lh.Objective(columns_and_rows(), DataLoader(whole(), batch_size=None), CE)  # type: ignore[arg-type]
    products = [lh.Hessian(objective).matvec(torch.linspace(-1, 1, objective.numel).double()) for _ in range(2)]
    spectra = {name: (block.eigenvalues, block.sampling_errors) for name, block in found.blocks.items()}
    return {"spectra": spectra, "products": products, "batches": sum(1 for _ in objective.batches())}


def refused() -> list[str]:
    """What cannot be done with sharded weights, in words."""
    objective = lh.Objective(sharded(), shares(), CE)
    sentences = []
    for call in (
        lambda: prepared(objective, checkpoint=Path("weights.safetensors")),
        lambda: lh.Objective(sharded_on_meta(), shares(), CE),
        lambda: lh.Hessian(lh.Objective(knowing_of_shards(), numbers(), CE)).to_dense(),
    ):
        try:
            call()
        except (lh.InputError, lh.CheckError) as error:
            sentences.append(str(error))
    return sentences


def numbers() -> list[Any]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(6, 4, generator=generator, dtype=torch.float64), torch.arange(6) % 3)]


class KnowsOfShards(nn.Module):
    """Its own mean is taken over its share of the columns: with whole weights it is another function."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.share = nn.Linear(4, 6).double(), nn.Linear(6, 3).double(), 6
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.down(torch.tanh(self.up(x)) / self.share)


def knowing_of_shards() -> nn.Module:
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    model = parallelize_module(KnowsOfShards(), init_device_mesh("cpu", (2,)), plan)
    model.up.register_forward_hook(scaled)
    return model


def scaled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A hook of the user's, which is part of the function; it looks at the shards."""
    return output * (3.0 if isinstance(module.weight, DTensor) else 1.0)


def sharded_on_meta() -> nn.Module:
    with torch.device("meta"):
        return fully_shard(nn.Linear(5, 7))


def everything() -> dict[str, Any]:
    return {
        "products": products(),
        "training": training_goes_on(),
        "changing": weights_that_change(),
        "refused": refused(),
        "same data": same_data_on_all(),
    }
