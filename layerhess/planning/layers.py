"""The weights that a plan decides on, which of them choose together, and what each may become."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerhess.errors import InputError
from layerhess.linalg.numbers import counted
from layerhess.objective.blocks import Scheme, partition
from layerhess.objective.objective import Objective
from layerhess.planning.weights.applicable import refuse_computed
from layerhess.planning.weights.applied import DTYPES, NotFiniteError, changed, fits
from layerhess.results.options import Function, Option, option_of, options_of
from layerhess.results.plan import PlannedWeight

SHOWN = 6  # names in a message
NOT_ALLOWED = "not among the options allowed for it"


@dataclass(frozen=True)
class Layers:
    """What a plan decides on.

    Attributes:
        weights: in model order. options: (K) all that any of them may become. tied: groups of places in ``weights``
            that take the same option. pinned: place -> place of its option. why_not: (L)(K) sentences, "" where the
            option is allowed. notes: what is left out.
    """

    weights: tuple[PlannedWeight, ...]
    options: tuple[Option, ...]
    tied: tuple[tuple[int, ...], ...]
    pinned: Mapping[int, int]
    why_not: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the weights."""
        return tuple(weight.name for weight in self.weights)

    def choice(self, places: Iterable[int]) -> dict[str, Option]:
        """Weight name -> option, from the place of an option for every weight."""
        return {name: self.options[int(place)] for name, place in zip(self.names, places, strict=True)}


def layers_of(
    objective: Objective,
    options: Any,
    scheme: Scheme,
    *,
    allowed: Mapping[str, Any] | None = None,
    pinned: Mapping[str, Any] | None = None,
    tied: Iterable[Iterable[str]] = (),
) -> Layers:
    """The planned weights of an objective's model.

    Args:
        options: what each may become. scheme: of blocks, see :func:`layerhess.analyze`; their tensors of two and more
            dimensions are planned, those of one block together. allowed: name or glob -> its options. pinned: name or
            glob -> its option, which need not be among the others. tied: groups of names or globs that take the same.

    Raises:
        InputError: unknown names or options; nothing allowed; integer or already quantised weights.
    """
    _refuse_quantised(objective)
    for name, value in (("allowed", allowed), ("pinned", pinned)):
        if value is not None and not isinstance(value, Mapping):
            raise InputError(
                f"{name} is {type(value).__name__}",
                where=name,
                what_to_do="give a dict: weight name or glob -> options",
            )
    tied = () if tied is None else tied
    if isinstance(tied, str) or not isinstance(tied, Iterable):
        raise InputError(f"tied is {tied!r}", where="tied", what_to_do="give a list of lists of weight names")
    known = options_of(options)
    try:
        divided = partition(objective.model, objective.parameters, objective.frozen, scheme)
    except InputError as error:
        raise InputError(error.message, where="layers", what_to_do=error.what_to_do) from error
    names = [n for block in divided.blocks for n in block.parameters if objective.parameters[n].ndim >= 2]
    names = [name for name in objective.parameters if name in set(names)]
    if not names:
        raise InputError(
            "the layers have no weight of two or more dimensions",
            where="layers",
            what_to_do="use layers='weight', or name weights that exist: "
            + ", ".join(list(objective.parameters)[:SHOWN]),
        )
    weights = tuple(_described(objective, name) for name in names)
    by_name = {alias: place for place, weight in enumerate(weights) for alias in (weight.name, *weight.aliases)}
    pins: dict[int, Option] = {}
    for pattern, value in (pinned or {}).items():
        option = option_of(value)
        for place in _places(by_name, pattern, "pinned"):
            if pins.setdefault(place, option) != option:
                raise InputError(
                    f"{weights[place].name!r} is pinned to two options, {pins[place]} and {option}",
                    where="pinned",
                    what_to_do="make the patterns disjoint",
                )
    everything = tuple(dict.fromkeys([*known, *pins.values()]))
    own = _allowed(by_name, allowed, known)
    why_not = []
    for place, weight in enumerate(weights):
        usable = (pins[place],) if place in pins else own.get(place, known)
        sentences = tuple(
            _why_not(option, objective, weight) if option in usable else NOT_ALLOWED for option in everything
        )
        if all(sentences):
            reasons = "; ".join(dict.fromkeys(s for s in sentences if s != NOT_ALLOWED)) or NOT_ALLOWED
            raise InputError(
                f"no option is left for {weight.name!r} of shape {weight.shape}: {reasons}",
                where="options",
                what_to_do="give one that fits it, or leave it out with layers=",
            )
        why_not.append(sentences)
    groups = [_member_places(by_name, group) for group in tied]
    for block in divided.blocks:
        inside = tuple(by_name[n] for n in block.parameters if n in by_name)
        groups += [inside] if len(inside) > 1 else []
    _refuse_nothing_in_common(weights, groups, why_not)
    left_out = list(objective.frozen)
    stay = "stays as it is" if len(left_out) == 1 else "stay as they are"
    notes = (
        (f"{counted(len(left_out), 'frozen parameter')} {stay} ({', '.join(left_out[:SHOWN])})",) if left_out else ()
    )
    return Layers(
        weights,
        everything,
        tuple(group for group in groups if len(group) > 1),
        {place: everything.index(option) for place, option in pins.items()},
        tuple(why_not),
        notes,
    )


def _why_not(option: Option, objective: Objective, weight: PlannedWeight) -> str:
    """Why an option cannot be done to a weight; "" if it can. A function of the user's is tried.

    Raises:
        InputError: a function that returns no tensor like the weight.
    """
    reason = fits(option, weight.shape)
    if reason or not (isinstance(option, Function) or weight.dtype == "float16"):
        return reason
    try:
        changed(option, objective.parameters[weight.name], weight.name)
    except NotFiniteError as error:
        return error.message
    return ""


def _refuse_nothing_in_common(
    weights: Sequence[PlannedWeight], groups: Sequence[Sequence[int]], why_not: Sequence[Sequence[str]]
) -> None:
    for group in groups:
        if group and all(any(row) for row in zip(*(why_not[place] for place in group), strict=True)):
            names = ", ".join(repr(weights[place].name) for place in group[:SHOWN])
            raise InputError(
                f"the tied weights {names} have no allowed option in common",
                where="tied",
                what_to_do="allow or pin one option for all of them, or do not tie them",
            )


def _described(objective: Objective, name: str) -> PlannedWeight:
    weight = objective.parameters[name]
    if weight.dtype not in DTYPES:
        raise InputError(
            f"the weight {name!r} is {str(weight.dtype).removeprefix('torch.')}",
            where=name,
            what_to_do="plan a model with weights in float32, bfloat16, float16 or float64",
        )
    if not bool(torch.isfinite(weight).all()):
        raise InputError(
            f"the weight {name!r} has values that are NaN or infinite", where=name, what_to_do="load other weights"
        )
    aliases = [
        alias
        for alias, other in objective.model.named_parameters(remove_duplicate=False)
        if other is weight and alias != name
    ]
    owner = dict(objective.model.named_modules())[name.rpartition(".")[0]]
    refuse_computed(name, [(owner, name.rpartition(".")[2])])  # the plan could not be applied
    return PlannedWeight(
        name=name,
        shape=tuple(weight.shape),
        dtype=str(weight.dtype).removeprefix("torch."),
        numel=weight.numel(),
        module=type(owner).__name__,
        aliases=tuple(aliases),
    )


def _refuse_quantised(objective: Objective) -> None:
    """Refuse a model with integer weights, or weights that a library quantised before."""
    for name, module in objective.model.named_modules():
        for own, value in [*module._parameters.items(), *module._buffers.items()]:
            if isinstance(value, Tensor) and _is_quantised(value):
                raise _quantised(f"{name}.{own}".lstrip("."), value)
        packed = module.__dict__.get("weight")  # no property: that may compute, and change buffers
        if hasattr(module, "_packed_params"):  # torch.ao's layers
            packed = module.weight() if callable(module.weight) else module.weight
        if isinstance(packed, Tensor) and _is_quantised(packed):
            raise _quantised(f"{name}.weight".lstrip("."), packed)
    weights = dict(objective.model.named_parameters(remove_duplicate=False))
    for name in objective.frozen:
        weight = weights.get(name)
        if weight is not None and weight.ndim >= 2 and not weight.is_complex() and weight.dtype not in DTYPES:
            raise _quantised(name, weight)


def _is_quantised(value: Tensor) -> bool:
    return value.is_quantized or type(value).__module__.startswith("torchao.")


def _quantised(name: str, value: Tensor) -> InputError:
    return InputError(
        f"the weight {name!r} is quantised already ({type(value).__name__}, {str(value.dtype).removeprefix('torch.')})",
        where=name,
        what_to_do="plan the model before it is quantised",
    )


def _places(by_name: Mapping[str, int], pattern: str, where: str) -> list[int]:
    """Places of the weights of a name or a glob."""
    if not isinstance(pattern, str):
        raise InputError(f"a layer is called {pattern!r}", where=where, what_to_do="use names of weights, or globs")
    if pattern in by_name:
        return [by_name[pattern]]
    found = sorted({place for name, place in by_name.items() if fnmatch.fnmatchcase(name, pattern)})
    if not found:
        raise InputError(
            f"no planned weight is called {pattern!r}",
            where=where,
            what_to_do="use names such as " + ", ".join(list(by_name)[:SHOWN]),
        )
    return found


def _member_places(by_name: Mapping[str, int], group: Any) -> tuple[int, ...]:
    if isinstance(group, str) or not isinstance(group, Iterable):
        raise InputError(f"tied has {group!r}", where="tied", what_to_do="give a list of lists of weight names")
    return tuple(sorted({place for pattern in group for place in _places(by_name, pattern, "tied")}))


def _allowed(
    by_name: Mapping[str, int], allowed: Mapping[str, Any] | None, known: Sequence[Option]
) -> dict[int, tuple[Option, ...]]:
    """Place -> the options allowed there; later patterns narrow what earlier ones left."""
    found: dict[int, tuple[Option, ...]] = {}
    for pattern, values in (allowed or {}).items():
        empty = not callable(values) and isinstance(values, Iterable) and not list(values)
        if empty:
            raise InputError(
                f"no option is allowed for {pattern!r}", where="allowed", what_to_do="name at least one of the options"
            )
        own = options_of(values)
        odd = [option for option in own if option not in known]
        if odd:
            raise InputError(
                f"{odd[0].name!r} is allowed for {pattern!r} and is none of the options",
                where="allowed",
                what_to_do=f"use some of {', '.join(option.name for option in known)}",
            )
        for place in _places(by_name, pattern, "allowed"):
            left = tuple(option for option in found.get(place, tuple(known)) if option in own)
            if not left:
                name = next(name for name, own_place in by_name.items() if own_place == place)
                raise InputError(
                    f"two patterns of allowed leave no option for {name!r}",
                    where="allowed",
                    what_to_do="make the patterns disjoint",
                )
            found[place] = left
    return found
