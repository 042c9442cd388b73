"""What the gradient would be if values that were taken away from autograd had been let through."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from layerhess.curvature.counters import Counters
from layerhess.curvature.device import is_out_of_memory, storages
from layerhess.curvature.gradient_sum import add_gradient
from layerhess.objective.objective import Objective

LEFT_OUT = 1e-2  # of a tensor's gradient: so much by rounding alone is seen in half precision only
WEAK = 1e-6  # of the strongest tensor's gradient: a weaker one may be rounding


NUMBERS = {
    "item", "tolist", "numpy", "__array__", "__float__", "__int__", "__bool__", "__index__", "__complex__",
}  # fmt: skip


class LetThrough(TorchFunctionMode):
    """Inside this context detach() and .data give the tensor itself, and torch.no_grad() does not stop autograd.

    What leaves torch, as a number for a log does, has no graph. What is written into the model's own tensors has none
    either: these must not become part of one.

    Args:
        kept: the model's parameters and buffers.
    """

    def __init__(self, kept: Iterable[Tensor]) -> None:
        super().__init__()
        self._kept = storages(kept).keys()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in ("detach", "detach_") or (name == "__get__" and getattr(func, "__self__", None) is Tensor.data):
            return args[0]
        target = kwargs.get("out", args[0] if args else None)
        plain = isinstance(target, Tensor) and name in NUMBERS
        if plain or (_writes(name, kwargs) and isinstance(target, Tensor) and self._keeps(target)):
            with torch.no_grad():
                return func(*tree_map_only(Tensor, Tensor.detach, args), **kwargs) if plain else func(*args, **kwargs)
        with torch.enable_grad():
            return func(*args, **kwargs)

    def _keeps(self, target: Tensor) -> bool:
        return not self._kept.isdisjoint(storages([target]))


def _writes(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a function of this name writes into its first argument, or into ``out``."""
    own = name.startswith("__i") and name.endswith("__")
    return own or "out" in kwargs or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def left_out(objective: Objective, names: Sequence[str], counters: Counters) -> dict[str, float]:
    """Parameters whose gradient is another one where nothing is taken away from autograd; empty where that fails.

    This is exact where differences of the loss are not, as those of a staircase with fine steps are. A detach that
    changes nothing, as that of a maximum which is subtracted from all logits, changes nothing here either.

    Args:
        objective: in session. names: the parameters.

    Returns:
        parameter -> ||g - g'|| / max(||g||, ||g'||), for those above :data:`LEFT_OUT`.
    """
    own = _gradient(objective, names, counters)
    try:
        model = objective.model
        other = _gradient(objective, names, counters, LetThrough((*model.parameters(), *model.buffers())))
    except Exception as error:  # the network cannot be run so, as where such a value becomes a number
        if is_out_of_memory(error):
            raise
        return {}
    sizes = {name: max(float(own[name].norm()), float(other[name].norm())) for name in names}
    least = WEAK * max(sizes.values(), default=0.0)
    off = {name: float((own[name] - other[name]).norm()) / size for name, size in sizes.items() if size > least}
    return {name: figure for name, figure in off.items() if figure > LEFT_OUT}


def _gradient(
    objective: Objective, names: Sequence[str], counters: Counters, mode: TorchFunctionMode | None = None
) -> dict[str, Tensor]:
    """Of the loss's sum over the data, float64."""
    parameters = {name: objective.parameters[name] for name in names}
    totals = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in parameters.items()}
    for batch in objective.data:
        if mode is None:
            loss, _ = objective.terms(batch)
        else:
            with mode:
                loss, _ = objective.terms(batch)
        counters.count("forwards")
        counters.count("backwards")
        if loss.requires_grad:
            add_gradient(loss, parameters, totals)
    return totals
