"""From a failed check to the module to look at, and what to do about it."""

from __future__ import annotations

from torch import nn

from layerhess.blocks import Block
from layerhess.objective import Objective

WEIGHT_NORM = (
    "torch's weight_norm has a wrong second derivative: fold it (torch.nn.utils.remove_weight_norm, or "
    "torch.nn.utils.parametrize.remove_parametrizations) before the analysis, or write w = g * v / v.norm() yourself"
)
UNKNOWN = (
    "look at custom autograd functions and fused kernels in that module (for NaN: at sqrt, norm, log and division by "
    "0, from there on); replace them by plain torch operations, or go on without these blocks with skip_failed=True"
)


def suspect_of(objective: Objective, block: Block) -> tuple[str, str]:
    """(module description, what to do) for a block whose product failed a check."""
    modules = dict(objective.model.named_modules())
    path = block.parameters[0].rpartition(".")[0]
    normed = any(
        ".parametrizations." in f".{name}" or name.endswith(("weight_g", "weight_v")) for name in block.parameters
    )
    owner = path.split("parametrizations.")[0].rstrip(".") if "parametrizations" in path else path
    module = modules.get(owner, objective.model)
    what = f"{owner or '(root)'} ({_kind(module)})"
    return (f"{what}, weight_norm", WEIGHT_NORM) if normed and _has_weight_norm(module) else (what, UNKNOWN)


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
