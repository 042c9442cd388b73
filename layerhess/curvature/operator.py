"""A curvature matrix as a linear operator: multiplies vectors, over all the data, without any checks of the loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass, Request
from layerhess.curvature.device import KEPT_SHARE, Budget, budget
from layerhess.curvature.matrices import CurvatureMatrix
from layerhess.curvature.not_finite import refuse_not_finite
from layerhess.errors import InputError
from layerhess.objective.blocks import Block, Scheme, make_block, partition
from layerhess.objective.objective import Objective


class UncheckedOperator:
    """A curvature matrix A of the mean loss over the whole data set, and its diagonal blocks A_bb.

    It does not check that the products are right. Users get it as :class:`layerhess.analysis.operators.Operator`.

    Args:
        objective: the loss over the data. matrix: which one. blocks: a block scheme, see :func:`layerhess.analyze`.

    Attributes:
        blocks: name -> block, in model order. full: the block of all parameters. uncovered: parameters in no block.

    Raises:
        InputError: bad scheme; an objective that has no such matrix.
    """

    def __init__(self, objective: Objective, matrix: CurvatureMatrix, blocks: Scheme = "parameter") -> None:
        matrix.admit(objective)
        self.objective = objective
        self.matrix = matrix
        divided = partition(objective.model, objective.parameters, objective.frozen, blocks)
        self.blocks: dict[str, Block] = {block.name: block for block in divided.blocks}
        self.uncovered = divided.uncovered
        self.full = make_block(FULL, objective.parameters)
        self._data_pass: DataPass | None = None

    def spec(self, name: str) -> Block:
        """The block of this name, "(full)" included.

        Raises:
            InputError: there is none.
        """
        if name == FULL:
            return self.full
        if name not in self.blocks:
            raise InputError(
                f"there is no block named {name!r}",
                where="blocks",
                what_to_do="choose one of: " + ", ".join(list(self.blocks)[:8]),
            )
        return self.blocks[name]

    @property
    def in_session(self) -> bool:
        """Inside :meth:`session`."""
        return self._data_pass is not None

    @contextmanager
    def session(self, memory: Budget | None = None) -> Iterator[DataPass]:
        """Keep the batches' graphs between products inside this context (the model must not change in it).

        Args:
            memory: the caller's budget; by default, what is free now.
        """
        if self._data_pass is not None:
            yield self._data_pass
            return
        with self.objective.session():
            room = (memory or budget(self.objective.devices, group=self.objective.group)).room
            self._data_pass = self._new_pass(self.objective.parameters, KEPT_SHARE * room)
            try:
                yield self._data_pass
            finally:
                self._data_pass.release()
                self._data_pass = None

    def apply(self, vectors: Mapping[str, tuple[Block, Tensor]]) -> dict[str, Tensor]:
        """Products of several blocks with (s, P_b) vectors, in one pass; (s, P_b) float64 each.

        Raises:
            InputError: a product is NaN or infinite; the ranks have different vectors.
        """
        asked = {key: Request(block, rows.double()) for key, (block, rows) in vectors.items()}
        if self._data_pass is not None:
            return self._finite(self._data_pass, asked)
        with self.objective.session():
            names = dict.fromkeys(name for block, _ in vectors.values() for name in block.parameters)
            return self._finite(self._new_pass(names), asked)

    def _finite(self, data_pass: DataPass, asked: Mapping[str, Request]) -> dict[str, Tensor]:
        products = data_pass.run(asked)
        refuse_not_finite(data_pass, asked, products)
        return products

    def _new_pass(self, names: Iterable[str], keep: float = 0.0) -> DataPass:
        return DataPass(self.objective, list(names), Counters(), keep=keep, make_graph=self.matrix.make_graph)
