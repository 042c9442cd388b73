"""The trainable parameters of a model: which those are, their dtype, and copies of the model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from layerhess.errors import InputError


def trainable(model: nn.Module) -> tuple[dict[str, nn.Parameter], tuple[str, ...]]:
    """(trainable floating point parameters by first name, names of those left out).

    Raises:
        InputError: none is trainable; a complex, lazy, inference or meta parameter.
    """
    parameters: dict[str, nn.Parameter] = {}
    frozen = []
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InputError(
                f"the parameter {name!r} of a lazy module has no shape yet",
                where=name,
                what_to_do="run one batch through the model first",
            )
        if not parameter.requires_grad:
            frozen.append(name)
        elif parameter.is_complex():
            raise InputError(
                f"the trainable parameter {name!r} is complex; its Hessian is not defined here",
                where=name,
                what_to_do="freeze it with requires_grad_(False), or store real and imaginary parts",
            )
        elif parameter.is_inference():
            raise InputError(
                "the model was made inside torch.inference_mode, so autograd cannot use its parameters",
                where=name,
                what_to_do="build or load the model outside inference_mode",
            )
        elif _has_no_values(parameter):
            raise InputError(
                f"the parameter {name!r} is on the meta device",
                where=name,
                what_to_do="load its values; accelerate's device_map must not offload it to main memory or disk",
            )
        elif parameter.is_floating_point():
            parameters[name] = parameter
        else:
            frozen.append(name)
    if not parameters:
        raise InputError(
            "the model has no trainable parameters" + (f" ({len(frozen)} are frozen)" if frozen else ""),
            where=type(model).__name__,
            what_to_do="call requires_grad_(True) on those to analyse",
        )
    return parameters, tuple(frozen)


def _has_no_values(parameter: Tensor) -> bool:
    return parameter.device.type == "meta"


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of the model; what modules keep from earlier passes (activations) is copied without its graph."""
    kept = [tensor for module in model.modules() for tensor in _tensors_in(module.__dict__)]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf})


def _tensors_in(value: Any, depth: int = 4) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item, depth - 1)


def coarsest(dtypes: list[torch.dtype]) -> torch.dtype:
    """The dtype of the largest roundoff."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
