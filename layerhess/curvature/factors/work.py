"""Counts the work of one block's products by factors, in multiplications; nothing is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Work:
    """How much work the products and rows of one block are, over some items.

    Attributes:
        items: N. directions: Q, of each item's output. entries: calls of layers with parameters of the block.
        multiplications: of one evaluation of these calls. outputs: numbers in what they return.
        network: multiplications of one evaluation of all layers that have factors.
        has_rows: the explicit rows can be made, see :meth:`layerhess.curvature.factors.factor_graph.FactorGraph.rows`.
    """

    items: int
    directions: int
    multiplications: int
    outputs: int
    network: int
    entries: int
    has_rows: bool

    @property
    def rows(self) -> int:
        """N Q, the most rows there are."""
        return self.items * self.directions

    def times(self, factor: float) -> Work:
        """The same for ``factor`` times as many items."""
        return replace(
            self,
            items=round(self.items * factor),
            multiplications=round(self.multiplications * factor),
            outputs=round(self.outputs * factor),
            network=round(self.network * factor),
        )


def sum_of_works(works: Sequence[Work]) -> Work:
    """Of several batches; at least one."""
    return Work(
        items=sum(work.items for work in works),
        directions=max(work.directions for work in works),
        multiplications=sum(work.multiplications for work in works),
        outputs=sum(work.outputs for work in works),
        network=sum(work.network for work in works),
        entries=max(work.entries for work in works),
        has_rows=all(work.has_rows for work in works),
    )
