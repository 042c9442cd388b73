"""A curvature matrix of the mean loss over the whole data set, as a linear operator: full, and its diagonal blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, overload

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass, Request
from layerhess.curvature.device import KEPT_SHARE
from layerhess.curvature.matrices import CurvatureMatrix
from layerhess.errors import InputError
from layerhess.linalg.random_vectors import check_flat, flatten
from layerhess.objective.blocks import Block, Scheme, make_block, partition
from layerhess.objective.objective import Objective

DENSE_CHUNK = 64  # unit vectors a pass while a dense matrix is read off


class Operator:
    """What every curvature matrix A has in common: products with it and with its diagonal blocks A_bb.

    A subclass says which matrix by its ``curvature``. Each product is one pass over the data, exact up to rounding.
    The self-check belongs to :func:`layerhess.analyze` and :func:`layerhess.analysis.eigsh`; run those for numbers to
    rely on.

    Args:
        objective: the loss over the data.
        blocks: a block scheme, see :func:`layerhess.analyze`.

    Attributes:
        shape: (P, P). block_names: in model order. uncovered: parameters in no block.

    Raises:
        InputError: bad scheme; an objective that has no such matrix.
    """

    curvature: CurvatureMatrix

    def __init__(self, objective: Objective, blocks: Scheme = "parameter") -> None:
        self.curvature.admit(objective)
        self.objective = objective
        divided = partition(objective.model, objective.parameters, objective.frozen, blocks)
        self.blocks: dict[str, Block] = {block.name: block for block in divided.blocks}
        self.uncovered = divided.uncovered
        self.full = make_block(FULL, objective.parameters)
        self.shape = (self.full.numel, self.full.numel)
        self.dtype = objective.dtype
        self._data_pass: DataPass | None = None

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
        if name == FULL:
            return BlockOperator(self, self.full)
        if name not in self.blocks:
            raise InputError(
                f"there is no block named {name!r}",
                where="blocks",
                what_to_do="choose one of: " + ", ".join(list(self.blocks)[:8]),
            )
        return BlockOperator(self, self.blocks[name])

    @contextmanager
    def session(self) -> Iterator[DataPass]:
        """Keep the batches' graphs between products inside this context (the model must not change meanwhile)."""
        if self._data_pass is not None:
            yield self._data_pass
            return
        with self.objective.session():
            self._data_pass = self._new_pass(self.objective.parameters)
            try:
                yield self._data_pass
            finally:
                self._data_pass.release()
                self._data_pass = None

    def _new_pass(self, names: Iterable[str], keep: float = KEPT_SHARE) -> DataPass:
        return DataPass(self.objective, list(names), Counters(), keep=keep, make_graph=self.curvature.make_graph)

    def apply(self, requests: Mapping[str, tuple[Block, Tensor]]) -> dict[str, Tensor]:
        """Products of several blocks with (s, P_b) vectors, in one pass; (s, P_b) float64 each."""
        asked = {key: Request(block, vectors.double()) for key, (block, vectors) in requests.items()}
        if self._data_pass is not None:
            return self._data_pass.run(asked)
        with self.objective.session():
            names = dict.fromkeys(name for block, _ in requests.values() for name in block.parameters)
            return self._new_pass(names, keep=0.0).run(asked)

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
        blocks = {name: self.block(name).spec for name in vectors}
        rows = {name: (blocks[name], check_flat(blocks[name], v)[None]) for name, v in vectors.items()}
        products = self.apply(rows)
        return {name: products[name][0].to(v.dtype).to(v.device) for name, v in vectors.items()}

    def to_dense(self) -> Tensor:
        """The full matrix, (P, P) in the parameters' dtype, symmetrised; P passes' worth of products."""
        return self.block(FULL).to_dense()

    def to_scipy(self) -> LinearOperator:
        """A ``scipy.sparse.linalg.LinearOperator`` of shape (P, P), float64 in and out."""
        return self.block(FULL).to_scipy()


class BlockOperator:
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

    @overload
    def matvec(self, v: Tensor) -> Tensor: ...
    @overload
    def matvec(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def matvec(self, v: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """A_bb v for a flat (P_b,) tensor or a dict of parameter-shaped tensors; the same kind comes back."""
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
        device = self.parent.objective.device
        with self.parent.session():
            eye = torch.eye(n, dtype=torch.float64)
            columns = torch.cat([self.rows(chunk.to(device)) for chunk in torch.split(eye, DENSE_CHUNK)])
        return ((columns + columns.T) / 2).to(self.dtype)

    def to_scipy(self) -> LinearOperator:
        """A ``scipy.sparse.linalg.LinearOperator``, float64 in and out."""

        def matvec(x: Any) -> Any:
            vector = torch.from_numpy(np.asarray(x, dtype=np.float64).reshape(-1)).to(self.parent.objective.device)
            return self.rows(vector[None])[0].cpu().numpy()

        return LinearOperator(self.shape, matvec=matvec, rmatvec=matvec, dtype=np.float64)
