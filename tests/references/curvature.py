"""Whole-data dense Gauss-Newton and empirical Fisher matrices in float64, from the zoo's losses written out by hand.

Nothing here touches the library. A loss is ``totals(call, batch)``: with a ``call`` that records what the model returns
it gives the output, and with one that returns a given output the loss as a function of that. J is
``torch.autograd.functional.jacobian`` of the output with respect to the flat parameters, S
``torch.autograd.functional.hessian`` of the loss with respect to the output. The gradients of single items come from a
loop over items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import zoo
import zoo_losses
from references import dense


def output_of(call: Callable[..., Any], totals: zoo_losses.Totals, batch: Any) -> Tensor:
    """What the loss of a batch is computed from: the model's output, or its ``.logits``."""
    seen: list[Any] = []

    def recording(*args: Any, **kwargs: Any) -> Any:
        seen.append(call(*args, **kwargs))
        return seen[-1]

    totals(recording, batch)
    (result,) = seen
    return getattr(result, "logits", result)  # type: ignore[no-any-return]


def loss_of_output(output: Tensor, totals: zoo_losses.Totals, batch: Any) -> tuple[Tensor, float]:
    """(sum, count) of a batch whose output is given, as a plain tensor and as ``.logits``."""
    result = SimpleNamespace(logits=output) if isinstance(batch, Mapping) and "input_ids" in batch else output
    total, count = totals(lambda *args, **kwargs: result, batch)
    return total, float(count)


def split(batch: Any) -> Iterator[Any]:
    """The items of a batch along dimension 0."""
    if isinstance(batch, Tensor):
        yield from (batch[i : i + 1] for i in range(len(batch)))
    elif isinstance(batch, Mapping):
        for parts in zip(*(split(value) for value in batch.values()), strict=True):
            yield dict(zip(batch, parts, strict=True))
    else:
        yield from zip(*(split(value) for value in batch), strict=True)


def terms_alone(batch: Any) -> Iterator[Any]:
    """The batch once for every target that takes part, all other targets ignored."""
    target = batch["labels"] if isinstance(batch, Mapping) else batch[1]
    for place in (target != zoo_losses.IGNORED).nonzero():
        alone = torch.full_like(target, zoo_losses.IGNORED)
        alone[tuple(place)] = target[tuple(place)]
        yield {**batch, "labels": alone} if isinstance(batch, Mapping) else (batch[0], alone)


def _caller(model: nn.Module, flat: Tensor) -> Callable[..., Any]:
    replaced: dict[str, Tensor] = {}
    start = 0
    for name, parameter in dense.trainable(model).items():
        replaced[name] = flat[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    state = replaced | {name: buffer.clone() for name, buffer in model.named_buffers()}
    return lambda *args, **kwargs: torch.func.functional_call(model, state, args, kwargs)


def _reference(model: nn.Module, matrix: Tensor) -> dense.Reference:
    places, start = {}, 0
    for name, parameter in dense.trainable(model).items():
        places[name] = np.arange(start, start + parameter.numel())
        start += parameter.numel()
    symmetric = ((matrix + matrix.T) / 2).numpy()
    norm = float(np.abs(np.linalg.eigvalsh(symmetric)).max())
    asymmetry = float(np.linalg.norm((matrix - matrix.T).numpy()))
    assert asymmetry <= 1e-12 * norm
    return dense.Reference(symmetric, places, norm, asymmetry + len(symmetric) * np.finfo(float).eps * norm)


def gauss_newton(model: nn.Module, batches: list[Any], totals: zoo_losses.Totals) -> dense.Reference:
    """(1 / count) sum over batches of J' S J, every factor formed in full."""
    at = dense.flat_parameters(model)
    total, count = torch.zeros(len(at), len(at), dtype=at.dtype), 0.0
    with sdpa_kernel(SDPBackend.MATH):
        for batch in batches:
            output = output_of(model, totals, batch).detach()
            jacobian = torch.autograd.functional.jacobian(
                lambda flat, batch=batch: output_of(_caller(model, flat), totals, batch).reshape(-1), at
            )
            curvature = torch.autograd.functional.hessian(
                lambda z, batch=batch, shape=output.shape: loss_of_output(z.view(shape), totals, batch)[0],
                output.reshape(-1),
            )
            total += jacobian.T @ curvature @ jacobian
            count += loss_of_output(output, totals, batch)[1]
    return _reference(model, total / count)


def empirical_fisher(
    model: nn.Module,
    batches: list[Any],
    totals: zoo_losses.Totals,
    items: Callable[[Any], Iterator[Any]] = split,
) -> dense.Reference:
    """(1 / count) sum of g g', one backward pass for each of the ``items`` of each batch."""
    at = dense.flat_parameters(model).requires_grad_(True)
    total, count = torch.zeros(len(at), len(at), dtype=at.dtype), 0.0
    with sdpa_kernel(SDPBackend.MATH):
        for batch in batches:
            for item in items(batch):
                loss, _ = totals(_caller(model, at), item)
                (gradient,) = torch.autograd.grad(loss, at)
                total += torch.outer(gradient, gradient)
            with torch.no_grad():
                count += float(totals(model, batch)[1])
    return _reference(model, total / count)


@cache
def of_case(name: str, operator: str) -> dense.Reference:
    """The reference of a zoo case under the operator's name, computed once per process."""
    case = zoo.BY_NAME[name]
    built = case.build(torch.float64, 0)
    if built.kwargs.get("mode") == "eval":
        built.model.eval()
    batches = zoo.batches_of(built.data)
    if operator == "gauss_newton":
        return gauss_newton(built.model, batches, case.totals)
    items = terms_alone if operator.endswith(":token") else split
    return empirical_fisher(built.model, batches, case.totals, items)


def with_output(case: zoo.Case, built: zoo.Built) -> zoo.Built:
    """The case with ``batch_loss(loss, output=forward)`` where its loss goes from model to loss in one step."""
    import layerhess as lh

    if not isinstance(built.loss, lh.batch_loss):
        return built
    loss = lh.batch_loss(
        lambda output, batch: loss_of_output(output, case.totals, batch),
        output=lambda model, batch: output_of(model, case.totals, batch),
    )
    return built._replace(loss=loss)
