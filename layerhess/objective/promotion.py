"""A copy of a model in a finer dtype, when the model's own code makes tensors in, or casts to, the dtype it had."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from layerhess.objective.containers import tensors, tree_map

MISMATCH = re.compile("dtype|scalar type|should be the same")  # in what torch says of operands of different dtypes
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def promote(model: nn.Module, before: torch.dtype) -> None:
    """Let the forward pass of a copy that was cast from ``before`` run in its own dtype throughout.

    Inside it, casts and constants in a dtype at least as fine as ``before`` (``x.float()``, ``torch.zeros(n)``,
    ``dtype=torch.float32``) are in the copy's, and where operands of different dtypes are refused, those that the copy
    did not reach are cast. Coarser casts, a rounding that the network is meant to have, stay. Without this the copy
    fails, or has the rounding of ``before``. Copies of the copy keep it. Left as they are: scripted models, and those
    whose instance has a ``forward`` of its own.
    """
    if isinstance(model, torch.jit.ScriptModule) or "forward" in vars(model):
        return
    plain = type(model).forward

    @functools.wraps(plain)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        dtype = next((p.dtype for p in self.parameters() if p.dtype in FLOATS), before)
        with _promoted(before, dtype):
            return plain(self, *args, **kwargs)

    model.forward = types.MethodType(forward, model)


@contextmanager
def _promoted(before: torch.dtype, dtype: torch.dtype) -> Iterator[None]:
    if not torch.finfo(dtype).eps < torch.finfo(before).eps:
        yield
        return
    default = torch.get_default_dtype()
    with _Promotion(before, dtype):
        if default == before:
            torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


class _Promotion(TorchFunctionMode):
    """Casts to what lies between ``before`` and ``dtype`` are casts to ``dtype``."""

    def __init__(self, before: torch.dtype, dtype: torch.dtype) -> None:
        super().__init__()
        finest, coarsest = torch.finfo(dtype).eps, torch.finfo(before).eps
        self._dtype = dtype
        self._lower = [other for other in FLOATS if torch.finfo(other).eps > finest]
        self._taken = [other for other in self._lower if torch.finfo(other).eps <= coarsest]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = tuple(self._dtype if self._is_taken(part) else part for part in args)
        kwargs = {name: self._dtype if self._is_taken(part) else part for name, part in (kwargs or {}).items()}
        if func is Tensor.float and torch.float32 in self._taken:
            func, args = Tensor.to, (*args, self._dtype)
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if self._in_place(func, kwargs) or not MISMATCH.search(str(error)):
                raise
            if not any(tensor.dtype in self._lower for tensor in tensors((args, kwargs))):
                raise
        return func(*tree_map(self._finer, args), **tree_map(self._finer, kwargs))

    def _is_taken(self, part: Any) -> bool:
        return isinstance(part, torch.dtype) and part in self._taken

    def _finer(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if tensor.dtype in self._lower else tensor

    @staticmethod
    def _in_place(func: Any, kwargs: dict[str, Any]) -> bool:
        name = getattr(func, "__name__", "")
        return "out" in kwargs or (name.endswith("_") and not name.endswith("__"))
