"""The fast path: products by factors for the blocks where a check allows them, exact ones for all others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from layerhess.checks.factors import Licence
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.factors.mixed_graph import MixedGraphs
from layerhess.curvature.matrices import HESSIAN, CurvatureMatrix
from layerhess.errors import InputError


def graph_maker(
    curvature: CurvatureMatrix, licence: Licence, refuted: Callable[[str], None] = lambda name: None
) -> GraphMaker:
    """The maker of each batch's graph; ``refuted`` is called with blocks whose licence a batch does not bear out."""
    if not licence.blocks:
        return curvature.make_graph
    return MixedGraphs(licence.blocks, curvature.make_graph, curvature.name == HESSIAN.name, refuted)


def refuse_without_licence(licence: Licence, names: Sequence[str]) -> None:
    """Refuse path="factors" for blocks that cannot use it.

    Raises:
        InputError: a block has no licence; with the reason.
    """
    without = [name for name in names if name not in licence.blocks]
    if without:
        raise InputError(
            "not every block can take its products from factors: " + licence.reasons.get(without[0], "not looked at"),
            where=", ".join(without[:4]),
            what_to_do="use path='auto', which takes exact products for those, or path='exact'",
        )


def note_on_licence(licence: Licence, names: Sequence[str], operator: str) -> str:
    """A sentence on which blocks' products are made by factors; empty where all are exact."""
    held = [name for name in names if name in licence.blocks]
    if not held:
        return ""
    equal = "H_bb = G_bb, so products come" if operator == HESSIAN.name else "products come"
    count = f"all {len(names)}" if len(held) == len(names) else f"{len(held)} of {len(names)}"
    return (
        f"{count} blocks: {equal} from each layer's inputs and output sensitivities; "
        f"{licence.sentence(held[0])} (equal to {licence.agreement:.1e}), not proved"
    )


def definite(operator: str, names: Collection[str], curved: int | None, licensed: Collection[str]) -> Collection[str]:
    """Operators that are positive semidefinite: Fisher matrices, and G = J' S J of a loss convex in the output.

    Args:
        names: of all. curved: None where the loss is not known to be convex. licensed: blocks of which H = G.
    """
    if operator.startswith("empirical_fisher"):
        return names
    if curved is None:
        return ()
    return licensed if operator == HESSIAN.name else names
