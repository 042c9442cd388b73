"""The public operators: Hessian, Gauss-Newton and empirical Fisher as matrices to multiply by, whole or by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from layerhess.analysis.unknown_torch import refuse_unless_right
from layerhess.analysis.verification import verified
from layerhess.checks import SelfCheck
from layerhess.checks.second_derivative import named_operations
from layerhess.checks.survey import Survey
from layerhess.curvature.data_pass import FULL, DataPass
from layerhess.curvature.device import beside
from layerhess.curvature.difference_graph import by_differences
from layerhess.curvature.matrices import GAUSS_NEWTON, HESSIAN, ITEM_FISHER, TOKEN_FISHER, CurvatureMatrix
from layerhess.curvature.operator import UncheckedOperator
from layerhess.errors import InputError
from layerhess.linalg.described import Described, Description, called
from layerhess.linalg.numbers import count, counted
from layerhess.objective.blocks import Block, Scheme, check_flat, flatten
from layerhess.objective.item_losses import LEVELS
from layerhess.objective.objective import Objective

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

HESSIAN_PATHS = ("exact", "differences")
DENSE_CHUNK = 64  # unit vectors a pass while a dense matrix is read


class Operator(Described):
    """The base of all curvature matrices A: products with A and with its diagonal blocks A_bb.

    A subclass sets the matrix by its ``curvature``. Each product is one pass over the data, exact up to rounding. The
    first one runs the checks of :func:`layerhess.analyze`, once for all operators of an objective while its weights
    stay, and again after they changed.

    Args:
        objective: the loss over the data.
        blocks: a block scheme, see :func:`layerhess.analyze`.
        check: False leaves the checks out, for this operator and for all that is made with it.

    Attributes:
        shape: (P, P). block_names: in model order. uncovered: parameters in no block.

    Raises:
        InputError: bad scheme; an objective that has no such matrix.
    """

    curvature: CurvatureMatrix

    def __init__(self, objective: Objective, blocks: Scheme = "parameter", *, check: bool = True) -> None:
        self.check = check
        self.unchecked = UncheckedOperator(objective, self.curvature, blocks)
        self.objective = objective
        self.blocks: dict[str, Block] = self.unchecked.blocks
        self.uncovered = self.unchecked.uncovered
        self.full = self.unchecked.full
        self.shape = (self.full.numel, self.full.numel)
        self.dtype = objective.dtype

    @property
    def operator(self) -> str:
        """Name of the matrix, as :func:`layerhess.analyze` takes it."""
        return self.curvature.name

    @property
    def block_names(self) -> tuple[str, ...]:
        """Names of the blocks, in model order."""
        return tuple(self.blocks)

    def block(self, name: str) -> BlockOperator:
        """One diagonal block as an operator of its own.

        Raises:
            InputError: unknown name.
        """
        return BlockOperator(self, self.unchecked.spec(name))

    def _describe(self) -> Description:
        name = f"{type(self).__name__} of {type(self.objective.model).__name__}"
        told = f"{name}, {self.shape[0]} x {self.shape[1]}, {counted(len(self.blocks), 'block')}"
        rows = tuple((called(block), count(spec.numel)) for block, spec in self.blocks.items())
        return Description(told + ("" if self.check else ", unchecked"), columns=("block", "numel"), rows=rows)

    @contextmanager
    def session(self) -> Iterator[DataPass]:
        """Keep the batches' graphs between products inside this context (the model must not change in it)."""
        self.verify()
        with self.unchecked.session() as data_pass:
            yield data_pass

    def verify(self) -> tuple[Survey, SelfCheck] | None:
        """Run the checks, unless they are known to pass for the present weights; None with ``check=False``.

        Raises:
            InputError, CheckError: what :func:`layerhess.analyze` raises.
        """
        if not self.check:
            return None
        refuse_unless_right(self.objective.devices)
        return verified(self.objective, self.curvature, {**self.blocks, FULL: self.full})

    def apply(self, vectors: Mapping[str, tuple[Block, Tensor]]) -> dict[str, Tensor]:
        """Products of several blocks with (s, P_b) vectors, in one pass; (s, P_b) float64 each.

        Every product of this operator and of its blocks is made here.

        Raises:
            InputError: a vector that holds a NaN or an infinity, or a product that does (naming block and batch).
            InputError, CheckError: as :meth:`verify`.
        """
        for name, (_, rows) in vectors.items():
            if not bool(torch.isfinite(rows).all()):
                raise InputError(
                    "the vector holds a NaN or an infinity", where=f"the vector of {name}", what_to_do="repair it"
                )
        if not self.unchecked.in_session:
            self.verify()
        with self.objective.session(), named_operations(self.objective):
            return self.unchecked.apply(vectors)

    @overload
    def matvec(self, v: Tensor) -> Tensor: ...
    @overload
    def matvec(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def matvec(self, v: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """A v for the full matrix A.

        Args:
            v: flat (P,) in ``named_parameters()`` order, or a dict of parameter-shaped tensors.

        Returns:
            The same kind, in v's dtype.

        Raises:
            InputError: wrong names or shapes.
        """
        return self.block(FULL).matvec(v)

    def block_matvec(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A_bb v_b for several blocks at once, in one pass over the data.

        Args:
            vectors: block name -> flat (P_b,) tensor.

        Returns:
            block name -> flat (P_b,) tensor in v_b's dtype, on its device.

        Raises:
            InputError: unknown block, wrong shape, nothing asked for.
        """
        if not vectors:
            raise InputError("no block vector was given", where="block_matvec", what_to_do="give at least one")
        blocks = {name: self.unchecked.spec(name) for name in vectors}
        rows = {name: (blocks[name], check_flat(blocks[name], v)[None]) for name, v in vectors.items()}
        products = self.apply(rows)
        return {name: products[name][0].to(v.dtype).to(v.device) for name, v in vectors.items()}

    def to_dense(self) -> Tensor:
        """The full matrix, (P, P) in the parameters' dtype, symmetrised; P passes' worth of products."""
        return self.block(FULL).to_dense()

    def to_scipy(self) -> LinearOperator:
        """A ``scipy.sparse.linalg.LinearOperator`` of shape (P, P), float64 in and out."""
        return self.block(FULL).to_scipy()


class BlockOperator(Described):
    """One diagonal block A_bb (or the full A) as an operator; made by :meth:`Operator.block`.

    Attributes:
        spec: the block. shape: (P_b, P_b). dtype: the parameters' (coarsest) dtype.
    """

    def __init__(self, parent: Operator, spec: Block) -> None:
        self.parent = parent
        self.spec = spec
        self.name = spec.name
        self.shape = (spec.numel, spec.numel)
        self.dtype = parent.dtype

    def _describe(self) -> Description:
        of = f"{type(self.parent).__name__} of {type(self.parent.objective.model).__name__}"
        told = f"Block {called(self.name)} of the {of}, {self.shape[0]} x {self.shape[1]}"
        return Description(told + ("" if self.parent.check else ", unchecked"))

    @overload
    def matvec(self, v: Tensor) -> Tensor: ...
    @overload
    def matvec(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def matvec(self, v: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """A_bb v for a flat (P_b,) tensor or a dict of parameter-shaped tensors; returns the same kind."""
        if isinstance(v, Tensor):
            check_flat(self.spec, v)
            return self.rows(v[None])[0].to(v.dtype).to(v.device)
        product = self.rows(flatten(self.spec, v)[None])[0]
        return {name: part.to(v[name].dtype).to(v[name].device) for name, part in self.spec.split(product).items()}

    def rows(self, vectors: Tensor) -> Tensor:
        """(s, P_b) vectors to (s, P_b) float64 products, in one pass over the data."""
        return self.parent.apply({self.name: (self.spec, vectors)})[self.name]

    def to_dense(self) -> Tensor:
        """The block as a symmetric (P_b, P_b) matrix in the parameters' dtype."""
        n = self.spec.numel
        device = beside(self.spec, self.parent.objective.parameters)
        with self.parent.session():
            eye = torch.eye(n, dtype=torch.float64)
            columns = torch.cat([self.rows(chunk.to(device)) for chunk in torch.split(eye, DENSE_CHUNK)])
        return ((columns + columns.T) / 2).to(self.dtype)

    def to_scipy(self) -> LinearOperator:
        """A ``scipy.sparse.linalg.LinearOperator``, float64 in and out."""
        from scipy.sparse.linalg import LinearOperator  # loads in a fifth of the time of torch

        device = beside(self.spec, self.parent.objective.parameters)

        def matvec(x: Any) -> Any:
            vector = torch.from_numpy(np.asarray(x, dtype=np.float64).reshape(-1)).to(device)
            return self.rows(vector[None])[0].cpu().numpy()

        return LinearOperator(self.shape, matvec=matvec, rmatvec=matvec, dtype=np.float64)


class Hessian(Operator):
    """H = d2 L / d theta2 and its diagonal blocks H_bb, as linear operators.

    Products are exact up to rounding (Pearlmutter 1994, by reverse over reverse), each one pass over the data. The
    first one runs the checks of :func:`layerhess.analyze`, and refuses what that refuses.

    Args:
        objective: the loss over the data.
        blocks: a block scheme, see :func:`layerhess.analyze`.
        path: "exact", or "differences" of gradients, for what cannot be differentiated twice.
        check: False leaves the checks out; differences then have usual steps, which nobody has looked at.

    Attributes:
        shape: (P, P). block_names: in model order. uncovered: parameters in no block.

    Raises:
        InputError: bad scheme or path.

    >>> import torch, layerhess as lh
    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> data = (torch.tensor([[1.0, 2.0]]).double(), torch.zeros(1, 1).double())
    >>> hessian = lh.Hessian(lh.Objective(model, data, torch.nn.MSELoss()))
    >>> hessian.matvec(torch.tensor([1.0, 0.0]).double())      # 2 x x'
    tensor([2., 4.], dtype=torch.float64)
    """

    curvature = HESSIAN

    def __init__(
        self, objective: Objective, blocks: Scheme = "parameter", path: str = "exact", *, check: bool = True
    ) -> None:
        if path not in HESSIAN_PATHS:
            raise InputError(
                f"unknown path {path!r}", where="path", what_to_do=f"use {HESSIAN_PATHS[0]!r} or {HESSIAN_PATHS[1]!r}"
            )
        if path != HESSIAN_PATHS[0]:
            self.curvature = by_differences()
        super().__init__(objective, blocks, check=check)


class GaussNewton(Operator):
    """G = (1/count) sum J' S J and its diagonal blocks: J = d output / d theta, S = d2 loss / d output2.

    The Hessian without the second derivatives of the network itself (Schraudolph 2002; Martens 2020). Positive
    semidefinite where the loss is convex in the output. G depends on where network and loss are separated: at the input
    of the criterion; at ``.logits`` for a model's own ``.loss``; at ``output=`` of :class:`layerhess.batch_loss`. S is
    never formed. Same arguments, methods and normalisation as :class:`layerhess.Hessian`.

    Raises:
        InputError: bad scheme; a ``batch_loss`` without ``output=``.

    >>> import torch, layerhess as lh
    >>> class Square(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = torch.nn.Parameter(torch.tensor([3.0]))
    ...     def forward(self, x):
    ...         return self.w ** 2 * x
    >>> objective = lh.Objective(Square(), (torch.ones(1), torch.zeros(1)), torch.nn.MSELoss())
    >>> lh.GaussNewton(objective).to_dense(), lh.Hessian(objective).to_dense()      # 2 (2w)^2 and 12 w^2
    (tensor([[72.]]), tensor([[108.]]))
    """

    curvature = GAUSS_NEWTON


class EmpiricalFisher(Operator):
    """F = (1/count) sum g g' and its diagonal blocks, g the gradient of one item's loss (its sum, not its mean).

    It is not the Fisher matrix, whose targets would be drawn from the model, and it does not approximate the Hessian
    away from a good fit (Kunstner, Hennig & Balles 2019). The count is that of the loss: for a language model at item
    level, g belongs to a sequence and the count to tokens. Same methods as :class:`layerhess.Hessian`.

    A criterion of ``torch.nn`` needs one forward pass a batch. Other callables are called once an item; a model's own
    ``.loss`` and a ``batch_loss`` without ``output=`` run the whole model once an item, which is slower.

    Args:
        objective: the loss over the data. blocks: a block scheme, see :func:`layerhess.analyze`. check: False leaves
            the checks out.
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

    def __init__(
        self, objective: Objective, blocks: Scheme = "parameter", level: str = "item", *, check: bool = True
    ) -> None:
        if level not in LEVELS:
            raise InputError(f"unknown level {level!r}", where="level", what_to_do="use 'item' or 'token'")
        self.curvature = TOKEN_FISHER if level == "token" else ITEM_FISHER
        super().__init__(objective, blocks, check=check)
