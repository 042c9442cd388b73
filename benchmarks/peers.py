"""The four peers, each in its best documented setting (README.md)."""

from __future__ import annotations

from .krylov_peers import CURVLINOPS, EIGENTHINGS
from .power_peers import NOTEBOOK, PYHESSIAN

__all__ = ["PEERS"]

PEERS = {"notebook": NOTEBOOK, "pyhessian": PYHESSIAN, "eigenthings": EIGENTHINGS, "curvlinops": CURVLINOPS}
