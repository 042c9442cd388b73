"""One option for every layer, within limits: what is to be minimised, and over what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np

from layerhess.errors import InputError
from layerhess.linalg.estimates import Floats

Choices = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

EXACTLY = 1e-9  # of a limit: what uses it up to here meets it; sums of floats are no better


@dataclass(frozen=True, eq=False)
class Groups:
    """Layers that choose together, as one each.

    Attributes:
        cost: (G, K), inf where not allowed. uses: (J, G, K), 0 where not allowed. allowed: (G, K). members: the layers
            of each group, groups in the order of their first layers. room: (J,) the limits with their tolerance.
    """

    cost: Floats
    uses: Floats
    allowed: Flags
    members: tuple[tuple[int, ...], ...]
    room: Floats


@dataclass(frozen=True, eq=False)
class Problem:
    """Minimise sum_l cost[l, k_l] over one option k_l for each layer, with sum_l uses[j][l, k_l] <= limits[j].

    A limit is met by up to ``EXACTLY`` of itself more, for a sum of floats is no better known.

    Args:
        cost: (L, K), may be negative; inf: not allowed. uses: J tables (L, K), each at least 0, in any unit; inf: not
            allowed. limits: J numbers in those units; inf is no limit. tied: groups of layers that take the same
            option; groups with a layer in common are one. pinned: layer -> its option.

    Attributes:
        groups: the same problem with tied layers as one, see :class:`Groups`.

    Raises:
        InputError: shapes that do not fit, NaN, uses below 0, layers or options that do not exist, a layer without any
            allowed option, tied layers without a common one, pinned to what is not allowed.

    >>> Problem([[0.0, 5.0], [0.0, 1.0]], uses=[[[8, 4], [8, 4]]], limits=[12]).feasible([[0, 0], [1, 0]]).tolist()
    [False, True]
    """

    cost: Floats
    uses: Sequence[Floats] = ()
    limits: Sequence[float] = ()
    tied: Iterable[Iterable[int]] = ()
    pinned: Mapping[int, int] = field(default_factory=dict)
    groups: Groups = field(init=False, repr=False)

    def __post_init__(self) -> None:
        cost = _table(self.cost, "cost")
        if cost.ndim != 2 or 0 in cost.shape:
            raise InputError(
                f"cost has shape {cost.shape}",
                where="cost",
                what_to_do="give a table (L, K): a row for each layer, a column for each option",
            )
        if np.isneginf(cost).any():
            raise InputError("a cost is -inf", where="cost", what_to_do="use finite numbers, or inf for not allowed")
        uses = self._checked_uses(cost.shape)
        limits = _limits(self.limits, len(uses))
        members = _members(self.tied, len(cost))
        pinned = _pinned(self.pinned, cost.shape)
        allowed = np.isfinite(cost) & np.isfinite(uses).all(axis=0)
        for layer in np.flatnonzero(~allowed.any(axis=1)):
            raise InputError(
                "no option is allowed for a layer",
                where=f"layer {layer}",
                what_to_do="allow one: give it a finite cost and finite uses",
            )
        settled: dict[str, Any] = {
            "cost": cost,
            "uses": tuple(uses),
            "limits": tuple(map(float, limits)),
            "tied": tuple(group for group in members if len(group) > 1),
            "pinned": pinned,
            "groups": _merged(cost, uses, limits, allowed, members, pinned),
        }
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    def _checked_uses(self, shape: tuple[int, ...]) -> Floats:
        if not isinstance(self.uses, Iterable):
            raise InputError(f"uses is {self.uses!r}", where="uses", what_to_do="give a list of tables (L, K)")
        tables = [_table(use, f"uses[{j}]") for j, use in enumerate(self.uses)]
        for j, table in enumerate(tables):
            if table.shape != shape:
                raise InputError(
                    f"uses[{j}] has shape {table.shape}, cost {shape}",
                    where=f"uses[{j}]",
                    what_to_do="give one number for each layer and option",
                )
            if (table < 0.0).any():
                layer, option = np.argwhere(table < 0.0)[0]
                raise InputError(
                    f"a use is negative: {table[layer, option]:.6g}",
                    where=f"uses[{j}], layer {layer}, option {option}",
                    what_to_do="bits, bytes, operations and latencies are at least 0",
                )
        return np.stack(tables) if tables else np.zeros((0, *shape))

    def totals(self, choices: Any) -> Floats:
        """What plans use: (n, J) for choices (n, L), (J,) for one plan (L,)."""
        index, layers = np.asarray(choices), np.arange(len(self.cost))
        empty = np.zeros((*index.shape[:-1], 0))
        return np.stack([use[layers, index].sum(axis=-1) for use in self.uses], axis=-1) if self.uses else empty

    def objective(self, choices: Any) -> Floats:
        """The sum of the costs: (n,) for choices (n, L), a number for one plan (L,)."""
        return np.asarray(self.cost[np.arange(len(self.cost)), np.asarray(choices)].sum(axis=-1))

    def feasible(self, choices: Any) -> Flags:
        """Whether plans are allowed, tied and pinned as they should be, and within the limits: (n,), or one flag."""
        index, groups = np.asarray(choices), self.groups
        first = np.array([members[0] for members in groups.members])
        good = groups.allowed[np.arange(len(first)), index[..., first]].all(axis=-1)
        for members in self.tied:
            good &= (index[..., list(members)] == index[..., [next(iter(members))]]).all(axis=-1)
        return np.asarray(good & (self.totals(index) <= groups.room).all(axis=-1))

    def of_layers(self, choices: Any) -> Choices:
        """Choices of groups (..., G) as choices of layers (..., L)."""
        index = np.asarray(choices)
        spread = np.empty((*index.shape[:-1], len(self.cost)), dtype=np.int64)
        for g, members in enumerate(self.groups.members):
            spread[..., list(members)] = index[..., [g]]
        return spread

    def of_groups(self, choices: Any) -> Choices:
        """Choices of layers (..., L) as choices of groups (..., G): each takes that of its first layer."""
        first = [members[0] for members in self.groups.members]
        return np.asarray(choices, dtype=np.int64)[..., first]


def _table(values: Any, name: str) -> Floats:
    try:
        table = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"{name} is no table of numbers", where=name, what_to_do="give a table (L, K): a row for each layer"
        ) from None
    if np.isnan(table).any():
        at = ", ".join(map(str, np.argwhere(np.isnan(table))[0]))
        raise InputError(f"{name}[{at}] is NaN", where=name, what_to_do="use a number, or inf for what is not allowed")
    return table


def _limits(values: Any, number: int) -> Floats:
    limits = _table(list(values) if isinstance(values, Iterable) else [values], "limits")
    if limits.shape != (number,):
        raise InputError(
            f"there are {number} tables of uses and limits of shape {limits.shape}",
            where="limits",
            what_to_do="give one limit for each table",
        )
    if np.isneginf(limits).any():
        raise InputError("a limit is -inf", where="limits", what_to_do="use a number, or inf for no limit")
    return limits


def _index(value: Any, number: int, what: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) < number:
        raise InputError(f"{what} {value!r} does not exist", where=where, what_to_do=f"use 0 to {number - 1}")
    return int(value)


def _members(tied: Iterable[Iterable[int]], layers: int) -> tuple[tuple[int, ...], ...]:
    label = list(range(layers))
    groups: list[Any] = list(tied) if isinstance(tied, Iterable) else [tied]
    for i, group in enumerate(groups):
        if not isinstance(group, Iterable) or isinstance(group, str):
            raise InputError(
                f"tied has {group!r}",
                where="tied",
                what_to_do="give a list of lists of layers, such as [[0, 1], [4, 6]]",
            )
        indices = [_index(layer, layers, "layer", f"tied[{i}]") for layer in group]
        old = {label[layer] for layer in indices}
        label = [min(old) if own in old else own for own in label]
    return tuple(tuple(layer for layer in range(layers) if label[layer] == own) for own in sorted(set(label)))


def _pinned(pinned: Mapping[int, int], shape: tuple[int, ...]) -> dict[int, int]:
    if not isinstance(pinned, Mapping):
        raise InputError(
            f"pinned is {type(pinned).__name__}", where="pinned", what_to_do="give a dict: layer -> its option"
        )
    return {
        _index(layer, shape[0], "layer", "pinned"): _index(option, shape[1], "option", f"pinned[{layer}]")
        for layer, option in pinned.items()
    }


def _merged(
    cost: Floats,
    uses: Floats,
    limits: Floats,
    allowed: Flags,
    members: tuple[tuple[int, ...], ...],
    pinned: Mapping[int, int],
) -> Groups:
    together = np.stack([allowed[list(group)].all(axis=0) for group in members])
    for g, group in enumerate(members):
        if not together[g].any():
            raise InputError(
                "tied layers have no allowed option in common",
                where=f"layers {', '.join(map(str, group))}",
                what_to_do="allow one for all of them, or do not tie them",
            )
        for layer in group:
            if layer in pinned:
                together[g] &= np.arange(cost.shape[1]) == pinned[layer]
        if not together[g].any():
            raise InputError(
                "a layer is pinned to what is not allowed for it, or tied layers to different options",
                where=f"pinned, layers {', '.join(map(str, group))}",
                what_to_do="pin it to an allowed option, and tied layers to the same",
            )
    used = np.stack([uses[:, list(group)].sum(axis=1) for group in members], axis=1)
    used = np.where(together, used, 0.0)
    slack = EXACTLY * np.abs(np.where(np.isfinite(limits), limits, 0.0))
    summed = np.stack([cost[list(group)].sum(axis=0) for group in members])
    return Groups(np.where(together, summed, np.inf), used, together, members, limits + slack)
