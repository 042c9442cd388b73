"""The options for what an analysis estimates in addition to eigenvalues: traces, diagonals, densities, couplings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from layerhess.errors import InputError
from layerhess.linalg.stochastic.coupling import Coupling
from layerhess.linalg.stochastic.density import Density
from layerhess.linalg.stochastic.diagonal import Diagonal
from layerhess.linalg.stochastic.trace import Trace

# A diagonal to 5 % can take thousands of probes; that from 32 has a standard error for every entry.
DEFAULTS: dict[str, Any] = {
    "trace": Trace(),
    "diagonal": Diagonal(max_probes=32, required=False),
    "density": Density(),
    "coupling": Coupling(),
}


@dataclass(frozen=True)
class EstimateOptions:
    """The options of each estimate; None for those not asked for.

    Attributes:
        trace, diagonal, density, coupling: options. sampling: also give standard errors with respect to the data.
    """

    trace: Trace | None = None
    diagonal: Diagonal | None = None
    density: Density | None = None
    coupling: Coupling | None = None
    sampling: bool = False

    @property
    def any(self) -> bool:
        """Whether any estimate was asked for."""
        return self.sampling or any((self.trace, self.diagonal, self.density, self.coupling))

    @property
    def expected_passes(self) -> int:
        """Rough number of passes that only estimates need."""
        return max(self.density.steps if self.density else 0, 6 * bool(self.trace or self.diagonal or self.coupling))

    def expected_products(self, sampled: Sequence[int], whole: bool) -> int:
        """Rough number of products, in units of one block's.

        Args:
            sampled: sizes of the blocks that need random probes. whole: the full model is estimated as well; one of its
                products counts as five.
        """
        units = len(sampled) + 5 * whole
        probes = 32 * units if self.trace or self.diagonal else 0
        columns = 3 * len(sampled) * self.coupling.probes if self.coupling else 0
        if self.density is None:
            return probes + columns
        steps = sum(min(self.density.steps, size) for size in sampled) + 5 * whole * self.density.steps
        return probes + columns + self.density.probes * steps

    def settings(self) -> dict[str, Any]:
        """As JSON types, for the result."""
        asked = {name: getattr(self, name) for name in ("trace", "diagonal", "density", "coupling")}
        made = {name: False if options is None else dataclasses.asdict(options) for name, options in asked.items()}
        return {**made, "sampling": self.sampling}


def estimate_option(kind: str, asked: bool, **given: Any) -> Any:
    """What :func:`estimate_options` takes for "trace" and so on: the default options, changed by what is not None.

    Giving any option asks for the estimate.

    Raises:
        InputError: an option that makes no sense.

    >>> estimate_option("coupling", False), estimate_option("coupling", False, probes=4)
    (False, Coupling(probes=4))
    """
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(DEFAULTS[kind], **changes) if changes else asked


def estimate_options(*, trace: Any, diagonal: Any, density: Any, coupling: Any, sampling: Any) -> EstimateOptions:
    """The options behind ``trace=True``, ``trace=lh.Trace(...)`` and so on.

    Raises:
        InputError: neither a bool nor an object of the option's class.
    """
    kinds: dict[str, tuple[Any, type]] = {
        "trace": (trace, Trace),
        "diagonal": (diagonal, Diagonal),
        "density": (density, Density),
        "coupling": (coupling, Coupling),
    }
    made: dict[str, Any] = {}
    for name, (value, kind) in kinds.items():
        if not isinstance(value, (bool, kind)):
            raise InputError(
                f"{name} is {value!r}", where=name, what_to_do=f"use True, False or lh.{kind.__name__}(...)"
            )
        made[name] = DEFAULTS[name] if value is True else None if value is False else value
    if not isinstance(sampling, bool):
        raise InputError(f"sampling is {sampling!r}", where="sampling", what_to_do="use True or False")
    return EstimateOptions(**made, sampling=sampling)
