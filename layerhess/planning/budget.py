"""What a plan may use: mean bits, bytes, bit operations, latency, or how much the loss may rise."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from layerhess.curvature.device import UNITS
from layerhess.errors import InputError
from layerhess.linalg.estimates import Floats
from layerhess.planning.layers import Layers
from layerhess.results.options import option_of

KEYS = ("bits", "bytes", "latency", "bops", "increase")
SPELLED = (
    "use '4bit', '3.5MB', or a dict with some of bits=, bytes=, latency=(table, limit), bops=(table, limit), increase="
)


@dataclass(frozen=True)
class Budget:
    """Limits of a plan.

    Attributes:
        text: as it was asked for. uses: tables (L, K) of what each option takes. limits: of their sums. names: what
            each is. increase: a cap on the increase of the loss; None without. bits: (L, K) stored bits without scales.
            sizes: (L, K) bytes with scales. numel, float_bytes: of all planned weights, as they are.
    """

    text: str
    uses: tuple[Floats, ...]
    limits: tuple[float, ...]
    names: tuple[str, ...]
    increase: float | None
    bits: Floats
    sizes: Floats
    numel: int
    float_bytes: float

    def mean_bits(self, choice: Sequence[int]) -> float:
        """Bits of a weight, scales not counted."""
        return float(self.bits[np.arange(len(choice)), np.asarray(choice)].sum()) / self.numel

    def size_bytes(self, choice: Sequence[int]) -> float:
        """With scales."""
        return float(self.sizes[np.arange(len(choice)), np.asarray(choice)].sum())


def budget_of(asked: Any, layers: Layers) -> Budget:
    """The budget behind "4bit", "3.5MB", a number of bits or a dict.

    Raises:
        InputError: none of them; a table without a layer, or with numbers that are negative or too few.
    """
    own = [torch.finfo(getattr(torch, weight.dtype)).bits for weight in layers.weights]
    bits = np.array(
        [[o.stored_bits(width) * w.numel for o in layers.options] for w, width in zip(layers.weights, own, strict=True)]
    )
    extra = np.array([[o.extra_bits(w.shape) for o in layers.options] for w in layers.weights], dtype=np.float64)
    sizes = (bits + extra) / 8.0
    numel = sum(weight.numel for weight in layers.weights)
    uses: list[Floats] = []
    limits: list[float] = []
    names: list[str] = []
    increase: float | None = None
    parsed = _parsed(asked)
    for key, value in parsed.items():
        if key == "increase":
            increase = _limit(value, key)
            continue
        if key == "bits":
            uses.append(bits)
            limits.append(_limit(value, key) * numel)
        elif key == "bytes":
            uses.append(sizes)
            limits.append(_limit(value, key))
        else:
            table, limit = _pair(value, key)
            uses.append(_latencies(table, layers) if key == "latency" else _operations(table, layers, bits))
            limits.append(_limit(limit, key))
        names.append(key)
    whole = sum(weight.numel * width / 8.0 for weight, width in zip(layers.weights, own, strict=True))
    return Budget(_text(parsed), tuple(uses), tuple(limits), tuple(names), increase, bits, sizes, numel, whole)


def _parsed(asked: Any) -> dict[str, Any]:
    if isinstance(asked, Mapping):
        odd = [key for key in asked if key not in KEYS]
        if odd or not asked:
            raise InputError(
                f"the budget has {odd[0]!r}" if odd else "the budget is empty", where="budget", what_to_do=SPELLED
            )
        return dict(asked)
    if isinstance(asked, (int, float)) and not isinstance(asked, bool):
        return {"bits": asked}
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-zA-Z]+)\s*", asked) if isinstance(asked, str) else None
    unit = found[2].lower() if found else ""
    if found and unit in ("bit", "bits"):
        return {"bits": float(found[1])}
    if found and (unit in UNITS or unit in ("b", "bytes")):
        return {"bytes": float(found[1]) * UNITS.get(unit, 1)}
    raise InputError(f"unknown budget {asked!r}", where="budget", what_to_do=SPELLED)


def _text(parsed: Mapping[str, Any]) -> str:
    said = []
    for key, value in parsed.items():
        limit = value[1] if key in ("latency", "bops") else value
        if key == "bits":
            said.append(f"{limit:g} {'bit' if limit == 1.0 else 'bits'} a weight")
        elif key == "bytes":
            said.append(f"{float(limit) / 1e6:.4g} MB" if float(limit) >= 1e4 else f"{float(limit):.6g} bytes")
        elif key == "increase":
            said.append(f"a loss increase of at most {limit:g}")
        else:
            said.append(f"a {'latency' if key == 'latency' else 'number of bit operations'} of at most {limit:g}")
    return " and ".join(said)


def _limit(value: Any, key: str) -> float:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or math.isnan(float(value)) or float(value) < 0.0 or (float(value) == 0.0 and key != "increase"):
        least = ">= 0" if key == "increase" else "> 0"
        raise InputError(f"the limit of {key} is {value!r}", where="budget", what_to_do=f"use a number {least}")
    return float(value)


def _pair(value: Any, key: str) -> tuple[Mapping[str, Any], Any]:
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not isinstance(value[0], Mapping):
        raise InputError(
            f"the budget's {key} is {type(value).__name__}",
            where="budget",
            what_to_do=f"use {key}=(table, limit), the table a dict by weight name",
        )
    return value[0], value[1]


def _entries(table: Mapping[str, Any], layers: Layers, key: str) -> list[Any]:
    odd = [name for name in table if not any(name in (w.name, *w.aliases) for w in layers.weights)]
    if odd:
        raise InputError(
            f"the table of {key} has {odd[0]!r}, which is no planned weight",
            where="budget",
            what_to_do="use names such as " + ", ".join(layers.names[:6]),
        )
    found = []
    for weight in layers.weights:
        name = next((name for name in (weight.name, *weight.aliases) if name in table), None)
        if name is None:
            raise InputError(
                f"the table of {key} has nothing for {weight.name!r}",
                where="budget",
                what_to_do="give every planned weight its numbers",
            )
        found.append(table[name])
    return found


def _latencies(table: Mapping[str, Any], layers: Layers) -> Floats:
    rows = []
    for weight, entry in zip(layers.weights, _entries(table, layers, "latency"), strict=True):
        by_option = entry
        if isinstance(entry, Mapping):  # by option, by its name, or by the number of bits that stands for it
            known = {option_of(key).name if isinstance(key, int) else str(key): value for key, value in entry.items()}
            by_option = [known[option.name] for option in layers.options if option.name in known]
        try:
            row = np.asarray(by_option, dtype=np.float64)
        except (TypeError, ValueError):
            row = np.zeros(0)
        if row.shape != (len(layers.options),):
            raise InputError(
                f"the latencies of {weight.name!r} are {entry!r}",
                where="budget",
                what_to_do=f"give one number for each of {', '.join(option.name for option in layers.options)}",
            )
        _refuse_negative(row, weight.name, "latency")
        rows.append(row)
    return np.stack(rows)


def _operations(table: Mapping[str, Any], layers: Layers, bits: Floats) -> Floats:
    """Multiply-accumulates times stored bits."""
    found = []
    for weight, entry in zip(layers.weights, _entries(table, layers, "bops"), strict=True):
        if not isinstance(entry, (int, float, np.number)) or isinstance(entry, bool):
            raise InputError(
                f"the operations of {weight.name!r} are {entry!r}", where="budget", what_to_do="give a number of MACs"
            )
        _refuse_negative(np.array([float(entry)]), weight.name, "bops")
        found.append(float(entry) / weight.numel)
    return np.array(found)[:, None] * bits


def _refuse_negative(row: Floats, name: str, key: str) -> None:
    if not bool((row >= 0.0).all()) or not bool(np.isfinite(row).all()):
        raise InputError(
            f"the {key} of {name!r} is {row[~(np.isfinite(row) & (row >= 0.0))][0]:g}",
            where="budget",
            what_to_do="use finite numbers >= 0",
        )
