"""The empirical Fisher matrix of the mean loss."""

from __future__ import annotations

from layerhess.curvature.matrices import ITEM_FISHER, TOKEN_FISHER
from layerhess.curvature.operator import Operator
from layerhess.errors import InputError
from layerhess.objective.blocks import Scheme
from layerhess.objective.item_losses import LEVELS
from layerhess.objective.objective import Objective


class EmpiricalFisher(Operator):
    """F = (1/count) sum g g' and its diagonal blocks, g the gradient of one item's loss (its sum, not its mean).

    Not the Fisher matrix, whose targets would be drawn from the model, and no approximation of the Hessian away from a
    good fit (Kunstner, Hennig & Balles 2019). The count is that of the loss: for a language model at item level, g
    belongs to a sequence and the count to tokens. Same methods as :class:`layerhess.Hessian`.

    A criterion of ``torch.nn`` needs one forward pass a batch. Other callables are called once an item; a model's own
    ``.loss`` and a ``batch_loss`` without ``output=`` run the whole model once an item, which is slower.

    Args:
        objective: the loss over the data. blocks: a block scheme, see :func:`layerhess.analyze`.
        level: "item", one gradient for each entry of dimension 0; or "token", one for each counted term of a cross
            entropy or NLL.

    Raises:
        InputError: bad scheme or level; BatchNorm in train mode; the token level of another loss.

    >>> import torch, layerhess as lh
    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> torch.nn.init.zeros_(model.weight).detach()
    tensor([[0., 0.]], dtype=torch.float64)
    >>> data = (torch.eye(2).double(), torch.tensor([[1.0], [2.0]]).double())
    >>> lh.EmpiricalFisher(lh.Objective(model, data, torch.nn.MSELoss())).to_dense()      # g = -2 y x
    tensor([[2., 0.],
            [0., 8.]], dtype=torch.float64)
    """

    def __init__(self, objective: Objective, blocks: Scheme = "parameter", level: str = "item") -> None:
        if level not in LEVELS:
            raise InputError(f"unknown level {level!r}", where="level", what_to_do="use 'item' or 'token'")
        self.curvature = TOKEN_FISHER if level == "token" else ITEM_FISHER
        super().__init__(objective, blocks)
