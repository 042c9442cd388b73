"""Counts the bytes of the tensors that are alive at a time, on any device, whatever the allocator keeps."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from layerhess.objective.containers import tensors


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside this context, the bytes of all storages that were made in it and are still held by a tensor.

    Each storage counts once, whichever way autograd, caches or variables hold it. What kernels need for themselves is
    not seen.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """``known``: tensors that were there before, such as weights, which do not count."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tensors(made):
            self._add(tensor)
        return made

    def _add(self, tensor: Tensor) -> None:
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse, and inside transforms of torch.func
            return
        place = storage._cdata
        if place in self._known or place in self._sizes:
            return
        self._sizes[place] = storage.nbytes()
        self.now += self._sizes[place]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, place)

    def _drop(self, place: int) -> None:
        self.now -= self._sizes.pop(place, 0)
