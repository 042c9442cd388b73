"""Train with Lightning Fabric, and look at the curvature in between: on one process or several, the same numbers.

Run it with `torchrun --standalone --nproc-per-node 2 examples/with_fabric.py`, or with python. (`fabric run` makes the
processes itself: leave out `fabric.launch()` then.)
"""

import os
import time

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import layerhess as lh

fabric = Fabric(accelerator="cpu", devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # as torchrun says
fabric.launch()
fabric.seed_everything(0)

x = torch.randn(61, 8, dtype=torch.float64)  # 61 examples: two processes cannot share them evenly
y = (x[:, 0] * x[:, 1] > 0).long()
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)).double()
loss = nn.CrossEntropyLoss()
model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
loader = fabric.setup_dataloaders(DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True))

for epoch in range(2):
    # Every process calls it with its own share, and gets the whole answer. Fabric's sampler fills the shares up to
    # equal sizes with examples that come twice; they are counted once.
    analysis = lh.analyze(lh.Objective(model, loader, loss), blocks="weight", top=2)
    if fabric.is_global_zero:
        for name, block in analysis.blocks.items():  # without `_forward_module.module.` in front
            print(epoch, name, *(f"{value:.10f}" for value in block.eigenvalues))
    optimizer.zero_grad()
    fabric.backward(loss(model(x), y))  # a step with all data on every process
    optimizer.step()

time.sleep(1)  # gloo still lets go of the last sums, and torch 2.13 aborts where the interpreter ends before that
