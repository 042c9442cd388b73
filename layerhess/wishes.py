"""What one analysis is asked for beyond eigenvalues."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from layerhess.errors import InputError
from layerhess.estimators.coupling import Coupling
from layerhess.estimators.density import Density
from layerhess.estimators.diagonal import Diagonal
from layerhess.estimators.trace import Trace

# A diagonal to 5 % can take thousands of probes; what 32 give has its error beside every entry.
DEFAULTS: dict[str, Any] = {
    "trace": Trace(),
    "diagonal": Diagonal(max_probes=32),
    "density": Density(),
    "coupling": Coupling(),
}


@dataclass(frozen=True)
class Wishes:
    """What was asked for beyond eigenvalues; None for what was not.

    Attributes:
        trace, diagonal, density, coupling: options. sampling: also standard errors with respect to the data.
    """

    trace: Trace | None = None
    diagonal: Diagonal | None = None
    density: Density | None = None
    coupling: Coupling | None = None
    sampling: bool = False

    @property
    def any(self) -> bool:
        """Whether anything was."""
        return self.sampling or any((self.trace, self.diagonal, self.density, self.coupling))

    @property
    def expected_passes(self) -> int:
        """Rough number of passes that only estimates need."""
        return max(self.density.steps if self.density else 0, 6 * bool(self.trace or self.diagonal or self.coupling))

    def expected_products(self, operators: int) -> int:
        """Rough number of products, in units of one block's, for ``operators`` blocks (the full model is one)."""
        probes = 5 * 64 if self.trace or self.diagonal else 0
        columns = 3 * operators * self.coupling.probes if self.coupling else 0
        return probes + columns + (operators * self.density.probes * self.density.steps if self.density else 0)

    def settings(self) -> dict[str, Any]:
        """As JSON types, for the result."""
        asked = {name: getattr(self, name) for name in ("trace", "diagonal", "density", "coupling")}
        made = {name: False if wish is None else dataclasses.asdict(wish) for name, wish in asked.items()}
        return {**made, "sampling": self.sampling}


def wishes(*, trace: Any, diagonal: Any, density: Any, coupling: Any, sampling: Any) -> Wishes:
    """The options behind ``trace=True``, ``trace=lh.Trace(...)`` and so on.

    Raises:
        InputError: something else than a truth value or the option's own class.
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
    return Wishes(**made, sampling=sampling)
