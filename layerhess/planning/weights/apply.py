"""A plan done to a model: its weights are changed in place, all of them or none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from layerhess.errors import InputError
from layerhess.planning.weights import held
from layerhess.planning.weights.applicable import Target, targets
from layerhess.planning.weights.applied import changed
from layerhess.planning.weights.torchao_library import INSTALL, torchao
from layerhess.results.options import Quantize
from layerhess.results.plan import PlanRecord

BACKENDS = ("fake", "torchao")


def apply_plan(model: nn.Module, plan: PlanRecord, backend: str = "fake") -> list[str]:
    """Change the weights of a model as a plan says, in place.

    Args:
        model: the model the plan was made for, with the weights it was made with; wrappers (DistributedDataParallel,
            torch.compile) may be around it. A compiled one is compiled again by torch when it needs to be.
        plan: of :func:`layerhess.plan` or :func:`layerhess.load_plan`.
        backend: "fake" writes rounded and pruned numbers in the model's own dtype. "torchao" puts weights of up to 8
            bits of linear, convolution (2-d) and embedding layers into torchao's integer tensors, which give back
            bit-equal numbers; they can no longer be trained. All others are as with "fake".

    Returns:
        Names of the weights that torchao could not take; none for "fake".

    Raises:
        InputError: the plan is for another model, its weights are quantised already, or torchao is missing or does not
            load. CheckError: torchao stores other numbers. In both cases the model is as it was.
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}", where="backend", what_to_do="use 'fake' or 'torchao'")
    inside, found = targets(model, plan)
    library = torchao("lh.apply_plan(backend='torchao')") if backend == "torchao" else None
    taken = [t for t in found if library and held.can_hold(t.option, t.parameter, t.places)]
    written = [t for t in found if t not in taken]
    before = _Before(found)
    try:
        with torch.no_grad():
            if library is not None:
                _put_into(library, inside, taken)
            for target in written:
                _write(before, target)
    except BaseException:
        before.restore()
        raise
    return [target.name for target in written] if library is not None else []


class _Before:
    """What the model was: the weights' places, and the numbers of those that are overwritten."""

    def __init__(self, found: list[Target]) -> None:
        self._found = found
        self._numbers: list[tuple[nn.Parameter, Tensor]] = []
        self._shown = [(module, module.__dict__.get("extra_repr")) for target in found for module, _ in target.places]

    def keep(self, parameter: nn.Parameter) -> None:
        self._numbers.append((parameter, parameter.detach().clone()))

    def restore(self) -> None:
        for parameter, numbers in self._numbers:
            _copy(parameter, numbers)
        for target in self._found:
            for module, name in target.places:
                module._parameters[name] = target.parameter
        for module, shown in self._shown:
            module.__dict__.pop("extra_repr", None)
            if shown is not None:
                module.__dict__["extra_repr"] = shown


def _write(before: _Before, target: Target) -> None:
    after = changed(target.option, target.parameter, where=target.name)
    before.keep(target.parameter)
    _copy(target.parameter, after)


def _copy(parameter: nn.Parameter, numbers: Tensor) -> None:
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():
        parameter.copy_(numbers)


def _put_into(library: SimpleNamespace, model: nn.Module, taken: list[Target]) -> None:
    """Exchange weights for torchao's tensors, by its own ``quantize_`` where a configuration says what is planned."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    configs: dict[str, Any] = {}
    for target in taken:
        assert isinstance(target.option, Quantize)
        config = held.config_for(library, target.option, target.parameter.shape)
        if config is not None and target.parameter.is_contiguous():
            configs[names[id(target.parameter)]] = config
    if configs:
        try:
            library.quantize_(model, held.config_by_name(library, configs), filter_fn=None)
        except Exception as error:
            raise InputError(
                f"torchao {library.version} cannot make what was planned: {type(error).__name__}: {error}",
                where="lh.apply_plan(backend='torchao')",
                what_to_do=f"use backend='fake', or a newer version: {INSTALL} --upgrade",
            ) from error
    for target in taken:
        assert isinstance(target.option, Quantize)
        (module, name), *others = target.places
        now = module._parameters[name]
        if now is target.parameter:
            made = held.tensor(library, target.option, target.parameter.detach())
            now = module._parameters[name] = nn.Parameter(made, requires_grad=False)
        held.check(now, changed(target.option, target.parameter, where=target.name), target.name, library)
        for other, attribute in others:
            other._parameters[attribute] = now
