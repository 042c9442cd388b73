"""Chooses the solver of a block: Lanczos, or the whole matrix of a small block. Works with any kind of products."""

from __future__ import annotations

import torch

from layerhess.linalg.eigen.dense import Dense
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.power import Power
from layerhess.linalg.eigen.process import Process, Source, Wanted
from layerhess.linalg.long_rows import Space
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.blocks import Block

DENSE_LIMIT = 32  # parameters up to which the whole spectrum costs about as much as a few eigenvalues
POWERED = 200  # products in which power iteration excludes anything 5 % larger; smaller blocks are read whole
DEAR = 1e8  # parameters times terms of the loss: about a tenth of a second a product
LARGEST_WHOLE = 2048  # parameters up to which a search keeps its basis whole, where memory allows that
STREAMED_WIDTH = 8  # random vectors that a search begins with where a pass costs more than a few products
METHODS = ("lanczos", "power")


def source(block: Block, seed: int, device: torch.device) -> Source:
    """Random unit vectors of the block: draw number -> (P_b,) float64."""
    return lambda number: random_unit(block.numel, seed, block.name, number, device)


def make_process(
    block: Block, wanted: Wanted, *, tol: float, seed: int, method: str, device: torch.device, basis_limit: int,
    dtype: torch.dtype = torch.float64, exclude: float | None = None, copies: bool = True, streamed: bool = False,
    dear: bool = False, definite: bool = False, space: Space | None = None,
) -> Process:  # fmt: skip
    """The solver for one block: LAPACK for a small one, thick-restart Lanczos otherwise, or power iteration.

    Power iteration is left to blocks that it costs fewer products than reading them whole.

    Args:
        basis_limit, dtype, exclude, copies, definite, space: see :class:`layerhess.linalg.eigen.lanczos.Lanczos`.
        streamed: a pass over the data costs more than the products of a few vectors in it. dear: see
            :func:`goes_dense`.
    """
    draw = source(block, seed, device)
    if reads_whole(block.numel, wanted, method, exclude, dear):
        return Dense(block.numel, wanted, device)
    if method == "power":
        return Power(block.numel, tol, draw, exclude=exclude, device=device)
    return Lanczos(
        block.numel, wanted, tol, draw, basis_limit=basis_limit, device=device, dtype=dtype,
        width=search_width(wanted, streamed, copies), exclude=exclude, copies=copies,
        definite=definite, space=space,
    )  # fmt: skip


def reads_whole(numel: int, wanted: Wanted, method: str, exclude: float | None, dear: bool) -> bool:
    """Whether a block of this size is given to LAPACK; arguments as for :func:`make_process`."""
    if method == "power":
        return numel <= (DENSE_LIMIT if exclude is None else POWERED)
    return goes_dense(numel, wanted, dear)


def search_width(wanted: Wanted, streamed: bool = False, copies: bool = True) -> int:
    """Random vectors that Lanczos begins with.

    Two see both copies of a double eigenvalue, so that no separate search for copies is needed; eight need a third of
    the passes that one needs.
    """
    if streamed:
        return STREAMED_WIDTH
    return 2 if copies and max(wanted.top, wanted.bottom) >= 2 else 1


def goes_dense(numel: int, wanted: Wanted, dear: bool = False) -> bool:
    """Whether the whole spectrum of a block of this size is computed.

    Args:
        dear: a product costs so much that their number decides; else a small block is read whole, since that costs
            about as much and leaves nothing open.
    """
    if dear and numel > wanted.total:
        return numel <= expected_steps(wanted)
    return numel <= max(DENSE_LIMIT, 2 * wanted.total)


def is_dear(numel: int, terms: float) -> bool:
    """Whether an exact product costs that much: a network of so many parameters, and the terms of its loss."""
    return numel * terms >= DEAR


def expected_products(numel: int, wanted: Wanted) -> int:
    """Rough number of products a block will need, for the forecast."""
    return numel if goes_dense(numel, wanted) else min(numel, expected_steps(wanted))


def expected_steps(wanted: Wanted) -> int:
    """Rough number of products that Lanczos needs."""
    copies = max(wanted.top, wanted.bottom) >= 2
    # The lower end usually lies in the bulk near zero, where Lanczos is slow.
    return 6 + 5 * wanted.total + (12 if copies else 0) + (25 if wanted.bottom else 0)
