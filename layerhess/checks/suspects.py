"""From a failed check to the module to look at, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from layerhess.objective import Objective

WEIGHT_NORM = (
    "torch's weight_norm has a wrong second derivative: fold it (torch.nn.utils.remove_weight_norm, or "
    "torch.nn.utils.parametrize.remove_parametrizations) before the analysis, or write w = g * v / v.norm() yourself"
)
UNKNOWN = (
    "look at custom autograd functions and fused kernels in that module (for NaN: at sqrt, norm, log and division by "
    "0, from there on); replace them by plain torch operations, or go on without these blocks with skip_failed=True"
)


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
        found.append(f"{owner or '(root)'} ({_kind(module)}){note}")
    return "; ".join(list(dict.fromkeys(found))[:3])


def advice(suspects: Sequence[str]) -> str:
    """What to do about them."""
    return WEIGHT_NORM if any("weight_norm" in suspect for suspect in suspects) else UNKNOWN


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
