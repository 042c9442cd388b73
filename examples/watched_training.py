# %% [markdown]
# # A training, watched
#
# How sharp is the loss while a network trains? Plain gradient descent with a fixed learning rate has a limit: where
# the largest eigenvalue of the Hessian exceeds 2 / learning rate, it is unstable. This notebook trains a small network
# on handwritten digits, on all examples at once, and lets a monitor follow that eigenvalue, for the whole model and
# for every layer.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import layerhess as lh

digits = load_digits()
x = torch.tensor(digits.data[:500], dtype=torch.float32)
x = (x - x.mean()) / x.std()
y = nn.functional.one_hot(torch.tensor(digits.target[:500]), 10).float()

# %% [markdown]
# ## Train
#
# Two lines belong to the monitor: the one that makes it, and `monitor.step()` after each step of the optimizer.
# `overhead=None` asks for a point at every 50th step whatever it costs; without it, the monitor would take 5 % of the
# time at most, and a training as short as this one would be over before the first point.

# %%
learning_rate = 0.6
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
criterion = nn.MSELoss()

objective = lh.Objective(model, (x, y), criterion)
monitor = lh.Monitor(objective, every=50, overhead=None, optimizer=optimizer)
losses = []
for _ in range(2000):
    optimizer.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    monitor.step()

frame = monitor.to_frame()
whole = frame[frame.block == "(full)"]
print(f"{len(whole)} points; loss {losses[0]:.4f} at first, {losses[-1]:.4f} at last")
print(whole[["step", "lambda_max", "bound", "threshold", "ratio"]].tail(5).to_string(index=False))

# %% [markdown]
# ## The whole model
#
# The eigenvalue rises until it is as large as the learning rate allows, and then stays there, while the loss goes on
# falling. That is the edge of stability (Cohen et al., 2021).

# %%
figure, (upper, lower) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
upper.plot(losses)
upper.set_yscale("log")
upper.set_ylabel("loss")
lower.errorbar(whole.step, whole.lambda_max, yerr=whole.bound, fmt="o", markersize=3)
lower.axhline(2 / learning_rate, color="0.4", linestyle="--")
lower.annotate("2 / learning rate", (0, 2 / learning_rate), xytext=(0, 4), textcoords="offset points", color="0.4")
lower.set_ylabel("largest eigenvalue")
lower.set_xlabel("step")
plt.close(figure)
figure

# %% [markdown]
# ## Layer by layer
#
# The same, for each weight alone. No layer is as sharp as the whole model, and they do not rise alike.

# %%
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for (block, points), marker in zip(frame.groupby("block", sort=False), "os^D", strict=True):
    style = {"color": "0.2", "linewidth": 2} if block == "(full)" else {"linewidth": 1}
    axes.plot(points.step, points.lambda_max, marker=marker, markersize=3, label=block, **style)
axes.set_xlabel("step")
axes.set_ylabel("largest eigenvalue")
axes.legend()
plt.close(figure)
figure

# %% [markdown]
# ## Can the points be trusted?
#
# Each has a bound, and says how much larger an eigenvalue that was missed could be. Ask for the last one again, with
# all care:

# %%
last = whole.iloc[-1]
again = lh.analyze(objective, blocks="weight", tol=1e-4)
print(
    f"monitor: {last.lambda_max:.4f} +- {last.bound:.4f}; a missed one is at most {last.missed_factor:.2f} times that"
)
print(f"analyze: {again.full.eigenvalues[0]:.4f} +- {again.full.error_bounds[0]:.4f}")

# %% [markdown]
# The monitor changes nothing: the weights are, bit for bit, those of a training without it. In a trainer it is a
# callback, `layerhess.lightning.CurvatureMonitor` or `layerhess.transformers.CurvatureCallback`.
