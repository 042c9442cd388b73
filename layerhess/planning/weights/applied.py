"""An option done to a weight: what comes out, or a sentence on why nothing can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from layerhess.errors import InputError
from layerhess.planning.weights import quantization, sparsity
from layerhess.results.options import Function, Option, Prune, Quantize

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class NotFiniteError(InputError):
    """An option leaves weights that are infinite or NaN."""


def fits(option: Option, shape: Sequence[int]) -> str:
    """Why an option cannot be done to a weight of this shape; "" if it can.

    >>> from layerhess.results.options import Prune, Quantize
    >>> fits(Quantize(4, "group:32"), (10, 48))
    'its 48 weights along dimension 1 are no multiple of the group of 32'
    >>> fits(Prune("2:4"), (10, 48))
    ''
    """
    if isinstance(option, Quantize):
        return quantization.why_not(option, shape)
    if isinstance(option, Prune):
        return sparsity.why_not(option, shape)
    return "" if option.function is not None else "a loaded plan knows the function's name, not what it does"


def changed(option: Option, weight: Tensor, where: str = "") -> Tensor:
    """The weight after the option: of the same shape, dtype and device, in memory of its own.

    Quantised weights are those that torchao gives back, see :func:`layerhess.planning.weights.quantization.codes`.

    Args:
        weight: in float16, bfloat16, float32 or float64; it stays as it is. where: its name, for error messages.

    Raises:
        InputError: the option does not fit the shape; weights that are integers, infinite or NaN; a function of the
            user's that raises, changes its argument, or returns something else than a finite tensor like the weight.

    >>> import torch
    >>> from layerhess.results.options import Prune
    >>> changed(Prune("2:4"), torch.tensor([[4.0, -3.0, 2.0, 1.0]]))
    tensor([[ 4., -3.,  0.,  0.]])
    """
    whole = weight.detach()
    _refuse_unusable(option, whole, where)
    with torch.no_grad():
        if isinstance(option, Quantize):
            after = quantization.quantized(option, whole)
        elif isinstance(option, Prune):
            after = sparsity.pruned(option, whole)
        else:
            after = _by_function(option, whole, where)
        if not torch.isfinite(after).all():
            raise NotFiniteError(
                f"the option {option.name!r} leaves weights that are infinite or NaN",
                where=where,
                what_to_do="leave the option out, or use a dtype of a larger range",
            )
    return after


def _refuse_unusable(option: Option, weight: Tensor, where: str) -> None:
    if weight.dtype not in DTYPES:
        raise InputError(
            f"weights of dtype {str(weight.dtype).removeprefix('torch.')} cannot be made smaller",
            where=where,
            what_to_do="use a model with weights in float32, bfloat16, float16 or float64",
        )
    if reason := fits(option, weight.shape):
        raise InputError(
            f"the option {option.name!r} cannot be done: {reason}",
            where=where,
            what_to_do="choose another option for it"
            if not isinstance(option, Function)
            else "give the function: lh.load_plan(folder, functions=[function])",
        )
    if not torch.isfinite(weight).all():
        raise InputError(
            "the weights are infinite or NaN", where=where, what_to_do="load weights of a model that works"
        )


def _by_function(option: Function, weight: Tensor, where: str) -> Tensor:
    """What the user's function makes of a copy of the weight."""
    assert option.function is not None
    given = weight.clone()
    after: Any
    try:
        after = option.function(given)
    except Exception as error:
        raise InputError(
            f"the option {option.name!r} raised {type(error).__name__}: {error}",
            where=where,
            what_to_do="see the exception above; the function is called with the detached weight",
        ) from error
    if not torch.equal(given, weight):
        raise InputError(
            f"the option {option.name!r} changes its argument in place",
            where=where,
            what_to_do="return a new tensor, such as weight.clone() changed",
        )
    if not isinstance(after, Tensor):
        found = f"returned {type(after).__name__}"
    elif after.shape != weight.shape:
        found = f"returned the shape {tuple(after.shape)} for a weight of {tuple(weight.shape)}"
    elif (after.dtype, after.device) != (weight.dtype, weight.device):
        found = f"returned {after.dtype} on {after.device} for a weight of {weight.dtype} on {weight.device}"
    else:
        return after.detach().clone(memory_format=torch.contiguous_format)
    raise InputError(
        f"the option {option.name!r} {found}",
        where=where,
        what_to_do="return a tensor of the shape, dtype and device of the weight",
    )
