# %% [markdown]
# # Layer by layer, or all at once? A worked example
#
# This tutorial takes a network so small that its curvature fits on a sheet of paper, and computes the same eigenvalues
# in five ways: by hand, entry by entry with autograd, with NumPy, with power iteration, and with `layerhess`. It then
# looks at what the whole model says, why that is another number, and how a number that is *nearly* right comes about.
#
# The network has two layers and no biases: $f(x) = V \cdot (W x)$, with
# $$W = \begin{pmatrix} 2 & 3 \\ 4 & 1 \end{pmatrix}, \qquad V = \begin{pmatrix} 2 & 1 \end{pmatrix},$$
# one example $x = (1, 1)$ with the target $y = 14$, and the squared error $L = (f(x) - y)^2$.

# %%
import numpy as np
import torch
from torch import nn

import layerhess as lh


class TwoLayers(nn.Module):
    """Two inputs, two hidden units, one output: f(x) = V . (W x)."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.tensor([[2.0, 3.0], [4.0, 1.0]]))  # shape (2, 2)
        self.V = nn.Parameter(torch.tensor([2.0, 1.0]))  # shape (2,)

    def forward(self, x):
        return self.V @ (self.W @ x)


model = TwoLayers()
x = torch.tensor([1.0, 1.0])  # one example, not even a batch: shape (2,)
y = torch.tensor([14.0])  # shape (1,)


def loss():
    return ((model(x) - y) ** 2).mean()


print("hidden units W x =", (model.W @ x).tolist())
print("output f(x)      =", model(x).item())
print("loss             =", loss().item())

# %% [markdown]
# The hidden units are $a = W x = (5, 5)$, the output is $2 \cdot 5 + 1 \cdot 5 = 15$, the error is
# $e = 15 - 14 = 1$, and the loss is $1$.
#
# ## By hand
#
# A Hessian is the table of all second derivatives of the loss. We ask for two of its pieces.
#
# **The block of V**: how the loss bends when only $V$ moves and $W$ is held still. The output is linear in $V$, with
# gradient $a = (5, 5)$, so
# $$H_{VV} = 2\, a\, a^T = \begin{pmatrix} 50 & 50 \\ 50 & 50 \end{pmatrix}.$$
# It bends in one direction only, $(1, 1)/\sqrt 2$, with eigenvalue $2 \|a\|^2 = 100$.
#
# **The block of W**: now only $W$ moves. The output is linear in $W$ too: the derivative with respect to $W_{ij}$ is
# $V_i x_j$, which read row by row is $g = (2, 2, 1, 1)$. So
# $$H_{WW} = 2\, g\, g^T = \begin{pmatrix} 8 & 8 & 4 & 4 \\ 8 & 8 & 4 & 4 \\ 4 & 4 & 2 & 2 \\ 4 & 4 & 2 & 2
# \end{pmatrix}.$$
# Again one direction, $(2, 2, 1, 1)/\sqrt{10}$, with eigenvalue $2 \|g\|^2 = 20$.

# %%
H_VV_by_hand = np.array([[50.0, 50.0], [50.0, 50.0]])
H_WW_by_hand = np.array(
    [
        [8.0, 8.0, 4.0, 4.0],
        [8.0, 8.0, 4.0, 4.0],
        [4.0, 4.0, 2.0, 2.0],
        [4.0, 4.0, 2.0, 2.0],
    ]
)

# %% [markdown]
# ## Read off by autograd, entry by entry
#
# Differentiating once gives the gradient. Differentiating *gradient times unit vector* once more gives one column of
# the Hessian. Two columns for $V$, four for $W$.


# %%
def columns(parameter):
    """The diagonal block of one parameter, a column for each unit vector, as a NumPy matrix."""
    (gradient,) = torch.autograd.grad(loss(), parameter, create_graph=True)
    found = []
    for i in range(parameter.numel()):
        unit = torch.zeros(parameter.numel())
        unit[i] = 1.0
        (column,) = torch.autograd.grad((gradient.flatten() * unit).sum(), parameter, retain_graph=True)
        found.append(column.flatten())
    return torch.stack(found, dim=1).double().numpy()


H_VV, H_WW = columns(model.V), columns(model.W)
print("H_VV =\n", H_VV)
print("H_WW =\n", H_WW)
print("equal to those by hand:", bool((H_VV == H_VV_by_hand).all() and (H_WW == H_WW_by_hand).all()))

# %% [markdown]
# ## NumPy's eigenvalues
#
# For matrices this small, the eigenvalues can simply be computed. `eigh` returns them in ascending order, so the last
# one is the largest. An eigenvector is only fixed up to its sign.

# %%
V_values, V_vectors = np.linalg.eigh(H_VV)
W_values, W_vectors = np.linalg.eigh(H_WW)
print("V:", V_values[::-1].round(6), " top vector", np.abs(V_vectors[:, -1]).round(4))
print("W:", W_values[::-1].round(6), " top vector", np.abs(W_vectors[:, -1]).round(4))

# %% [markdown]
# **20** for $W$, with $(0.6325, 0.6325, 0.3162, 0.3162)$, and **100** for $V$, with $(0.7071, 0.7071)$.
#
# ## Power iteration, one layer at a time
#
# A real layer has too many parameters to write its block down, but multiplying the block by a vector takes no more than
# the two differentiations above. Multiply, normalise, repeat: the vector turns towards the direction that bends most.
# The eigenvalue is then read off with the Rayleigh quotient $\theta = v^T H v$ (for a unit vector $v$), and the
# residual $\|H v - \theta v\|$ says how far $v$ is from being an eigenvector: an eigenvalue is certain to lie within
# that distance of $\theta$.
#
# What matters is that each layer gets *its own* vector and *its own* norm, and that the second differentiation is
# with respect to that layer only. Normalising one long vector across all layers asks for the top eigenvalue of the
# whole model instead.


# %%
def multiply(parameter, vector):
    """The diagonal block of one parameter times a vector of the parameter's shape."""
    (gradient,) = torch.autograd.grad(loss(), parameter, create_graph=True)
    (product,) = torch.autograd.grad((gradient * vector).sum(), parameter)
    return product


def power_iteration(parameter, seed=0, steps=20):
    """Return (Rayleigh quotient, residual, unit vector) after some multiplications from a random start."""
    v = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    v /= v.norm()
    for _ in range(steps):
        v = multiply(parameter, v)
        v /= v.norm()
    product = multiply(parameter, v)
    theta = (v * product).sum()
    return theta.item(), (product - theta * v).norm().item(), v


power = {name: power_iteration(parameter) for name, parameter in model.named_parameters()}
for name, (theta, residual, v) in power.items():
    print(f"{name}: {theta:.5f}, residual {residual:.1e}, vector {v.flatten().abs().numpy().round(4)}")

# %% [markdown]
# ## The same with layerhess
#
# The objective is the model, the data and the loss. `analyze` treats each parameter tensor as a block of its own and
# looks at the whole model as well. Both blocks are so small that it computes their whole spectra; `complete` says that
# nothing can have been missed.

# %%
objective = lh.Objective(model, (x, y), nn.MSELoss())
analysis = lh.analyze(objective)
print(analysis)

# %%
for name, block in analysis.blocks.items():
    vector = block.eigenvectors[0][name].flatten().numpy()
    print(f"{name}: {block.eigenvalues[0]:.6f} +- {block.error_bounds[0]:.1e}, complete: {block.complete}, {vector}")

# %% [markdown]
# Power iteration is there too, for teaching and for comparison. It works on all layers in the same passes over the
# data, and comes with the same error bounds as everything else.

# %%
by_power = lh.analyze(objective, method="power")
for name, block in by_power.blocks.items():
    print(f"{name}: {block.eigenvalues[0]:.6f} +- {block.error_bounds[0]:.1e}, {block.steps} products")

# %% [markdown]
# ## The whole model
#
# The full Hessian has six rows: four for $W$, two for $V$. Its largest eigenvalue is neither 20 nor 100.

# %%
H = lh.Hessian(objective).to_dense().double().numpy()  # order: W row by row, then V
full_values = np.sort(np.linalg.eigvalsh(H))[::-1]
print(H)
print("eigenvalues:       ", full_values.round(6))
print("60 + 2 sqrt(962) = ", 60 + 2 * np.sqrt(962))
print("layerhess, full:   ", analysis.full.eigenvalues[0], "+-", analysis.full.error_bounds[0])

# %% [markdown]
# The full Hessian has the eigenvalues $60 + 2\sqrt{962} = 122.03\ldots$, $2\sqrt 2$, $0$, $0$,
# $60 - 2\sqrt{962} = -2.03\ldots$ and $-2\sqrt 2$. Two things are worth noticing.
#
# * The top of the whole model, 122.03, is larger than the top of each layer. It always is at least as large (that is
#   Cauchy's interlacing theorem), because moving both layers at once can bend the loss more than moving either alone.
# * The whole model has *negative* eigenvalues, while both layers bend upwards only. The network is linear in each
#   layer, so each layer on its own sees a parabola; the two together see a saddle.
#
# ## What is left out when layers are looked at one by one
#
# The blocks of $W$ and $V$ are the two squares on the diagonal of the matrix above. What lies outside of them is the
# coupling: how the slope of one layer changes when the other one moves. It has an entry for every pair of weights
# $W_{ij}$ and $V_k$: it is $2 V_i x_j a_k$, and where $k = i$ (the weights into and out of the same hidden unit)
# another $2 e x_j$.

# %%
H_WV = H[:4, 4:]
squared_coupling = 2 * (H_WV**2).sum()
squared_all = (H**2).sum()
off_diagonal_share = squared_coupling / squared_all
print("H_WV =\n", H_WV)
print(f"||H||_F^2 = {squared_all:.0f}, of which outside of the blocks {squared_coupling:.0f}: {off_diagonal_share:.2%}")

# %% [markdown]
# Thirty per cent of the squared Hessian is coupling. That is what block-diagonal thinking leaves out here. Both views
# are right: the blocks say how sensitive each layer is with the others held still (the question of those who quantise
# or prune one layer), the full Hessian says how the loss bends along a step that moves everything (the question of
# those who choose a learning rate).
#
# ## And 120?
#
# $20 + 100 = 120$ is the top eigenvalue of a third matrix, the Gauss-Newton matrix $G = 2\, J^T J$, where $J$ is the
# gradient of the output with respect to all six weights. It has the same diagonal blocks as $H$ here, but in the
# coupling it lacks the part that is proportional to the error, $2 e x_j$. As $G$ has rank one, its only nonzero
# eigenvalue is its trace, and that is the sum of the traces of its blocks.

# %%
J = torch.cat([g.flatten() for g in torch.autograd.grad(model(x), [model.W, model.V])]).double().numpy()
G = 2 * np.outer(J, J)
gauss_newton_top = np.linalg.eigvalsh(G)[-1]
print("top of G:", gauss_newton_top)

# %% [markdown]
# ## What 121.97 was
#
# The library PyHessian, given this example, was reported to answer 121.97. That is not a layer's eigenvalue: it is the
# full Hessian's, 122.03, stopped early. PyHessian multiplies one random vector for all parameters together, and
# returns the previous Rayleigh quotient as soon as two in a row differ by less than a thousandth. Here is that rule,
# with many random starts.


# %%
def stopped_by_change(matrix, seed, tol=1e-3, most=100):
    """Power iteration that stops when the Rayleigh quotient changes by less than tol, relatively."""
    v = np.random.default_rng(seed).standard_normal(len(matrix))
    v /= np.linalg.norm(v)
    previous = None
    for _ in range(most):
        product = matrix @ v
        theta = v @ product
        v = product / np.linalg.norm(product)
        if previous is not None and abs(previous - theta) / (abs(previous) + 1e-6) < tol:
            return previous
        previous = theta
    return previous


answers = np.array([stopped_by_change(H, seed) for seed in range(2000)])
share_of_121_97 = np.mean(answers.round(2) == 121.97)
print(f"2000 starts: between {answers.min():.4f} and {answers.max():.4f}; the truth is {full_values[0]:.4f}")
print(f"{share_of_121_97:.1%} of the starts answer 121.97")

# %% [markdown]
# The answers scatter below the truth, 121.97 among them, and nothing tells which one is how wrong: **the change between
# two steps is not an error**. In this example the damage is small, because the top eigenvalue stands far above the
# rest. In trained networks it does not, and the same rule then stops wherever progress is slow. That is why every
# eigenvalue of `layerhess` carries a bound that is computed from the residual, and why the bound, not the change,
# decides when to stop.
