# %% [markdown]
# # A small transformer, layer by layer
#
# A language model with the architecture of GPT-2, trained for a few seconds on a text that it can learn: which layers
# are sharp afterwards, and what does the curvature look like between the ends of the spectrum? The model is made from
# a configuration, so nothing is downloaded. With `from_pretrained` in its place, the rest stays as it is.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import layerhess as lh

torch.manual_seed(0)
config = GPT2Config(vocab_size=12, n_positions=24, n_embd=24, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)
model = GPT2LMHeadModel(config)
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

# %% [markdown]
# ## A text that can be learned
#
# Sequences that count: each token is the one before it plus a step that stays the same within a sequence, modulo 12.
# To predict the next token, the model has to look at two earlier ones.

# %%
start, step = torch.randint(12, (96, 1)), torch.randint(1, 12, (96, 1))
tokens = (start + step * torch.arange(16)) % 12
train, test = tokens[:64], tokens[64:]
print(train[0].tolist())

optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(120):
    optimizer.zero_grad()
    model(input_ids=train, labels=train).loss.backward()
    optimizer.step()
model.eval()
with torch.no_grad():
    test_loss = model(input_ids=test, labels=test).loss.item()
print(f"loss on sequences it has not seen: {test_loss:.3f}; guessing: {np.log(12):.3f}")

# %% [markdown]
# ## Which layers are sharp?
#
# A batch of a Hugging Face model is a mapping, and the model brings its own loss. `depth:3` makes one block of each
# layer of the transformer. Two eigenvalues of each are asked for.

# %%
batches = [{"input_ids": train[:32], "labels": train[:32]}, {"input_ids": train[32:], "labels": train[32:]}]
objective = lh.Objective(model, batches)
analysis = lh.analyze(objective, blocks="depth:3", top=2, tol=1e-2, seed=0)
print(analysis)

# %% [markdown]
# No block is sharper than the whole model: moving everything at once can bend the loss more than moving one layer. The
# picture shows both, each eigenvalue with its error bound.

# %%
figure = analysis.plot()
figure

# %% [markdown]
# ## Where does the sharpest direction live?
#
# The eigenvector of the whole model is a direction in which all layers move. Its squared length is 1, and a part of
# that lies in each layer.

# %%
for name, share in analysis.full_mass[0].items():
    print(f"{name:20} {share:6.1%}")

# %% [markdown]
# ## Is the loss a parabola there?
#
# Walk along that direction and look. The dots are the loss itself; the parabola is made of the gradient and the
# Hessian at the middle.

# %%
slice_along = lh.loss_slice(objective, analysis.full.eigenvectors[0], radius=0.3, points=21)
print(slice_along.status)
figure, axis = plt.subplots(figsize=(5, 3))
axis.plot(slice_along.alpha, slice_along.loss, "o", label="loss")
axis.plot(slice_along.alpha, slice_along.quadratic, label="parabola")
axis.set_xlabel("distance along the eigenvector")
axis.set_ylabel("loss")
axis.legend()
plt.close(figure)
figure

# %% [markdown]
# Close to the weights the loss is the parabola. Further out it bends less: a second-order prediction is one for small
# steps.
#
# ## What is in between?
#
# The trace of a block is the sum of all its eigenvalues. Divided by the number of parameters it is the average
# curvature, by which layers are ranked for rounding.

# %%
traces = lh.analyze(objective, blocks="depth:3", top=1, full=False, trace=lh.Trace(rel=0.1), tol=1e-1, seed=0)
for name, block in traces.blocks.items():
    mean, error = block.trace.value / block.numel, block.trace.standard_error / block.numel
    print(f"{name:20} mean curvature {mean:.5f} +- {error:.5f}")

# %% [markdown]
# Small as this network is, its layers differ. Analyse your own: the three lines that make `batches`, `objective` and
# `analysis` are all that it takes.
