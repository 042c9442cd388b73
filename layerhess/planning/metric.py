"""A metric of the user's, such as the accuracy, of the model with changed weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerhess.curvature.totals import Totals, add_up
from layerhess.errors import InputError
from layerhess.objective import batches
from layerhess.objective.losses import CriterionLoss, batch_loss
from layerhess.objective.model_loss import ModelLoss
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import kept_values
from layerhess.planning.measuring.meter import Choice, ratio
from layerhess.planning.weights.applied import changed
from layerhess.results.plan import Score


@dataclass(frozen=True)
class Metric:
    """A function (output, target) -> a number for every example, or the mean over the batch; or model -> a number.

    Attributes:
        function: the user's. whole: it takes the model alone. name: to be shown.
    """

    function: Callable[..., Any]
    whole: bool
    name: str


def metric_of(value: Any) -> Metric | None:
    """The metric behind what the user gave.

    Raises:
        InputError: it cannot be called, or not with one or two arguments.
    """
    if value is None:
        return None
    if not callable(value) or isinstance(value, type):
        raise InputError(
            f"the metric is {value!r}" if not isinstance(value, type) else f"the metric is the class {value.__name__}",
            where="metric",
            what_to_do="give a function metric(output, target), or metric(model)",
        )
    name = str(getattr(value, "__name__", type(value).__name__))
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return Metric(value, False, name)
    for arguments, whole in (((None, None), False), ((None,), True)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return Metric(value, whole, name)
    raise InputError(
        f"the metric {name}{signature} cannot be called with an output and a target, nor with the model",
        where="metric",
        what_to_do="give a function metric(output, target), or metric(model)",
    )


def measured_metric(objective: Objective, metric: Metric, choices: Sequence[Choice]) -> tuple[list[Score], str]:
    """The metric with each of these choices, with its standard error over examples (or batches) (in session).

    Returns:
        The scores, NaN where it could not be computed, and a sentence that says why.
    """
    names = [name for name in objective.parameters if any(name in choice for choice in choices)]
    weights = {name: objective.parameters[name] for name in names}
    here = [weight.detach().clone() for weight in weights.values()]
    known = dict(zip(names, here, strict=True))
    failed = ""

    def put(choice: Choice) -> None:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(changed(choice[name], known[name], name) if name in choice else known[name])

    def attempted(call: Callable[[], Any]) -> tuple[Tensor, Tensor] | None:
        nonlocal failed
        try:
            return _numbers(call())
        except Exception as error:  # whatever a user's function raises: the plan is kept
            failed = failed or f"the metric {metric.name} raised {type(error).__name__}: {str(error)[:120]}"
            return None

    scores: list[Score] = []
    if metric.whole:
        for choice in choices:
            with kept_values(weights.values(), here), torch.no_grad():
                put(choice)
                found = attempted(lambda: metric.function(objective.model))
            scores.append(Score(math.nan) if found is None else Score(float(found[0].sum() / found[1].sum())))
    else:

        def share(batch: Any, totals: Totals) -> None:
            with kept_values(weights.values(), here), torch.no_grad():
                for number, choice in enumerate(choices):
                    put(choice)
                    output, target, size = _compared(objective, batch)
                    found = attempted(lambda o=output, t=target: metric.function(o, t))  # type: ignore[misc]
                    if found is None:
                        totals.append(("sum", number), torch.full((1,), math.nan, dtype=torch.float64))
                        totals.append(("count", number), torch.ones(1, dtype=torch.float64))
                        continue
                    sums, counts = found
                    weight = size if len(sums) == 1 and size else 1.0
                    totals.append(("sum", number), sums * weight)
                    totals.append(("count", number), counts * weight)

        totals = add_up(objective.batches(), share, group=objective.group)
        for number in range(len(choices)):
            sums, counts = (torch.cat(totals.listed((kind, number))).numpy() for kind in ("sum", "count"))
            scores.append(ratio(sums, counts) if bool(np.isfinite(sums).all()) else Score(math.nan))
    if not failed and any(not math.isfinite(score.value) for score in scores):
        failed = f"the metric {metric.name} is NaN or infinite for some plans"
    return scores, f"{failed}; the plan is kept" if failed else ""


def _numbers(value: Any) -> tuple[Tensor, Tensor]:
    """(n,) float64 values and ones."""
    if value is None or isinstance(value, (str, bytes)):
        raise TypeError(f"it returned {type(value).__name__}, and no number")
    found = torch.as_tensor(value).detach().double().reshape(-1).cpu()
    if not len(found):
        raise ValueError("it returned nothing")
    return found, torch.ones_like(found)


def _compared(objective: Objective, batch: Any) -> tuple[Any, Any, float]:
    """What a metric gets of a batch: output, target (or the batch), and the number of examples."""
    evaluation, model = objective.evaluation, objective.model
    size = float(batches.leading_size(batch) or 0)
    if isinstance(evaluation, CriterionLoss):
        return *evaluation.output_and_target(model, batch), size
    if isinstance(evaluation, batch_loss):
        return (model if evaluation.output is None else evaluation.output(model, batch)), batch, size
    if isinstance(evaluation, ModelLoss):
        result = evaluation.with_result(model, batch)[2]
        labels = batch.get("labels") if isinstance(batch, Mapping) or hasattr(batch, "get") else None
        return getattr(result, "logits", result), labels, size
    return model, batch, size
