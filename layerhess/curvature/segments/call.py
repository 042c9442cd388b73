"""One call of modules, as a function of the tensors in its arguments and of the modules' parameters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available
from torch.overrides import _get_current_function_mode_stack

from layerhess.curvature.segments.recomputed import Results
from layerhess.objective.containers import tensors as tensors_in
from layerhess.objective.containers import tree_map
from layerhess.objective.snapshot import RandomState, random_states, version_of

CONSTANTS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
PLACE = torch.empty(0)  # where a tensor was


class NotPure(RuntimeError):
    """A call that cannot be repeated: it does more than to compute its results from its arguments."""


class Call:
    """A function of tensors: those among the arguments of one call, then the parameters that require gradients.

    The first evaluation is the call itself; the later ones repeat it with the random numbers, the autocast state and
    the function modes of the first.

    Args:
        forward: what is called. modules: whose parameters it uses. args, kwargs: its arguments.

    Attributes:
        inputs, parameters: what it is a function of. plain: makes the call as it is. hold: keep the graph of the first
            evaluation, as a gradient would; held: the arguments and results of that.
    """

    def __init__(
        self, forward: Callable[..., Any], modules: Sequence[nn.Module], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        self._forward = forward
        self.plain = partial(forward, *args, **kwargs)
        kept = {key: _without_cache(value) for key, value in kwargs.items()}
        self._arguments = (tuple(map(_without_cache, args)), kept)
        self.inputs = tensors_in(self._arguments)
        self.parameters = list(dict.fromkeys(p for m in modules for p in m.parameters() if p.requires_grad))
        self.leaves = (*[False] * len(self.inputs), *[True] * len(self.parameters))
        kinds = filter(is_autocast_available, {"cpu", *(t.device.type for t in (*self.inputs, *self.parameters))})
        self._autocast = {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds}
        self._modes: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        self.hold = False
        self.held: tuple[list[Tensor], Results] | None = None
        self._random: RandomState | None = None
        self._begun = False
        self._results: Any = None

    @property
    def tensors(self) -> list[Tensor]:
        """What it is a function of."""
        return [*self.inputs, *self.parameters]

    def __call__(self, tensors: Sequence[Tensor]) -> Results:
        """The tensors among its results.

        Raises:
            NotPure: the call changed an argument, or gives something else than the first time.
        """
        if self.hold and not self._begun:
            return self._first_held()
        given = iter(tensors[: len(self.inputs)])
        args, kwargs = tree_map(lambda _: next(given), self._arguments)
        with ExitStack() as stack:
            for device, (enabled, dtype) in self._autocast.items():
                if enabled or torch.is_autocast_enabled(device):
                    # Without a cache: weights cast while gradients are off would stay without them.
                    stack.enter_context(torch.autocast(device, dtype, enabled=enabled, cache_enabled=False))
            made = self._repeat(stack, args, kwargs) if self._begun else self._begin(args, kwargs)
        return tuple(tensors_in(made))

    def _first_held(self) -> Results:
        self.hold = False
        inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in self.inputs]
        with torch.enable_grad():
            arguments = [*inputs, *self.parameters]
            self.held = arguments, self(arguments)
        return tuple(None if result is None else result.detach() for result in self.held[1])

    def results(self, tensors: Results) -> Any:
        """What the call returned, with these tensors in the places of its own."""
        given = iter(tensors)
        return tree_map(lambda _: next(given), self._results)

    def _begin(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        versions, drawn, state = [version_of(t) for t in self.inputs], random_states(), RandomState.take()
        made = self._forward(*args, **kwargs)
        if versions != [version_of(t) for t in self.inputs]:
            raise NotPure("it changes its input in place")
        if random_states() != drawn:
            self._random = state
        self._begun = True
        self._results = tree_map(lambda _: PLACE, made, _constant)
        return made

    def _repeat(self, stack: ExitStack, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        active: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        for mode in self._modes:
            if not any(mode is other for other in active):
                stack.enter_context(mode)
        if self._random is not None:
            stack.callback(RandomState.take().put_back)
            self._random.put_back()
        return self._forward(*args, **kwargs)


def _constant(value: Any) -> Any:
    if isinstance(value, CONSTANTS):
        return value
    raise NotPure(f"it returns a {type(value).__name__}")


def _without_cache(value: Any) -> Any:
    """None for a cache of keys and values (transformers), which calls write into for the generation of text."""
    caches = sys.modules.get("transformers.cache_utils")
    return None if caches is not None and isinstance(value, caches.Cache) else value
