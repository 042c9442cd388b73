"""Checks the arguments of an analysis before any work."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from layerhess.analysis.estimate_options import EstimateOptions, estimate_options
from layerhess.analysis.paths import PATHS
from layerhess.analysis.paths.exact import METHODS
from layerhess.curvature.device import memory_limit
from layerhess.curvature.difference_graph import by_differences
from layerhess.curvature.matrices import CURVATURE_MATRICES, GAUSS_NEWTON, HESSIAN, CurvatureMatrix
from layerhess.curvature.segments.found import AUTO, named_segments
from layerhess.errors import InputError, checked_integer
from layerhess.objective.objective import Objective
from layerhess.results.store import check_writable

OPERATORS = tuple(CURVATURE_MATRICES)
DIFFERENCES = PATHS[-1]
COPIES = ("search", "unchecked")


@dataclass(frozen=True)
class Arguments:
    """Checked arguments; see :func:`layerhess.analyze`."""

    operator: str
    top: int
    bottom: int
    full: bool
    tol: float
    seed: int
    out: Path | None
    max_passes: int
    time_limit: float | None
    method: str
    path: str
    memory: int | None
    exclude: float | None
    copies: str
    estimates: EstimateOptions
    segments: Any = AUTO
    resume: bool = False
    learning_rate: float | None = None

    @property
    def curvature(self) -> CurvatureMatrix:
        """The matrix that ``operator`` names; new at each access where its steps are yet to be chosen."""
        return by_differences() if self.path == DIFFERENCES else CURVATURE_MATRICES[self.operator]

    def settings(self, scheme: Any, objective: Objective, skip_failed: bool) -> dict[str, Any]:
        """All settings as JSON types, for the result."""
        if isinstance(scheme, Mapping):
            blocks: Any = {str(k): v if isinstance(v, str) else list(v) for k, v in scheme.items()}
        else:
            blocks = scheme if isinstance(scheme, str) else f"function {getattr(scheme, '__name__', scheme)}"
        return {
            "blocks": blocks,
            "operator": self.operator,
            "top": self.top,
            "bottom": self.bottom,
            "full": self.full,
            "tol": self.tol,
            "exclude": self.exclude,
            "copies": self.copies,
            "seed": self.seed,
            "out": None if self.out is None else str(self.out),
            "max_passes": self.max_passes,
            "time_limit": self.time_limit,
            "method": self.method,
            "path": self.path,
            "memory": self.memory,
            "segments": self.segments if self.segments is None or self.segments == AUTO else list(self.segments),
            "skip_failed": skip_failed,
            "learning_rate": self.learning_rate,
            **self.estimates.settings(),
            "loss": objective.evaluation.name,
            "mode": objective.mode,
            "stop_gradients": objective.stop_gradients,
            "batch_size": objective.batch_size,
            "dtype": str(objective.dtype).removeprefix("torch."),
            "device": ", ".join(map(str, objective.devices)),
        }


def check_arguments(
    objective: Any,
    *,
    operator: str,
    top: int,
    bottom: int,
    full: bool,
    tol: float,
    seed: int,
    out: str | Path | None,
    max_passes: int,
    time_limit: float | None,
    method: str,
    path: str = "auto",
    memory: Any = None,
    exclude: Any = None,
    copies: Any = COPIES[0],
    segments: Any = AUTO,
    resume: bool,
    progress: Any,
    trace: Any = False,
    diagonal: Any = False,
    density: Any = False,
    coupling: Any = False,
    sampling: Any = False,
    learning_rate: Any = None,
) -> Arguments:
    """Check that the arguments make sense, alone and together.

    Raises:
        InputError: naming the argument and what to give instead.
    """
    if not isinstance(objective, Objective):
        raise InputError(
            f"the first argument is {type(objective).__name__}, not an Objective",
            where="analyze",
            what_to_do="write lh.analyze(lh.Objective(model, data, loss))",
        )
    asked = estimate_options(trace=trace, diagonal=diagonal, density=density, coupling=coupling, sampling=sampling)
    if operator not in OPERATORS:
        names = ", ".join(repr(name) for name in OPERATORS)
        raise InputError(f"unknown operator {operator!r}", where="operator", what_to_do=f"use one of: {names}")
    CURVATURE_MATRICES[operator].admit(objective)
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}", where="method", what_to_do="use 'lanczos' or 'power'")
    if path not in PATHS:
        names = ", ".join(repr(name) for name in PATHS)
        raise InputError(f"unknown path {path!r}", where="path", what_to_do=f"use one of: {names}")
    if path == DIFFERENCES and operator != HESSIAN.name:
        raise InputError(
            f"path={DIFFERENCES!r} makes products with the Hessian only",
            where="path",
            what_to_do=f"leave path out: operator={operator!r} needs first derivatives of the network's output only"
            if operator != GAUSS_NEWTON.name
            else "use operator='hessian', or leave path out",
        )
    if path == DIFFERENCES and segments not in (None, AUTO):
        raise InputError(
            "products by differences keep no graphs, so there are no segments",
            where="segments",
            what_to_do="leave segments out",
        )
    segments = None if path == DIFFERENCES else segments
    if path == "gram" and method != "lanczos":
        raise InputError(
            "path='gram' decomposes matrices and takes no other method",
            where="method",
            what_to_do="leave method out, or use another path",
        )
    top, bottom = checked_integer(top, "top", 0), checked_integer(bottom, "bottom", 0)
    if top + bottom == 0 and not asked.any:
        raise InputError("nothing is asked for: top and bottom are 0", where="top, bottom", what_to_do="use top=1")
    if asked.sampling and top + bottom == 0 and asked.trace is None:
        raise InputError(
            "sampling errors are those of eigenvalues and traces, and neither is asked for",
            where="sampling",
            what_to_do="use top=1 or trace=True, or leave sampling out",
        )
    if method == "power" and (top, bottom) != (1, 0):
        raise InputError(
            "power iteration finds one eigenvalue, the largest", where="method", what_to_do="use top=1, bottom=0"
        )
    for name, count in (("top", top), ("bottom", bottom)):
        if count > objective.numel:
            raise InputError(
                f"{name}={count} is more than the model's {objective.numel} trainable parameters",
                where=name,
                what_to_do=f"ask for at most {objective.numel}",
            )
    if not _is_number(tol) or not 0.0 < tol < 1.0:
        raise InputError(f"tol is {tol!r}", where="tol", what_to_do="use a number between 0 and 1, such as 1e-3")
    if exclude is not None and not (_is_number(exclude) and 0.0 < exclude < math.inf):
        raise InputError(f"exclude is {exclude!r}", where="exclude", what_to_do="use a number above 0, or None")
    if copies not in COPIES:
        raise InputError(f"copies is {copies!r}", where="copies", what_to_do="use 'search' or 'unchecked'")
    if segments is not None and segments != AUTO:
        named_segments(objective.model, segments)
        segments = (segments,) if isinstance(segments, str) else tuple(segments)
    seed = checked_integer(seed, "seed", 0)
    max_passes = checked_integer(max_passes, "max_passes", 1)
    if time_limit is not None and not (_is_number(time_limit) and time_limit > 0):
        raise InputError(f"time_limit is {time_limit!r}", where="time_limit", what_to_do="use seconds > 0, or None")
    if learning_rate is not None and not (_is_number(learning_rate) and 0.0 < learning_rate < math.inf):
        raise InputError(
            f"the learning rate is {learning_rate}", where="learning_rate", what_to_do="give a number above 0"
        )
    if out is not None and not isinstance(out, (str, os.PathLike)):
        raise InputError(f"out is {type(out).__name__}", where="out", what_to_do="give the path of a folder")
    if progress is not None and not all(hasattr(progress, name) for name in ("forecast", "update", "note")):
        raise InputError(
            f"progress is {progress!r}, which receives no events",
            where="progress",
            what_to_do="pass an object with the methods of layerhess.analysis.progress.Progress, or None",
        )
    folder = None
    if out is not None:
        folder = Path(out)
        check_writable(folder)
    limit = None if time_limit is None else float(time_limit)
    return Arguments(
        operator,
        top,
        bottom,
        bool(full),
        float(tol),
        seed,
        folder,
        max_passes,
        limit,
        method,
        path,
        memory_limit(memory),
        None if exclude is None else float(exclude),
        copies,
        asked,
        segments,
        bool(resume),
        None if learning_rate is None else float(learning_rate),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
