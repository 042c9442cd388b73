"""Train with Ray Train, and look at the curvature in between. Run it with `python examples/with_ray_train.py`.

Needs `pip install "ray[train]"`. Ray starts the processes itself.
"""

import ray.train
import ray.train.torch
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import layerhess as lh


def train() -> None:
    """What every worker runs, in one process group."""
    torch.manual_seed(0)
    x = torch.randn(61, 8, dtype=torch.float64)  # 61 examples: two workers cannot share them evenly
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    loss = nn.CrossEntropyLoss()
    model = ray.train.torch.prepare_model(model)
    # A DistributedSampler is put in, which fills the shares up with examples that come twice; they are counted once.
    # Of Ray Data pass list(shard.iter_torch_batches(...)): its blocks are handed out anew in every pass.
    loader = ray.train.torch.prepare_data_loader(DataLoader(TensorDataset(x, y), batch_size=8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(2):
        analysis = lh.analyze(lh.Objective(model, loader, loss), blocks="weight", top=2)
        if ray.train.get_context().get_world_rank() == 0:
            for name, block in analysis.blocks.items():
                print(epoch, name, *(f"{value:.10f}" for value in block.eigenvalues))
        ray.train.report({name: float(block.eigenvalues[0]) for name, block in analysis.blocks.items()})
        optimizer.zero_grad()
        loss(model(x), y).backward()  # a step with all data on every worker
        optimizer.step()


if __name__ == "__main__":
    ray.train.torch.TorchTrainer(train, scaling_config=ray.train.ScalingConfig(num_workers=2)).fit()
