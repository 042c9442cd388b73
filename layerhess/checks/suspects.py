"""Turns a failed check into an error that names the modules to look at, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from layerhess.checks.forward_trace import Trace
from layerhess.curvature.data_pass import FULL
from layerhess.errors import CheckError
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective
from layerhess.results.record import Check

WEIGHT_NORM = (
    "torch's weight_norm has a wrong second derivative: fold it (torch.nn.utils.remove_weight_norm, or "
    "torch.nn.utils.parametrize.remove_parametrizations) before the analysis, or write w = g * v / v.norm() yourself"
)
UNKNOWN = (
    "look at custom autograd functions and fused kernels in that module (for NaN: at sqrt, norm, log and division by "
    "0, from there on), and replace them by plain torch operations"
)
SKIP = ", or go on without these blocks with skip_failed=True"


def refuse_failed(
    objective: Objective, blocks: Mapping[str, Block], failed: Mapping[str, Check], *, skippable: bool = False
) -> CheckError:
    """The error that refuses a whole analysis, naming blocks and modules.

    Args:
        skippable: the caller accepts ``skip_failed=True``, which is then part of the advice.
    """
    names = [name for name in failed if name != FULL] or list(failed)
    checks = [failed[name] for name in names]
    modules = list(dict.fromkeys(check.module for check in checks))
    return CheckError(
        "a self-check failed, so numbers from these products would be wrong: "
        + "; ".join(c.detail for c in checks[:3]),
        where=f"block {', '.join(names[:4])}; module {'; '.join(modules[:4])}",
        what_to_do=advice(modules, skippable),
    )


def failure(name: str, objective: Objective, key: str, tensors: Sequence[str], seen: Trace, figure: str) -> Check:
    """The failed check of a block: its product is ``figure``, because of one of these tensors."""
    module = suspects_of(objective, tensors)
    if seen.custom:
        module += f", or the custom autograd function in {' or '.join(seen.custom[:3])}"
    if seen.without_grad:
        module += f", or the call without gradients of {' or '.join(seen.without_grad[:3])}"
    return Check(name, False, f"the product of block {key!r} is {figure}; suspect module: {module}",
                 block=key, module=module)  # fmt: skip


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


def advice(suspects: Sequence[str], skippable: bool) -> str:
    """What to do about them; ``skippable`` where blocks can be left out."""
    if any("weight_norm" in suspect for suspect in suspects):
        return WEIGHT_NORM
    return UNKNOWN + SKIP * skippable


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
