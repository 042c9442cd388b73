"""The kinds of curvature matrix (Hessian, Gauss-Newton, Fisher): their names, and how their products are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.output_graph import FisherGraph, GaussNewtonGraph, TokenFisherGraph
from layerhess.errors import InputError
from layerhess.objective.item_losses import refuse_without_tokens
from layerhess.objective.losses import batch_loss
from layerhess.objective.objective import Objective


@dataclass(frozen=True)
class CurvatureMatrix:
    """One kind of curvature matrix.

    Attributes:
        name: as ``operator=`` takes it. title: for sentences. make_graph: one batch's share of it.
        admit: raises InputError for an objective that has no such matrix; costs no evaluation.
    """

    name: str
    title: str
    make_graph: GraphMaker = field(repr=False)
    admit: Callable[[Objective], None] = field(default=lambda objective: None, repr=False)


def _refuse_without_output(objective: Objective) -> None:
    if isinstance(objective.evaluation, batch_loss) and objective.evaluation.output is None:
        objective.evaluation.with_output(objective.model, None)  # raises: it explains what is missing


def _refuse_tied_batch(objective: Objective) -> None:
    if norms := objective.tied_norms:
        raise InputError(
            f"{norms.what}, so that an item's loss depends on the whole batch: the empirical Fisher, which is made of "
            "the gradients of single items, is not defined",
            where=norms.where,
            what_to_do=f"{norms.cure}, or another operator",
        )


def _refuse_without_terms(objective: Objective) -> None:
    refuse_without_tokens(objective.evaluation)
    _refuse_tied_batch(objective)


HESSIAN = CurvatureMatrix("hessian", "Hessian", HessianGraph)
GAUSS_NEWTON = CurvatureMatrix(
    "gauss_newton", "generalised Gauss-Newton matrix", GaussNewtonGraph, _refuse_without_output
)
ITEM_FISHER = CurvatureMatrix("empirical_fisher", "empirical Fisher matrix", FisherGraph, _refuse_tied_batch)
TOKEN_FISHER = CurvatureMatrix(
    "empirical_fisher:token", "empirical Fisher matrix of tokens", TokenFisherGraph, _refuse_without_terms
)
CURVATURE_MATRICES = {kind.name: kind for kind in (HESSIAN, GAUSS_NEWTON, ITEM_FISHER, TOKEN_FISHER)}
