# %% [markdown]
# # Two trainings, compared
#
# Does weight decay lead to flatter weights? Train the same network twice on handwritten digits, once without and once
# with weight decay, and compare the curvature of both, layer by layer. The answer has a catch, and the comparison
# shows it.

# %%
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import layerhess as lh

digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)
train, test = slice(0, 1200), slice(1200, None)

# %% [markdown]
# ## Training
#
# The same start and the same batches: the two differ in weight decay alone.


# %%
def trained(weight_decay):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=weight_decay)
    loss = nn.CrossEntropyLoss()
    for _ in range(400):
        chosen = torch.randint(1200, (128,))
        optimizer.zero_grad()
        loss(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    right = (model(x[test]).argmax(dim=1) == y[test]).float().mean().item()
    final = loss(model(x[train]), y[train]).item()
    print(f"weight decay {weight_decay}: training loss {final:.4f}, test accuracy {right:.1%}")
    return model


plain, decayed = trained(0.0), trained(1.0)

# %% [markdown]
# ## Two analyses
#
# Both on the same examples. `sampling=True` measures how far the numbers would move with other examples, without which
# no difference can be told from chance. `top=2` shows whether the largest eigenvalue is single, so that its direction
# means something.


# %%
def analysed(model):
    objective = lh.Objective(model, (x[train], y[train]), nn.CrossEntropyLoss())
    return lh.analyze(objective, blocks="weight", top=2, sampling=True, seed=0)


first, second = analysed(plain), analysed(decayed)
for name, result in (("plain", first), ("decayed", second)):
    print(name, {block: round(float(s.eigenvalues[0]), 3) for block, s in result.blocks.items()})

# %% [markdown]
# ## The comparison

# %%
comparison = lh.compare([first, second])
print(comparison)

# %% [markdown]
# "Different" is said only where a difference exceeds the error bounds of both eigenvalues and what other examples
# would make of it. The layers differ, and the other way round than one might expect: with weight decay all of them are
# *sharper*, by a factor of nearly two. (A log ratio of 0.58 is a factor of 1.8.)

# %%
figure = comparison.plot()
figure

# %% [markdown]
# ## The catch: size
#
# Weight decay makes weights smaller, and the curvature depends on their size. In a ReLU network, halve the weights of
# one layer and double those of the next: the function is the same, and the first layer's curvature is four times as
# large. So compare the eigenvalue times the squared norm of the weights, too. It says how much a change of a fixed
# *relative* size hurts.

# %%
for name, block in comparison.blocks.items():
    print(
        f"{name:9} lambda_max x {np.exp(block.log_ratio):5.2f}   "
        f"lambda_max ||W||^2 x {np.exp(block.scale_free_log_ratio):5.2f}   different: {block.significant}, "
        f"scale-free: {block.scale_free_significant}"
    )

# %% [markdown]
# Most of the difference is gone: these factors are close to 1. Weight decay has made the weights smaller; per relative
# change, the loss bends about as much as before. Read both columns before you say "flatter", or "sharper".
#
# ## The same directions?
#
# An overlap of 1 says that the sharpest directions are the same in both networks, one near 0 that they have nothing to
# do with one another.

# %%
for name, block in comparison.blocks.items():
    print(f"{name:9} overlap {block.overlap:.2f}  ({block.spaces})")
