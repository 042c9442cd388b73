"""Train with accelerate, and look at the curvature in between: on one process or several, the same numbers.

Run it with `accelerate launch --num_processes 2 --cpu examples/with_accelerate.py`, with torchrun, or with python.
"""

import time

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import layerhess as lh

set_seed(0)
x = torch.randn(61, 8, dtype=torch.float64)  # 61 examples: two processes cannot share them evenly
y = (x[:, 0] * x[:, 1] > 0).long()
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)).double()
loss = nn.CrossEntropyLoss()

accelerator = Accelerator(cpu=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

for epoch in range(2):
    # Every process calls it with its own share, as prepared, and gets the whole answer. Accelerate fills the shares up
    # to equal sizes with examples that come twice; they are counted once.
    analysis = lh.analyze(lh.Objective(model, loader, loss), blocks="weight", top=2)
    if accelerator.is_main_process:
        for name, block in analysis.blocks.items():  # names of the model's own, whatever is wrapped around it
            print(epoch, name, *(f"{value:.10f}" for value in block.eigenvalues))
    optimizer.zero_grad()
    accelerator.backward(loss(model(x), y))  # a step with all data on every process
    optimizer.step()

accelerator.end_training()
time.sleep(1)  # gloo still lets go of the last sums, and torch 2.13 aborts where the interpreter ends before that
