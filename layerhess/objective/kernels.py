"""Selects the torch kernels to use while a model is analysed: those whose second derivative is right."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd

AUTOCAST_OFF = "the caller's autocast is off during the analysis: the weights' own precision is used"
TF32_OFF = "TF32 and bfloat16 inside float32 products are off during the analysis: they would leave 10 or 7 of 23 bits"


@contextmanager
def plain_kernels(devices: Iterable[torch.device], model: nn.Module) -> Iterator[list[str]]:
    """MATH attention kernels, compiled code run eagerly, no inference-only fast paths, no TF32, no outer autocast.

    And functions of torch that cannot be differentiated twice run in another form, see :class:`_Repairs`.

    Yields:
        Sentences on settings that were changed, for the reader of a result.
    """
    kinds = list(dict.fromkeys(device.type for device in devices))
    with ExitStack() as stack:
        autocast = [kind for kind in kinds if is_autocast_available(kind) and torch.is_autocast_enabled(kind)]
        for kind in autocast:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_eager())
        stack.enter_context(_same_kernels())
        stack.enter_context(_repairs.held())
        coarse = [stack.enter_context(_full_precision(torch.device(kind), model)) for kind in kinds]
        yield [AUTOCAST_OFF] * bool(autocast) + [TF32_OFF] * any(coarse)


@contextmanager
def _eager() -> Iterator[None]:
    """Run compiled code eagerly: compiled backwards have no second derivative."""
    stance = getattr(torch.compiler, "set_stance", None)
    if stance is None or "torch._dynamo" not in sys.modules:
        yield
        return
    with stance("force_eager"):
        yield


@contextmanager
def _same_kernels() -> Iterator[None]:
    """No inference-only fast path of torch's transformer layers: the same function with and without gradients."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _group_norm(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same on the CPU, without two faults of torch where a derivative in the bias alone is wanted.

    It ends the process where the channels are last in memory, and fails where there is no weight.
    """

    def group_norm(
        input: Tensor,
        num_groups: int,
        weight: Any = None,
        bias: Any = None,
        eps: float = 1e-5,
        cudnn_enabled: Any = True,
    ) -> Tensor:
        if input.device.type != "cpu" or (input.is_contiguous() and (weight is not None or bias is None)):
            return original(input, num_groups, weight, bias, eps, cudnn_enabled)
        beside = bias if weight is None else None
        made = original(input.contiguous(), num_groups, weight, None if weight is None else bias, eps, cudnn_enabled)
        made = in_layout_of(input, made)
        return made if beside is None else made + beside.view(-1, *[1] * (input.ndim - 2))

    return group_norm


def _instance_norm(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same as GroupNorm of single channels.

    For one example torch's own has a wrong gradient where the one that comes in is not contiguous, and for any
    number a wrong third derivative.
    """

    def instance_norm(
        input: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, use_input_stats: bool, momentum: float,
        eps: float, cudnn_enabled: bool,
    ) -> Tensor:  # fmt: skip
        if not use_input_stats or input.ndim < 3 or not input.numel():
            return original(input, weight, bias, mean, variance, use_input_stats, momentum, eps, cudnn_enabled)
        if mean is not None:
            with torch.no_grad():  # for the running statistics
                original(input.detach(), None, None, mean, variance, True, momentum, eps, cudnn_enabled)
        return torch.group_norm(input.contiguous(), input.shape[1], weight, bias, eps, cudnn_enabled)

    return instance_norm


def _hardsigmoid(original: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """The same from operations that can be differentiated twice."""
    return lambda input: nn.functional.hardtanh(input + 3.0, 0.0, 6.0) / 6.0


def _hardsigmoid_in_place(original: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda input: input.add_(3.0).clamp_(0.0, 6.0).div_(6.0)


def in_layout_of(input: Tensor, made: Tensor) -> Tensor:
    """``made`` with the channels last where torch's own normalisations would leave them there."""
    if input.ndim not in (4, 5) or input.is_contiguous():
        return made
    batch, channels, *space = input.stride()
    if 0 < channels <= space[-1] and sorted(space, reverse=True) == space and space[0] <= batch:
        return made.contiguous(memory_format=torch.channels_last if input.ndim == 4 else torch.channels_last_3d)
    return made


# Where the functions that models call (torch.nn.functional, modules) look each other up.
_REPAIRED: tuple[tuple[Any, str, Callable[[Any], Any]], ...] = (
    (torch, "group_norm", _group_norm),
    (torch, "instance_norm", _instance_norm),
    (torch._C._nn, "hardsigmoid", _hardsigmoid),
    (torch._C._nn, "hardsigmoid_", _hardsigmoid_in_place),
)


class _Repairs:
    """Functions of torch that crash or have no second derivative run in another form while any session is open.

    A replaced function holds wherever a model may run: in recomputed activations, in transforms of torch.func, in
    checks. So it must be the same function, up to rounding.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # analyses may run in several threads
        self._sessions = 0
        self._originals: list[Any] = []

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            self._sessions += 1
            if self._sessions == 1:
                self._originals = [getattr(owner, name) for owner, name, _ in _REPAIRED]
                for (owner, name, form), original in zip(_REPAIRED, self._originals, strict=True):
                    setattr(owner, name, form(original))
        try:
            yield
        finally:
            with self._lock:
                self._sessions -= 1
                if not self._sessions:
                    for (owner, name, _), original in zip(_REPAIRED, self._originals, strict=True):
                        setattr(owner, name, original)


_repairs = _Repairs()


@contextmanager
def _full_precision(device: torch.device, model: nn.Module) -> Iterator[bool]:
    """float32 products with all 24 bits: no TF32, no bfloat16 inside; True if that changes the model's products.

    Torch has two sets of switches for that, and refuses to read one where it disagrees with the other. So the set that
    the caller used is used: on a GPU the older one wherever it can be read. Each switch gets its own value back.
    """
    cuda = device.type == "cuda"
    single = any(parameter.dtype == torch.float32 for parameter in model.parameters())
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    convolutional = recurrent or any(isinstance(module, _ConvNd) for module in model.modules())
    with ExitStack() as stack:

        def switched(switch: Any, name: str, value: Any) -> bool:
            before = getattr(switch, name)
            if before in (value, "none"):
                return False
            stack.callback(setattr, switch, name, before)
            setattr(switch, name, value)
            return True

        backends: Any = torch.backends
        if cuda and recurrent:
            switched(backends.cudnn, "enabled", False)  # cuDNN's recurrent kernels have no second derivative
        newer = hasattr(backends.cuda.matmul, "fp32_precision")  # PyTorch 2.9
        matmul = others = False
        if not newer or (cuda and _readable(backends)):
            precision = torch.get_float32_matmul_precision()
            stack.callback(_allow, precision)
            if cuda:
                matmul = switched(backends.cuda.matmul, "allow_tf32", False)
                others = switched(backends.cudnn, "allow_tf32", False)
            else:
                matmul = precision == "medium"
                torch.set_float32_matmul_precision("highest")
        if newer:  # what the older ones switched off may still be inherited
            here, own = (backends.cuda, backends.cudnn) if cuda else (backends.mkldnn, backends.mkldnn)
            matmul |= switched(here.matmul, "fp32_precision", "ieee")
            others |= switched(own.conv, "fp32_precision", "ieee")
            others |= switched(own.rnn, "fp32_precision", "ieee")
        yield single and (matmul or (others and convolutional))


def _allow(precision: str) -> None:
    """Restore the caller's setting for all devices, unless the other switches say the same already."""
    try:
        there = torch.get_float32_matmul_precision() == precision
    except RuntimeError:
        there = False
    if not there:
        torch.set_float32_matmul_precision(precision)


def _readable(backends: Any) -> bool:
    """Whether the older switches agree with the newer ones."""
    try:
        torch.get_float32_matmul_precision()
        return all(isinstance(switch.allow_tf32, bool) for switch in (backends.cuda.matmul, backends.cudnn))
    except RuntimeError:
        return False
