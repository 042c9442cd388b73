"""What can be done to a layer's weights to make them smaller: quantise them, prune them, or a function of one's own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from torch import Tensor

from layerhess.errors import InputError
from layerhess.linalg.described import Described, Description

SCALE_BITS = 16  # of every scale and every zero point that is stored
MOST_BITS = 16
SCALES = ("minmax", "mse")
GRANULARITIES = "'channel', 'tensor' or 'group:SIZE', such as 'group:32'"
KINDS = "a number of bits, lh.Quantize(bits), lh.Prune(sparsity) or a function weight -> weight"


@dataclass(frozen=True, repr=False)
class Quantize(Described):
    """Weights rounded to integers of ``bits`` bits, with one scale for each channel, tensor or group.

    Symmetric: s = max|w| / ((qmax - qmin) / 2), q = clamp(round(w / s), qmin, qmax), with qmin = -2^(b-1) and
    qmax = 2^(b-1) - 1, and the weight is q s. Asymmetric: s = (max - min) / (qmax - qmin) with zero inside the range,
    and q = clamp(round(w / s) + zero, qmin, qmax).

    Args:
        bits: 1 to 16.
        granularity: what shares a scale: "channel" (a row along dimension 0: an output of linear and convolution
            layers, an input of transposed ones), "tensor", or "group:SIZE" (so many neighbours along dimension 1).
        symmetric: without zero points.
        scale: "minmax" covers the largest weight; "mse" shrinks the range to where the squared error is least.

    Raises:
        InputError: something else than these.

    >>> import layerhess as lh
    >>> print(lh.Quantize(4), "/", lh.Quantize(2, "group:32", symmetric=False))
    w4 / w2 group:32 asymmetric
    """

    bits: int
    granularity: str = "channel"
    symmetric: bool = True
    scale: str = "minmax"

    def __post_init__(self) -> None:
        if not _whole(self.bits) or not 1 <= self.bits <= MOST_BITS:
            raise InputError(
                f"weights cannot be quantised to {self.bits!r} bits",
                where="options",
                what_to_do=f"use a whole number from 1 to {MOST_BITS}",
            )
        object.__setattr__(self, "bits", int(self.bits))
        if self.granularity not in ("channel", "tensor") and self.group_size is None:
            raise InputError(
                f"unknown granularity {self.granularity!r}", where="options", what_to_do=f"use {GRANULARITIES}"
            )
        if not isinstance(self.symmetric, bool):
            raise InputError(f"symmetric is {self.symmetric!r}", where="options", what_to_do="use True or False")
        if self.scale not in SCALES:
            raise InputError(f"unknown scale {self.scale!r}", where="options", what_to_do="use 'minmax' or 'mse'")

    @property
    def group_size(self) -> int | None:
        """Weights that share a scale along dimension 1; None for other granularities."""
        found = re.fullmatch(r"group:([1-9]\d*)", str(self.granularity))
        return int(found[1]) if found else None

    @property
    def name(self) -> str:
        """Short, and different for different options."""
        own = "" if self.granularity == "channel" else f" {self.granularity}"
        return f"w{self.bits}{own}{'' if self.symmetric else ' asymmetric'}{'' if self.scale == 'minmax' else ' mse'}"

    def stored_bits(self, own: int) -> float:
        """Bits of one stored weight; ``own``: those of the model's dtype."""
        return float(self.bits)

    def extra_bits(self, shape: Sequence[int]) -> int:
        """Bits that a tensor of this shape needs beside its weights: scales, and zero points, of 16 bits each."""
        size = self.group_size
        numel = math.prod(shape)
        scales = 1 if self.granularity == "tensor" else shape[0] if size is None else math.ceil(numel / size)
        return SCALE_BITS * scales * (1 if self.symmetric else 2)

    def __str__(self) -> str:
        return self.name

    def _describe(self) -> Description:
        kind = "symmetric" if self.symmetric else "asymmetric"
        return Description(f"{self.bits} bits, {kind}, one scale a {self.granularity}, {self.scale}")


@dataclass(frozen=True, repr=False)
class Prune(Described):
    """The smallest weights of a tensor set to zero.

    Args:
        sparsity: the share of zeros, from 0 (none) to below 1, smallest magnitudes first; or "2:4", the two smallest of
            every four neighbours along dimension 1 (the last of linear layers).

    Stored are the weights left, in the model's dtype; of "2:4" also their places, two bits each. Places of unstructured
    zeros are not counted.

    Raises:
        InputError: something else.

    >>> import layerhess as lh
    >>> print(lh.Prune(0.5), "/", lh.Prune("2:4"))
    50% sparse / 2:4 sparse
    """

    sparsity: float | str

    def __post_init__(self) -> None:
        if self.sparsity == "2:4":
            return
        if not _number(self.sparsity) or not 0.0 <= float(self.sparsity) < 1.0:
            raise InputError(
                f"a sparsity of {self.sparsity!r} cannot be reached",
                where="options",
                what_to_do="use the share of zeros, such as 0.5, or '2:4'",
            )
        object.__setattr__(self, "sparsity", float(self.sparsity))

    @property
    def share(self) -> float:
        """The share of zeros."""
        return 0.5 if self.sparsity == "2:4" else float(self.sparsity)

    @property
    def name(self) -> str:
        """Short, and different for different options."""
        return "2:4 sparse" if self.sparsity == "2:4" else f"{100.0 * self.share:.12g}% sparse"

    def stored_bits(self, own: int) -> float:
        """Bits of one stored weight, zeros counted as weights; ``own``: those of the model's dtype."""
        return (1.0 - self.share) * (own + (2 if self.sparsity == "2:4" else 0))

    def extra_bits(self, shape: Sequence[int]) -> int:
        """Nothing beside the weights."""
        return 0

    def __str__(self) -> str:
        return self.name

    def _describe(self) -> Description:
        return Description(f"{self.name}: the smallest weights set to zero")


@dataclass(frozen=True, repr=False)
class Function(Described):
    """A function weight -> weight of the user's.

    Attributes:
        name: its ``__name__``, or what it was called. function: takes a detached tensor and returns one of its shape;
            None in a plan that was loaded without it. bits: of one stored weight, where the function says so in an
            attribute ``bits``; else those of the model's dtype.
    """

    name: str
    function: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)
    bits: float | None = None

    def stored_bits(self, own: int) -> float:
        """Bits of one stored weight; ``own``: those of the model's dtype."""
        return float(own) if self.bits is None else self.bits

    def extra_bits(self, shape: Sequence[int]) -> int:
        """Nothing is known of what else it stores."""
        return 0

    def __str__(self) -> str:
        return self.name

    def _describe(self) -> Description:
        return Description(f"{self.name}: a function weight -> weight")


Option = Quantize | Prune | Function


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def option_of(value: Any) -> Option:
    """The option that a user's value stands for.

    Raises:
        InputError: it stands for none.
    """
    if isinstance(value, (Quantize, Prune, Function)):
        return value
    if _whole(value):
        return Quantize(int(value))
    if callable(value) and not isinstance(value, type):
        name = getattr(value, "__name__", type(value).__name__)
        bits = getattr(value, "bits", None)
        if bits is not None and not (_number(bits) and 0.0 < float(bits) < math.inf):
            raise InputError(f"{name}.bits is {bits!r}", where="options", what_to_do="use a number > 0")
        return Function(name, value, None if bits is None else float(bits))
    raise InputError(f"unknown option {value!r}", where="options", what_to_do=f"use {KINDS}")


def options_of(values: Any) -> tuple[Option, ...]:
    """The options of a user's list, each once, in its order.

    Raises:
        InputError: none, unknown ones, or different functions of one name.
    """
    single = (
        isinstance(values, (Quantize, Prune, Function, str)) or callable(values) or not isinstance(values, Iterable)
    )
    found = tuple(option_of(value) for value in ([values] if single else values))
    if not found:
        raise InputError("no option is given", where="options", what_to_do=f"give a list: {KINDS}")
    by_name: dict[str, Option] = {}
    for option in found:
        other = by_name.setdefault(option.name, option)
        if isinstance(option, Function) and getattr(other, "function", None) is not option.function:
            raise InputError(
                f"two options are called {option.name!r}",
                where="options",
                what_to_do="give each function a name of its own: set its __name__",
            )
    return tuple(by_name.values())


def as_json(option: Option) -> dict[str, Any]:
    """In JSON types; :func:`from_json` is the way back."""
    if isinstance(option, Quantize):
        return {
            "kind": "quantize",
            "bits": option.bits,
            "granularity": option.granularity,
            "symmetric": option.symmetric,
            "scale": option.scale,
        }
    if isinstance(option, Prune):
        return {"kind": "prune", "sparsity": option.sparsity}
    return {"kind": "function", "name": option.name, "bits": option.bits}


def from_json(content: dict[str, Any]) -> Option:
    """The option of :func:`as_json`; a function comes back without what it does."""
    kind = content.get("kind")
    values = {key: value for key, value in content.items() if key != "kind"}
    if kind == "quantize":
        return Quantize(**values)
    if kind == "prune":
        return Prune(**values)
    if kind == "function":
        return Function(values["name"], None, values.get("bits"))
    raise InputError(f"unknown kind of option {kind!r}", where="plan.json", what_to_do="load it with a newer version")
