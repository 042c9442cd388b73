"""Traces one forward pass: which module calls what, so that error messages can name the module to look at."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from layerhess.curvature.autograd_graph import coarsest_of, walk
from layerhess.linalg.described import Described, Description
from layerhess.linalg.numbers import counted
from layerhess.objective.containers import all_finite, tensors
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import version_of

ONCE_DIFFERENTIABLE = {"embedding_bag", "cdist", "ctc_loss", "pdist", "flex_attention"}
KINKS = (
    "Relu", "Threshold", "Hardtanh", "HardTanh", "Clamp", "Abs", "MaxPool", "Max", "Min", "Amax", "Amin", "Maximum",
    "Minimum", "Hardswish", "Hardsigmoid", "Prelu", "Rrelu", "Elu", "Sort", "Topk", "Median", "SmoothL1", "Huber",
    "Softshrink", "Hardshrink", "MultiMargin", "MultilabelMargin", "L1Loss", "Round", "Floor", "Ceil", "Sign",
)  # fmt: skip


STOPS = {
    "detach": "detach()", "detach_": "detach_()", "data": ".data", "item": "item()", "tolist": "tolist()",
    "numpy": "numpy()", "register_hook": "a tensor hook",
}  # fmt: skip
QUANTISER = "fake_quant"  # in the names of torch's own functions, whose gradients go straight through
NO_GRAPH = "autograd.grad() without create_graph"
MOST_STOPS = 12


@dataclass(repr=False)
class Trace(Described):
    """What one forward pass did.

    Attributes:
        calls: (module name, torch function name) in order, "" being the root or the loss.
        without_grad: modules that ran with gradients off although they were on outside (reentrant checkpointing).
        custom: custom autograd functions behind the loss, each as "module (function)".
        stateful: modules whose buffers the pass changed (running statistics, which it does not use, left out).
        changed: parameters that the pass itself changed.
        stops: what takes values or gradients away from autograd, each as "detach() in module (Type)".
        non_finite: first module whose output has a NaN or an infinity, or "".
        nodes: names of torch's own autograd nodes behind the loss. coarsest: the coarsest floating dtype among them.
        spans: for each module call, the range of autograd sequence numbers made in it, inner calls first; None stands
            for a module outside the model, as a criterion is. types: of the model's modules, by name.
        numbers: for each kind of torch's own nodes behind the loss, as in :func:`_plain`, some sequence numbers.
        saturated: says what rounding may have spoilt, see :func:`layerhess.checks.saturation.saturated`; asked only
            where a check fails.
    """

    calls: list[tuple[str, str]] = field(default_factory=list)
    without_grad: list[str] = field(default_factory=list)
    custom: list[str] = field(default_factory=list)
    stateful: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    spans: list[tuple[int, int, str | None]] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, list[int]] = field(default_factory=dict)
    non_finite: str = ""
    nodes: set[str] = field(default_factory=set)
    coarsest: torch.dtype = torch.float64
    saturated: Callable[[], str] = lambda: ""

    def _describe(self) -> Description:
        found = {"no gradients": self.without_grad, "custom": self.custom, "stops": self.stops}
        told = "; ".join(f"{name}: {', '.join(what[:3])}" for name, what in found.items() if what)
        return Description(f"Trace of a forward pass: {counted(len(self.calls), 'call')}", (told,) if told else ())

    def modules_calling(self, names: set[str]) -> list[str]:
        """Modules that called one of the functions, each as "name (function)"."""
        return list(dict.fromkeys(f"{module or 'the loss'} ({call})" for module, call in self.calls if call in names))

    def made_in(self, node: Any) -> str:
        """Name of the innermost module during whose call an autograd node of this pass was made."""
        return self._made_in(node._sequence_nr()) or ""

    def places_of(self, operation: str) -> list[str]:
        """Where an operation behind the loss was called, each as "name (Type)" of the innermost module, or "the loss".

        Args:
            operation: as torch calls it, "embedding_bag" for nodes that are EmbeddingBagBackward0.
        """
        modules = [self._made_in(number) for number in self.numbers.get(_plain(operation), [])]
        return list(dict.fromkeys(self.place(module) for module in reversed(modules)))

    def place(self, module: str | None) -> str:
        """A module's name and type; None stands for what is outside the model."""
        return "the loss" if module is None else f"{module or '(root)'} ({self.types.get(module, 'module')})"

    def _made_in(self, number: int) -> str | None:
        return next((name for start, end, name in self.spans if start <= number < end), None)

    @property
    def attention(self) -> bool:
        """Scaled-dot-product attention was called."""
        return any(call == "scaled_dot_product_attention" for _, call in self.calls)

    @property
    def smooth(self) -> bool:
        """No operation of torch with a kink (ReLU, max pooling, ...) is behind the loss; custom functions may be."""
        return not any(node.startswith(KINKS) for node in self.nodes)


def trace(objective: Objective, batch: Any) -> Trace:
    """Trace one forward pass on a prepared batch (in session, gradients on).

    The hooks are torch's global ones, not the model's own, and are removed afterwards. An exception of the model or the
    loss is raised unchanged.
    """
    found = Trace()
    before = state_versions(objective.model)
    with _watching(objective.model, found):
        loss, _ = objective.terms(batch)
    after = state_versions(objective.model)
    nodes = list(walk([loss.grad_fn]))
    found.coarsest = coarsest_of(nodes, objective.dtype)
    for node in nodes:
        if not isinstance(node, BackwardCFunction):
            kind = node.name().rpartition("::")[2]
            found.nodes.add(kind)
            found.numbers.setdefault(_plain(kind.partition("Backward")[0]), []).append(node._sequence_nr())
        else:
            name = type(node).__name__.removesuffix("Backward")
            found.custom.append(f"{found.made_in(node) or '(root)'} ({name})")
    found.custom = list(dict.fromkeys(reversed(found.custom)))  # in the order of the forward pass
    moved = [name for name, version in after.items() if before.get(name) != version]
    found.changed = [name for name in moved if name in objective.parameters]
    modules = dict(objective.model.named_modules())
    owners = dict.fromkeys(name.rpartition(".")[0] for name in moved if name not in objective.parameters)
    found.stateful = [name for name in owners if not isinstance(modules.get(name), nn.modules.batchnorm._NormBase)]
    return found


def state_versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Identity and version count of every parameter and buffer, to find out whether a pass changed it."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: (id(tensor), version_of(tensor)) for name, tensor in tensors}


def non_finite_weight(objective: Objective) -> str:
    """Name of the first parameter or buffer that holds a NaN or an infinity, or ""."""
    for name, tensor in (*objective.model.named_parameters(), *objective.model.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return ""


class _Calls(TorchFunctionMode):
    def __init__(self, stack: list[str | None], found: Trace) -> None:
        super().__init__()
        self._stack, self._found = stack, found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        module, name = self._stack[-1] if self._stack else None, getattr(func, "__name__", str(func))
        self._found.calls.append((module or "", name))
        if (stop := _stop(func, name, args, kwargs or {})) and len(self._found.stops) < MOST_STOPS:
            self._found.stops = list(dict.fromkeys([*self._found.stops, f"{stop} in {self._found.place(module)}"]))
        return func(*args, **(kwargs or {}))


def _stop(func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """How a call takes a value that depends on the parameters away from autograd, or alters its gradient; or ""."""
    if func is torch.autograd.grad:
        return "" if kwargs.get("create_graph", args[4:5] == (True,)) else NO_GRAPH
    if name == "__get__":
        name = "data" if getattr(func, "__self__", None) is Tensor.data else ""
    known = STOPS.get(name, f"{name}()" if QUANTISER in name else "")
    if not known and (torch.is_grad_enabled() or name.startswith("__")):
        return ""
    if not any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
        return ""
    return known or "no_grad"


@contextmanager
def _watching(model: nn.Module, found: Trace) -> Iterator[None]:
    names = {id(module): name for name, module in model.named_modules()}
    found.types = {name: type(module).__name__.removeprefix("Parametrized") for name, module in model.named_modules()}
    stack: list[str | None] = []
    starts: list[int] = []
    one = torch.ones((), requires_grad=True)
    latest = 0

    def now() -> int:
        nonlocal latest
        with torch.enable_grad(), torch._C.DisableTorchFunction():
            node = (one * 1.0).grad_fn
        if node is not None:  # inside transforms of torch.func there is none
            latest = node._sequence_nr()
        return latest

    def before(module: nn.Module, inputs: Any) -> None:
        name = names.get(id(module), stack[-1] if stack else None)
        stack.append(name)
        starts.append(now())
        if not torch.is_grad_enabled() and not any(_within(name or "", outer) for outer in found.without_grad):
            found.without_grad.append(name or "")

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        if stack:
            found.spans.append((starts.pop(), now(), stack.pop()))
        if not found.non_finite and any(_bad(tensor) for tensor in tensors(output)):
            found.non_finite = names.get(id(module), "") or type(module).__name__

    handles = [register_module_forward_pre_hook(before), register_module_forward_hook(after, always_call=True)]
    try:
        with _Calls(stack, found), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using `torch.compile")  # of global hooks on compiled modules
            yield
    finally:
        for handle in handles:
            handle.remove()


def _plain(operation: str) -> str:
    """An operation's name without underscores and capitals: of "embedding_bag" and "EmbeddingBag"."""
    return operation.replace("_", "").lower()


def _within(name: str, outer: str) -> bool:
    return outer == "" or name == outer or name.startswith(outer + ".")


def _bad(tensor: Tensor) -> bool:
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # under vmap: many examples, no single answer
        return False
    return not all_finite(tensor)
