"""May this plan be applied to this model? All is looked at before anything changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerhess.errors import InputError
from layerhess.objective.plain_model import PlainTwin, is_sharded, needs_twin, unwrapped
from layerhess.planning.weights.applied import DTYPES, fits
from layerhess.planning.weights.grids import rounded_before
from layerhess.results.options import Function, Option, Quantize
from layerhess.results.plan import PlannedWeight, PlanRecord

SHOWN = 3  # names in a sentence


@dataclass(frozen=True)
class Target:
    """A weight of the model and what is to be done to it.

    Attributes:
        name: as the plan calls it. places: the modules that hold it, each with the attribute's name.
    """

    name: str
    option: Option
    parameter: nn.Parameter
    places: tuple[tuple[nn.Module, str], ...]


def targets(model: nn.Module, plan: PlanRecord) -> tuple[nn.Module, list[Target]]:
    """The model inside all wrappers, and the weights that the plan changes in it.

    Raises:
        InputError: the plan is for another model; weights that are quantised already, sharded, computed from others, or
            that an option cannot be done to.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the model is {type(model).__name__}, not a torch.nn.Module",
            where="model",
            what_to_do="pass the module itself",
        )
    if not isinstance(plan, PlanRecord):
        raise InputError(
            f"the plan is {type(plan).__name__}", where="plan", what_to_do="give what lh.plan or lh.load_plan returned"
        )
    inside, _ = unwrapped(model)
    for name, parameter in inside.named_parameters():
        if is_sharded(parameter):
            raise InputError(
                "the weights are sharded over several processes",
                where=name,
                what_to_do="apply the plan to the model with whole weights, before it is sharded",
            )
    unknown = sorted(plan.choice.keys() - {weight.name for weight in plan.weights})
    if unknown:
        raise InputError(
            f"the plan chooses options for {_listed(unknown)}, which it does not plan",
            where="plan.choice",
            what_to_do="use a plan as lh.plan or lh.load_plan gives it",
        )
    planned = [weight for weight in plan.weights if weight.name in plan.choice]
    named = dict(_plain(inside).named_parameters(remove_duplicate=False))
    _refuse_another_model(inside, named, planned)
    places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in inside.modules():
        for name, held in module._parameters.items():
            if held is not None:
                places[id(held)].append((module, name))
    found = []
    for weight in planned:
        parameter, option = named[weight.name], plan.choice[weight.name]
        target = Target(weight.name, option, parameter, tuple(places[id(parameter)]))
        _refuse_unusable(target)
        found.append(target)
    _refuse_two_options(found)
    return inside, found


def _plain(model: nn.Module) -> nn.Module:
    """A model with the names that the plan knows: without the wrappers inside."""
    return PlainTwin(model).model if needs_twin(model) else model


def _refuse_another_model(model: nn.Module, named: dict[str, nn.Parameter], planned: list[PlannedWeight]) -> None:
    missing = [weight.name for weight in planned if weight.name not in named]
    for name in missing:
        if _is_packed(model, name):
            raise InputError(
                "the layer's weights are quantised already",
                where=name,
                what_to_do="apply the plan to the model with floating point weights",
            )
    shapes = [
        f"{weight.name} is {tuple(named[weight.name].shape)} here and {weight.shape} in the plan"
        for weight in planned
        if weight.name in named and tuple(named[weight.name].shape) != tuple(weight.shape)
    ]
    untied = [
        f"{alias} is tied to {weight.name} in the plan, and not here"
        for weight in planned
        for alias in weight.aliases
        if weight.name in named and named.get(alias) is not named[weight.name]
    ]
    if missing or shapes or untied:
        wrong = [f"it has no weights {_listed(missing)}"] if missing else []
        raise InputError(
            f"the plan was made for another model than this {type(model).__name__}: "
            + "; ".join([*wrong, *shapes[:SHOWN], *untied[:SHOWN]]),
            where="model",
            what_to_do="apply it to the model it was made for",
            details=[*(f"missing: {name}" for name in missing), *shapes, *untied],
        )


def _is_packed(model: nn.Module, name: str) -> bool:
    """Whether a layer of torch.ao holds this weight, packed, where the parameter was."""
    path, _, attribute = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return False
    held: object = getattr(module, attribute, None)
    return callable(held) or (isinstance(held, Tensor) and held.is_quantized)


def _refuse_unusable(target: Target) -> None:
    """Refuse a weight that the option cannot be done to, or must not be done to again."""
    name, option, parameter = target.name, target.option, target.parameter
    plain = "apply the plan to the model with whole floating point weights"
    if isinstance(option, Function) and option.function is None:
        raise InputError(
            f"the plan chose the function {option.name!r}; a loaded plan knows its name, not what it does",
            where=name,
            what_to_do="give the function: lh.load_plan(folder, functions=[function])",
        )
    if type(parameter.data) is not Tensor:
        kind = type(parameter.data).__name__
        raise InputError(f"the weights are quantised already: they are a {kind}", where=name, what_to_do=plain)
    if parameter.dtype not in DTYPES:
        dtype = str(parameter.dtype).removeprefix("torch.")
        raise InputError(f"the weights are of dtype {dtype}: quantised already", where=name, what_to_do=plain)
    if parameter.is_meta:
        raise InputError("the weights are on the meta device", where=name, what_to_do="load their values")
    refuse_computed(name, target.places)
    if reason := fits(option, parameter.shape):
        raise InputError(f"the option {option.name!r} cannot be done: {reason}", where=name, what_to_do="plan again")
    if not torch.isfinite(parameter.detach()).all():
        raise InputError("the weights are infinite or NaN", where=name, what_to_do="load weights of a model that works")
    if isinstance(option, Quantize) and rounded_before(option, parameter):
        raise InputError(
            "the weights are rounded to few values already, as if a plan had been applied before",
            where=name,
            what_to_do="load the weights the plan was made with, and apply it once",
        )


def refuse_computed(name: str, places: Iterable[tuple[nn.Module, str]]) -> None:
    """Refuse a parameter that a layer's weight is made of.

    Raises:
        InputError: it is.
    """
    if any(_is_computed(module, attribute) for module, attribute in places) or "parametrizations" in name:
        raise InputError(
            "the layer's weight is computed from this parameter before every forward pass",
            where=name,
            what_to_do="make it a plain weight first, by torch.nn.utils.parametrize.remove_parametrizations, "
            "remove_weight_norm or prune.remove",
        )


def _is_computed(module: nn.Module, attribute: str) -> bool:
    """Whether a hook makes the layer's weight of this parameter: weight_norm, spectral_norm or pruning of torch."""
    hooks = module._forward_pre_hooks.values()
    made = [getattr(hook, "name", None) or getattr(hook, "_tensor_name", None) for hook in hooks]
    return any(isinstance(name, str) and attribute.startswith(f"{name}_") for name in made)


def _refuse_two_options(found: list[Target]) -> None:
    first: dict[int, Target] = {}
    for target in found:
        other = first.setdefault(id(target.parameter), target)
        if other is not target:
            raise InputError(
                f"{other.name} and {target.name} are one tensor here, and two in the plan",
                where=target.name,
                what_to_do="apply the plan to the model it was made for",
            )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
