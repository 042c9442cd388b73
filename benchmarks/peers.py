"""The peers, each in its best documented setting (README.md), as far as their libraries are installed."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from .kept_peers import KEPT_EIGSH, KEPT_POWER
from .notebook_peer import NOTEBOOK
from .peer import Peer

__all__ = ["LIBRARIES", "PEERS"]

# key -> (what has to be installed, its module here)
LIBRARIES = {
    "pyhessian": ("pyhessian", "pyhessian_peer"),
    "eigenthings": ("hessian_eigenthings", "eigenthings_peer"),
    "curvlinops": ("curvlinops", "curvlinops_peer"),
}

PEERS: dict[str, Peer] = {"kept-power": KEPT_POWER, "kept-eigsh": KEPT_EIGSH, "notebook": NOTEBOOK} | {
    key: getattr(import_module(f".{module}", __package__), key.upper())
    for key, (needed, module) in LIBRARIES.items()
    if find_spec(needed) is not None
}
