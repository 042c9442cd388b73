"""A factory for several processes, each of which reads its share of the data. Start it with

    torchrun --standalone --nproc-per-node 2 -m layerhess analyze examples/torchrun_factory.py:make

In one process, layerhess analyze examples/torchrun_factory.py:make gives the same numbers.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import layerhess as lh


def make():
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(0)  # the same weights on every rank; or load one checkpoint
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    data = TensorDataset(torch.randn(61, 10).double(), torch.randint(3, (61,)))
    # 61 examples do not divide by 2: the sampler repeats one, which counts once.
    loader = DataLoader(data, batch_size=16, sampler=DistributedSampler(data, ranks, rank))
    return lh.Objective(model, loader, nn.CrossEntropyLoss())
