"""Records the calls of linear layers in one forward pass: inputs, and where to take gradients at the outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from layerhess.curvature.double_backward.geometry import CONVOLUTIONS, geometry
from layerhess.curvature.double_backward.mode import DIFFERENTIATION
from layerhess.curvature.factors import layers
from layerhess.curvature.factors.layers import Entry


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer.

    Attributes:
        edge: where a gradient with respect to the layer's output y is to be asked for. shape: of y.
        entries: the parameters of that call. versions: of the tensors that the entries use, when they were made.
    """

    edge: Any
    shape: torch.Size
    entries: tuple[Entry, ...]
    versions: tuple[int, ...]

    @property
    def intact(self) -> bool:
        """False when the network overwrote in place what the entries need."""
        kept = [tensor for entry in self.entries for tensor in entry.inputs]
        return all(tensor._version == version for tensor, version in zip(kept, self.versions, strict=True))


@dataclass
class Recorder(TorchFunctionMode):
    """While this mode is on, calls of linear layers with the given parameters are recorded, in order.

    The call gets its parameters detached, so that the graph behind its output leads to activations alone; a parameter
    that the graph still leads to was used in another way.

    Args:
        names: id of a parameter -> its name.

    Attributes:
        found: the calls. affine: autograd nodes that are known to be affine maps, though their kind is not: BatchNorm
            in eval mode. differentiated: the forward pass or the loss differentiated something (forces, PINN, gradient
            penalties). Weights may then reach the output through a backward pass too, of which the recorded graph,
            with its parameters detached, shows nothing.
    """

    names: Mapping[int, str]
    found: list[LayerCall] = field(default_factory=list)
    affine: set[Any] = field(default_factory=set)
    differentiated: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self._anchor: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        recording = RECORDINGS.get(func)
        if func in DIFFERENTIATION or (recording is not None and forward_ad._current_level >= 0):
            self.differentiated = True
        if recording is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        given = _bound(func, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            made = None if given is None or not _is_dense(given["input"]) else recording(self, func, given)
            if made is None:
                return func(*args, **kwargs)
            y, entries = made
            if not entries or torch._C._functorch.is_functorch_wrapped_tensor(y):
                return func(*args, **kwargs) if entries else y
            return self._record(y, entries)

    def name_of(self, parameter: Any) -> str | None:
        """Its name, if it is one of those to be recorded."""
        return self.names.get(id(parameter)) if parameter is not None else None

    def fixed(self, parameter: Any) -> Any:
        """The parameter, without its gradient if it is recorded."""
        return parameter.detach() if self.name_of(parameter) else parameter

    def _record(self, y: Tensor, entries: list[Entry]) -> Tensor:
        if not y.requires_grad:
            if self._anchor is None:
                self._anchor = torch.zeros((), dtype=y.dtype, device=y.device, requires_grad=True)
            y = y + self._anchor.to(y.dtype)  # not a leaf: the network may go on in place
        versions = tuple(tensor._version for entry in entries for tensor in entry.inputs)
        self.found.append(LayerCall(get_gradient_edge(y), y.shape, tuple(entries), versions))
        return y


class _FixedBatchNorm(torch.autograd.Function):
    """BatchNorm with everything but its input constant: torch's kernel forwards, one multiplication backwards.

    torch's own backward takes half as long again, and is needed only where the parameters change.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, mean: Tensor, variance: Tensor, weight: Any, offset: Any, eps: float) -> Tensor:
        rate = torch.rsqrt(variance + eps)
        ctx.factor = (rate if weight is None else rate * weight).view((1, -1) + (1,) * (a.ndim - 2))
        return F.batch_norm(a, mean, variance, weight, offset, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.factor, None, None, None, None, None


Recording = Callable[[Recorder, Any, dict[str, Any]], tuple[Tensor, list[Entry]] | None]


def _linear(recorder: Recorder, function: Any, given: dict[str, Any]) -> tuple[Tensor, list[Entry]] | None:
    a, weight, offset = given["input"], given["weight"], given["bias"]
    if not (recorder.name_of(weight) or recorder.name_of(offset)) or weight.ndim != 2 or a.ndim < 2:
        return None
    if offset is not None and offset.shape != weight.shape[:1]:
        return None
    y = F.linear(a, recorder.fixed(weight), recorder.fixed(offset))
    entries = [layers.linear(name, a.detach())] if (name := recorder.name_of(weight)) else []
    entries += [layers.bias(name, y.shape, -1)] if (name := recorder.name_of(offset)) else []
    return y, entries


def _convolution(recorder: Recorder, function: Any, given: dict[str, Any]) -> tuple[Tensor, list[Entry]] | None:
    a, weight, offset = given["input"], given["weight"], given["bias"]
    n, own = CONVOLUTIONS[function], recorder.name_of(weight)
    options = {key: given[key] for key in ("stride", "padding", "dilation", "groups")}
    moved = geometry(n, **options)
    if own is None or moved is None or a.ndim != n + 2:
        return None
    y = function(a, recorder.fixed(weight), recorder.fixed(offset), **options)
    entries = [layers.convolution(own, a.detach(), weight.shape, moved)]
    entries += [layers.bias(name, y.shape, 1)] if (name := recorder.name_of(offset)) else []
    return y, entries


def _embedding(recorder: Recorder, function: Any, given: dict[str, Any]) -> tuple[Tensor, list[Entry]] | None:
    name = recorder.name_of(given["weight"])
    if name is None or given["max_norm"] is not None or given["scale_grad_by_freq"] or given["sparse"]:
        return None
    weight, padding = given["weight"].detach(), given["padding_idx"]
    rows = len(weight)
    padding = padding + rows if padding is not None and padding < 0 else padding
    return F.embedding(given["input"], weight), [layers.embedding(name, given["input"], rows, padding)]


def _batch_norm(recorder: Recorder, function: Any, given: dict[str, Any]) -> tuple[Tensor, list[Entry]] | None:
    a, mean, variance = given["input"], given["running_mean"], given["running_var"]
    if given["training"] or mean is None or variance is None or a.dtype != variance.dtype:
        return None
    weight, offset = recorder.fixed(given["weight"]), recorder.fixed(given["bias"])
    if any(p is not None and p.requires_grad for p in (weight, offset)):
        return None
    y: Tensor = _FixedBatchNorm.apply(a, mean, variance, weight, offset, given["eps"])  # type: ignore[no-untyped-call]
    if y.requires_grad:
        recorder.affine.add(get_gradient_edge(y).node)
    entries = []
    if name := recorder.name_of(given["weight"]):
        normed = F.batch_norm(a.detach(), mean, variance, None, None, False, 0.0, given["eps"])
        entries.append(layers.scale(name, normed, [1]))
    entries += [layers.bias(name, y.shape, 1)] if (name := recorder.name_of(given["bias"])) else []
    return y, entries


def _layer_norm(recorder: Recorder, function: Any, given: dict[str, Any]) -> tuple[Tensor, list[Entry]] | None:
    a = given["input"]
    own = range(a.ndim - len(given["normalized_shape"]), a.ndim)
    normed = F.layer_norm(a, given["normalized_shape"], None, None, given["eps"])
    return _affine(recorder, normed, given, list(own))


def _group_norm(recorder: Recorder, function: Any, given: dict[str, Any]) -> tuple[Tensor, list[Entry]] | None:
    return _affine(recorder, F.group_norm(given["input"], given["num_groups"], None, None, given["eps"]), given, [1])


def _affine(
    recorder: Recorder, normed: Tensor, given: dict[str, Any], dims: list[int]
) -> tuple[Tensor, list[Entry]] | None:
    weight, offset = given["weight"], given["bias"]
    if not recorder.name_of(weight) and not recorder.name_of(offset):
        return None
    shape = [size if i in dims else 1 for i, size in enumerate(normed.shape)]
    y, entries = normed, []
    if weight is not None:
        y = y * recorder.fixed(weight).view(shape)
        entries += [layers.scale(name, normed.detach(), dims)] if (name := recorder.name_of(weight)) else []
    if offset is not None:
        y = y + recorder.fixed(offset).view(shape)
        entries += [layers.shift(name, y.shape, dims)] if (name := recorder.name_of(offset)) else []
    return y, entries


RECORDINGS: dict[Any, Recording] = {
    F.linear: _linear,
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
    F.embedding: _embedding,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
}
_BUILT_IN = {
    F.linear: ("input", "weight", "bias"),
    **dict.fromkeys(CONVOLUTIONS, ("input", "weight", "bias", "stride", "padding", "dilation", "groups")),
}
_DEFAULTS: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested


@cache
def _signature(function: Any) -> inspect.Signature:
    return inspect.signature(function)


def _bound(function: Any, args: Any, kwargs: Any) -> dict[str, Any] | None:
    """The call's arguments by name; None for a call that the function would refuse."""
    if (names := _BUILT_IN.get(function)) is not None:
        given = dict(zip(names, args, strict=False)) | kwargs
        made = {name: given.get(name, _DEFAULTS.get(name)) for name in names}
        return None if set(given) - set(names) or made["input"] is None or made["weight"] is None else made
    try:
        found = _signature(function).bind(*args, **kwargs)
    except TypeError:
        return None
    found.apply_defaults()
    return dict(found.arguments)
