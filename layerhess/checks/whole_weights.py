"""Checks that a tensor parallel model with whole weights is the same function as the model that is sharded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from layerhess.errors import CheckError
from layerhess.objective.objective import Objective

DIGITS = 1e4  # units in the last place of a loss: the shards of a layer are added up in another order


def refuse_other_function(objective: Objective, samples: Sequence[Any], coarsest: torch.dtype) -> str:
    """Compare the loss of the sample with that of the user's own model, which all ranks run together (in session).

    What parallelize_module put around layers is left out with whole weights. Where code of the model knows of the
    shards (a number of heads divided by that of the ranks), it does not do the same then.

    Returns:
        A note where the sharded model does not run on the sample as it is; else "".

    Raises:
        CheckError: the losses differ.
    """
    for batch in samples:
        try:
            theirs = objective.original_loss(batch)
        except Exception as error:  # user code: it needs inputs of another kind, or a context
            said = (str(error) or type(error).__name__).splitlines()[0][:100]
            return (
                f"the tensor parallel model was not compared with the one of whole weights, for it does not run: {said}"
            )
        if theirs is None:
            return ""
        with torch.no_grad():
            ours = float(objective.terms(batch)[0])
        if not abs(ours - theirs) <= DIGITS * torch.finfo(coarsest).eps * max(abs(ours), abs(theirs)):
            raise CheckError(
                f"with whole weights the model has the loss {ours:.8g} on a sample, and sharded it has {theirs:.8g}",
                where=f"{type(objective.model).__name__} under tensor parallelism",
                what_to_do="analyse the model without parallelize_module; its code, or a hook, knows of the shards",
            )
    return ""
