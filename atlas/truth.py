"""The truths: largest eigenvalues by SciPy's eigsh in float64, on products that layerhess has no part in.

`python -m atlas.truth [NAME ...]` computes what is missing or of other weights, data or versions; hours at most.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from . import catalogue
from .fingerprint import fingerprint, versions
from .products import hessian

FOLDER = Path(__file__).parent / "truths"
FULL = "(full)"
TOLERANCE = 1e-6  # ARPACK's, relative; the residual that is reached is kept beside each value


def main() -> None:
    """Make the truths of the subjects named on the command line, or of all."""
    for name in sys.argv[1:] or catalogue.ENTRIES:
        make(name)


def make(name: str) -> None:
    """Compute what is missing of one subject's truths, and write each as it comes."""
    mark = fingerprint(catalogue.made(name))
    subject = catalogue.made(name, torch.float64)
    kept = load(name) or {}
    if kept.get("fingerprint") != mark:
        kept = {"fingerprint": mark, "versions": versions(subject), "values": {}}
    members = subject.members()
    whole = {key: parameter for block in members.values() for key, parameter in block.items()}
    for target in (*subject.checked, FULL):
        if target not in kept["values"]:
            began = time.perf_counter()
            kept["values"][target] = largest(hessian(subject, whole if target == FULL else members[target]))
            print(f"{name} {target}: {kept['values'][target]}, {time.perf_counter() - began:.0f} s", flush=True)
            FOLDER.mkdir(exist_ok=True)
            path(name).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def largest(operator: LinearOperator) -> dict[str, float]:
    """The largest eigenvalue of a symmetric operator, the residual ||A v - value v||, and the products it took.

    Raises:
        ArithmeticError: the operator is not symmetric.
    """
    products = 0

    def counted(vector: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        return operator @ vector

    n = operator.shape[0]
    told = LinearOperator((n, n), matvec=counted, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(n)
    if n <= 20:
        values, vectors = np.linalg.eigh(np.stack([counted(row) for row in np.eye(n)]))
        value, vector = values[-1], vectors[:, -1]
    else:
        values, vectors = eigsh(told, k=1, which="LA", tol=TOLERANCE, ncv=min(8, n), v0=start)
        value, vector = values[0], vectors[:, 0]
    residual = np.linalg.norm(counted(vector) - value * vector)
    if residual > 100 * TOLERANCE * abs(value):  # ARPACK was content; a symmetric matrix would be so too
        raise ArithmeticError(f"residual {residual:.1e} at {value:.6g}: these products are of no symmetric matrix")
    return {"value": float(value), "residual": float(residual), "products": products}


def load(name: str) -> dict[str, Any] | None:
    """The truths on disk, whatever they are of; None where there are none."""
    return json.loads(path(name).read_text(encoding="utf-8")) if path(name).is_file() else None


def path(name: str) -> Path:
    """Where a subject's truths are."""
    return FOLDER / f"{name}.json"


if __name__ == "__main__":
    main()
