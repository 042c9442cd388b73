"""One batch's products: from factors for the blocks where a check allowed it, by double backward for all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from layerhess.curvature.batch_graph import BatchGraph, GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.device import is_out_of_memory
from layerhess.curvature.factors.factor_graph import FactorGraph
from layerhess.errors import InputError
from layerhess.objective.objective import Objective


@dataclass(frozen=True)
class MixedGraphs:
    """Makes :class:`MixedGraph` objects; a :data:`layerhess.curvature.batch_graph.GraphMaker`.

    Args:
        blocks: key -> parameter names of the blocks with a licence. exact: makes the graph for all other products.
        linear: the matrix is the Hessian, whose blocks are J' S J only where the output is piecewise linear in them.
        refuted: called with the key of a block that a batch's own graph does not bear out, a licence being of a sample.
    """

    blocks: Mapping[str, tuple[str, ...]]
    exact: GraphMaker
    linear: bool
    refuted: Callable[[str], None] = lambda key: None

    def __call__(self, objective: Objective, batch: Any, names: Iterable[str], counters: Counters) -> BatchGraph:
        """The graph of one batch; an exact one where no block has a licence."""
        if not self.blocks:
            return self.exact(objective, batch, names, counters)
        return MixedGraph(self, objective, batch, list(names), counters)

    def asked(self, blocks: Iterable[tuple[str, ...]]) -> MixedGraphs:
        """A maker of graphs for products with these blocks' vectors only: no other factors are made."""
        wanted = set(blocks)
        return replace(self, blocks={key: names for key, names in self.blocks.items() if names in wanted})

    def factors(
        self, objective: Objective, batch: Any, counters: Counters
    ) -> tuple[FactorGraph | None, set[tuple[str, ...]]]:
        """One batch's factors, and the parameter names of the blocks whose products they make."""
        graph = try_factors(objective, batch, self.blocks, counters)[0] if self.blocks else None
        if graph is None:
            return None, set()
        held = graph.linear if self.linear else graph.factored
        return graph, {self.blocks[key] for key in held}


def try_factors(
    objective: Objective, batch: Any, blocks: Mapping[str, tuple[str, ...]], counters: Counters
) -> tuple[FactorGraph | None, str]:
    """The factors of one batch, or None and the reason where they cannot be made.

    Some models work only outside a recorded pass (they recompute activations, or differentiate inside their forward
    pass). Then an exact graph is made, and its errors are the ones raised.
    """
    try:
        return FactorGraph(objective, batch, blocks, counters), ""
    except (RuntimeError, InputError) as error:
        if is_out_of_memory(error):
            raise
        return None, str(error).splitlines()[0] if str(error) else type(error).__name__


class MixedGraph:
    """Factors of one batch, and its exact graph, made when a product first needs it.

    Whether the graph is piecewise linear in a block is checked again for each batch: where it is not, the block's
    products are made by the exact graph.
    """

    def __init__(
        self, plan: MixedGraphs, objective: Objective, batch: Any, names: Sequence[str], counters: Counters
    ) -> None:
        self._plan, self._objective, self._batch, self._names, self._counters = plan, objective, batch, names, counters
        self._exact: BatchGraph | None = None
        self._factors, self._served = plan.factors(objective, batch, counters)
        for key in (key for key, held in plan.blocks.items() if held not in self._served):
            plan.refuted(key)
        known: FactorGraph | BatchGraph = self._graph() if self._factors is None else self._factors
        factored = () if self._factors is None else self._factors.factored
        self._covered = {name for key in factored for name in plan.blocks[key]}
        self.loss_sum, self.count = known.loss_sum, known.count

    def product(
        self, names: Sequence[str], vector: dict[str, Tensor], rows: Sequence[str] | None = None
    ) -> list[Tensor | None]:
        """The batch's share of A[rows, names] v; see :meth:`layerhess.curvature.batch_graph.BatchGraph.product`."""
        factors = self._serving(names, rows)
        return self._graph().product(names, vector, rows) if factors is None else factors.product(names, vector)

    def products(
        self, names: Sequence[str], vectors: dict[str, Tensor], rows: Sequence[str] | None = None
    ) -> list[Tensor | None]:
        """The same for s vectors."""
        factors = self._serving(names, rows)
        return self._graph().products(names, vectors, rows) if factors is None else factors.products(names, vectors)

    def diagonal(self, names: Sequence[str]) -> list[Tensor] | None:
        """The batch's share of diag(A[names, names]), parameter-shaped; None where factors do not give it."""
        factors = self._serving(names)
        found = None if factors is None else factors.squares(names)
        return None if found is None else found[0]

    def rows(self, names: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]] | None:
        """The rows R of the batch's share R' D R of A[names, names]; see :meth:`FactorGraph.rows`."""
        factors = self._serving(names)
        return None if factors is None else factors.rows(names)

    def _serving(self, names: Sequence[str], rows: Sequence[str] | None = None) -> FactorGraph | None:
        """The factors, if they can make A[names, names]; else None."""
        return self._factors if tuple(names) in self._served and (rows is None or tuple(rows) == tuple(names)) else None

    @property
    def nbytes(self) -> int:
        """Bytes of the factors, and of the exact graph if it was made."""
        return sum(graph.nbytes for graph in (self._factors, self._exact) if graph is not None)

    @property
    def gradient(self) -> dict[str, Tensor | None]:
        """Of the loss sum, by parameter."""
        if self._factors is not None and self._exact is None and self._covered.issuperset(self._names):
            known = self._factors.gradients
            return {name: known.get(name) for name in self._names}
        return self._graph().gradient  # parameters without factors will need products of the exact graph as well

    @property
    def differentiable(self) -> list[Tensor]:
        """The first derivatives that exact products differentiate again."""
        return self._graph().differentiable

    def _graph(self) -> BatchGraph:
        if self._exact is None:
            self._exact = self._plan.exact(self._objective, self._batch, self._names, self._counters)
        return self._exact
