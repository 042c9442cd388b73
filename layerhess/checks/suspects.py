"""Turns a failed check into an error that names the modules to look at, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import nn

from layerhess.checks.forward_trace import STOPS, Trace
from layerhess.checks.saturation import LOG, SURE
from layerhess.curvature.data_pass import FULL
from layerhess.errors import CheckError
from layerhess.objective.objective import Objective
from layerhess.results.record import Check

FIRST_DERIVATIVE = "first derivative"  # the names of checks
DIFFERENCES = "finite differences"
STEP = "step"
WEIGHT_NORM = (
    "torch's weight_norm has a wrong second derivative: fold it (remove_weight_norm or remove_parametrizations), or "
    "write w = g * v / v.norm() yourself"
)
UNKNOWN = "use plain torch operations there instead of custom autograd functions or fused kernels"
NOT_FINITE = "look at sqrt, norm, log and division by 0 there, and at custom autograd functions"
STOPPED = (
    "differentiate these values, or hold them constant: Objective(..., stop_gradients='constant'), "
    "--stop-gradients constant"
)
LOGITS = (
    "end the model at the logits, without Sigmoid or Softmax, and use BCEWithLogitsLoss or CrossEntropyLoss (by hand: "
    "F.logsigmoid or F.log_softmax)"
)
LESS_SURE = "curvature is only rounding there: take data of which the model is less sure, or an earlier checkpoint"
LONGEST_NAME = 24  # characters of a name in a message
SKIP = "; skip_failed=True leaves such blocks out"


def refuse_failed(failed: Mapping[str, Check], *, skippable: bool = False) -> CheckError:
    """The error that refuses a whole analysis, naming blocks and modules; its ``details`` have a line for each block.

    Args:
        skippable: the caller accepts ``skip_failed=True``, which is then part of the advice.
    """
    names = [name for name in failed if name != FULL] or list(failed)
    # A wrong first derivative explains everything after it.
    names.sort(key=lambda name: failed[name].name != FIRST_DERIVATIVE)
    first = failed[names[0]]
    figure, _, suspect = first.detail.partition("; ")
    return CheckError(
        figure if first.name == FIRST_DERIVATIVE else f"a self-check failed: {figure}",
        where=f"{_listed('block', names)}; {suspect}",
        what_to_do=advice(first, skippable),
        details=[failed[name].detail for name in names],
    )


def failure(name: str, objective: Objective, key: str, tensors: Sequence[str], seen: Trace, figure: str) -> Check:
    """The failed check of a block: its product is ``figure``, because of one of these tensors."""
    module = f"module {suspects_of(objective, tensors)}"
    if (saturated := seen.saturated()) and "weight_norm" not in module:
        module = saturated
    if seen.custom:
        module += f", or the custom autograd function in {' or '.join(seen.custom[:2])}"
    if stops := _stops(seen):
        module += f", or {stops[0]}"
    if seen.without_grad:
        module += f", or the call without gradients of {' or '.join(seen.without_grad[:2])}"
    return Check(name, False, f"the product of block {_brief(key)!r} is {figure}; suspect {module}",
                 block=key, module=module.removeprefix("module "))  # fmt: skip


def gradient_failure(objective: Objective, key: str, tensors: Sequence[str], seen: Trace, off: float) -> Check:
    """The failed check of a block whose gradient is off, because of one of these tensors.

    Args:
        off: relative; infinite where no step shows a derivative.
    """
    suspects = [f"the custom autograd function in {place}" for place in seen.custom[:2]] + _stops(seen)
    module = " or ".join(suspects[:2]) if suspects else seen.saturated() or suspects_of(objective, tensors)
    figure = f"off by {off:.1e} from differences of it" if math.isfinite(off) else "of which no step shows a derivative"
    detail = f"the gradient of block {_brief(key)!r} is not the gradient of the loss ({figure})"
    return Check(FIRST_DERIVATIVE, False, f"{detail}; suspect: {module}", block=key, module=module)


def _stops(seen: Trace) -> list[str]:
    """What takes values away from autograd, but for the forward passes of custom functions, which run without it."""
    places = [place.partition(" (")[0] for place in seen.custom]
    return [stop for stop in seen.stops if not (stop.startswith("no_grad in ") and stop.split(" ")[2] in places)]


def _listed(kind: str, names: Sequence[str]) -> str:
    """Three names, and the number of the others."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{kind}{'s' if len(names) > 1 else ''} {', '.join(_brief(name) for name in names[:3])}{rest}"


def _brief(name: str) -> str:
    """A long name without its middle: layers differ at the beginning, parameters at the end."""
    return name if len(name) <= LONGEST_NAME else f"{name[:8]}...{name[-(LONGEST_NAME - 11) :]}"


def suspects_of(objective: Objective, parameters: Sequence[str]) -> str:
    """The modules that own these parameters, each as "name (type)"; a few of them."""
    modules = dict(objective.model.named_modules())
    found = []
    for name in parameters:
        path = name.rpartition(".")[0]
        owner = f".{path}".split(".parametrizations.")[0].lstrip(".")
        module = modules.get(owner, objective.model)
        normed = f".{name}".find(".parametrizations.") >= 0 or name.endswith(("weight_g", "weight_v"))
        note = ", weight_norm" if normed and _has_weight_norm(module) else ""
        found.append(f"{_brief(owner) or '(root)'} ({_kind(module)}){note}")
    return "; ".join(list(dict.fromkeys(found))[:3])


def advice(failed: Check, skippable: bool) -> str:
    """What to do about a failed check; ``skippable`` where blocks can be left out."""
    if failed.module in (LOG, SURE):
        return LOGITS if failed.module == LOG else LESS_SURE
    stopped = failed.name == DIFFERENCES and any(stop in failed.module for stop in (*STOPS.values(), "no_grad in "))
    if failed.name == FIRST_DERIVATIVE or stopped:
        return STOPPED
    if failed.name == STEP:
        return "analyse the model in float64 (model.double()), or use path='exact' where it has a second derivative"
    if "weight_norm" in failed.module:
        return WEIGHT_NORM
    return (NOT_FINITE if "NaN" in failed.detail else UNKNOWN) + SKIP * skippable


def _kind(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("Parametrized")


def _has_weight_norm(module: nn.Module) -> bool:
    hooks = getattr(module, "_forward_pre_hooks", {}).values()
    if any(type(hook).__name__ == "WeightNorm" for hook in hooks):
        return True
    parametrizations = getattr(module, "parametrizations", {})
    return any(
        type(step).__name__ == "_WeightNorm" for steps in getattr(parametrizations, "values", list)() for step in steps
    )
