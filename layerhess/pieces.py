"""How many examples at a time: pieces of batches whose graphs fit a memory budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from layerhess import batches
from layerhess.blocks import Block
from layerhess.ledger import Ledger
from layerhess.memory import PIECE_SHARE, Budget
from layerhess.objective import Objective
from layerhess.products.graph import GraphMaker
from layerhess.survey import Survey


def piece_size(
    objective: Objective, surveyed: Survey, make_graph: GraphMaker, blocks: Sequence[Block], memory: Budget
) -> int | None:
    """Examples a piece may have, or None where batches fit as they are or no budget is given (in session).

    What a graph holds on to is counted on the sample and taken as proportional to the number of examples.

    Args:
        blocks: those that products will be asked for.
    """
    size = batches.leading_size(surveyed.sample)
    if memory.limit is None or not size:
        return None
    per_example = graph_bytes(objective, surveyed.sample, make_graph, blocks) / size
    fits = max(1, int(PIECE_SHARE * memory.limit / max(per_example, 1.0)))
    return fits if fits < surveyed.longest else None


def graph_bytes(objective: Objective, batch: Any, make_graph: GraphMaker, blocks: Sequence[Block]) -> int:
    """Bytes that one batch's graph and products of the blocks hold on to, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in objective.model.parameters()}
    held: list[Tensor] = []  # all of them until the end, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    names = list(dict.fromkeys(name for block in blocks for name in block.parameters))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = make_graph(objective, batch, names, Ledger())
        for block in blocks:
            graph.product(block.parameters, {name: objective.parameters[name].detach() for name in block.parameters})
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    return sum(size for place, size in storages.items() if place not in weights) + graph.nbytes
