"""Refuses products that are NaN or infinite, and says in which batch; and those whose powers are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from layerhess.curvature.data_pass import PRODUCT, DataPass
from layerhess.curvature.request import Request
from layerhess.curvature.totals import Totals
from layerhess.errors import InputError

FOURTH = 1e70  # numbers up to it have fourth powers in float64, and sums of 1e20 of these


def refuse_not_finite(data_pass: DataPass, requests: Mapping[str, Request], products: Mapping[str, Tensor]) -> None:
    """Refuse products of a pass that are NaN or infinite although the losses are finite, or whose squares are.

    Raises:
        InputError: naming the parameters, and the first batch whose own products are not finite.
    """
    for key, rows in products.items():
        if bool(torch.isfinite(torch.linalg.vector_norm(rows))):
            continue
        name, image = requests[key].block.name, requests[key].image
        if bool(torch.isfinite(rows).all()):
            raise InputError(
                f"a product with block {name!r} is so large that its square is infinite",
                where=f"entries up to {float(rows.abs().max()):.1e}",
                what_to_do="scale the data, the weights or the loss down: outputs or gradients are far too large",
            )
        wrong = [n for n, part in image.split(rows).items() if not bool(torch.isfinite(part).all())]
        batch = first_not_finite(data_pass, requests[key])
        raise InputError(
            f"a product with block {name!r} is NaN or infinite, though the loss is finite",
            where=(f"batch {batch}, " if batch else "") + ", ".join(wrong[:3]),
            what_to_do="look for sqrt, norm, log or division at 0 in that module (their second derivatives are "
            "infinite), or use float64",
        )


def refuse_large_powers(products: Mapping[str, Tensor]) -> None:
    """Refuse products that are too large for estimates, whose errors are made of fourth powers.

    Raises:
        InputError: with the largest entry.
    """
    for rows in products.values():
        largest = float(rows.abs().max()) if rows.numel() else 0.0
        if largest > FOURTH:
            raise InputError(
                "the curvature is so large that an estimate's error, made of fourth powers, is infinite",
                where=f"products with entries up to {largest:.1e}",
                what_to_do="scale the loss or the matrix down, or ask for eigenvalues alone",
            )


def first_not_finite(data_pass: DataPass, request: Request) -> str:
    """The place of the first batch whose own products are NaN or infinite; "" if it is only their sum."""
    group = data_pass.objective.group

    def first() -> str:
        for index, graph in enumerate(data_pass.graphs_apart()):
            own = Totals()
            data_pass.multiply(graph, "", request, own)
            if not bool(torch.isfinite(own.total((PRODUCT, ""))).all()):
                return group.place(index)
        return ""

    return next(filter(None, group.gathered(group.tried(first))), "")
