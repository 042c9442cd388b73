"""The survey and the self-check behind the operators: made once for an objective and its weights, shared by all."""

from __future__ import annotations

import warnings
import weakref
import zlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from layerhess.checks import SelfCheck, check_unsampled, self_check
from layerhess.checks.second_derivative import named_operations
from layerhess.checks.survey import Survey, survey
from layerhess.checks.suspects import refuse_failed
from layerhess.checks.symmetry import size_of_product
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass
from layerhess.curvature.device import budget
from layerhess.curvature.matrices import CurvatureMatrix
from layerhess.errors import LayerhessWarning
from layerhess.linalg.bounds import zero_level
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective
from layerhess.results.record import Check

SEED = 0  # of the checks' random vectors


@dataclass
class Verification:
    """What was found for an objective at one set of weights.

    Attributes:
        fingerprint: of the model, see :func:`fingerprint`.
        checked: (its graphs' maker, blocks, dtype) -> the self-check.
        failed: the failed checks of any of them, which refuse every product.
    """

    fingerprint: Hashable
    surveyed: Survey
    checked: dict[Hashable, SelfCheck] = field(default_factory=dict)
    failed: Mapping[str, Check] | None = None


_known: weakref.WeakKeyDictionary[Objective, Verification] = weakref.WeakKeyDictionary()


def verified(objective: Objective, matrix: CurvatureMatrix, blocks: Mapping[str, Block]) -> tuple[Survey, SelfCheck]:
    """The survey and the self-check of an objective's matrix, made now unless they are known for these weights.

    Args:
        blocks: to check, and the full model under "(full)".

    Raises:
        InputError, CheckError: as :func:`layerhess.analyze` would.
    """
    now = fingerprint(objective)
    known = _known.get(objective)
    if known is None or known.fingerprint != now:
        _known.pop(objective, None)
        with objective.session(), named_operations(objective):
            known = _known[objective] = Verification(now, survey(objective, Counters()))
    key = (matrix.make_graph, tuple((name, block.parameters) for name, block in blocks.items()), objective.dtype)
    if known.failed is None and key not in known.checked:
        with objective.session(), named_operations(objective):
            checked = known.checked[key] = _checked(objective, matrix, blocks, known.surveyed)
        if checked.failed:
            known.failed = checked.failed
        else:
            for sentence in checked.concerns:  # there is no result whose notes could say it
                warnings.warn(sentence, LayerhessWarning, stacklevel=5)
    if known.failed is not None:
        raise refuse_failed(known.failed)
    return known.surveyed, known.checked[key]


def _checked(objective: Objective, matrix: CurvatureMatrix, blocks: Mapping[str, Block], surveyed: Survey) -> SelfCheck:
    """The self-check (in session); blocks that vanish on its sample are looked at on all data."""
    counters = Counters()
    memory = budget(objective.devices, group=objective.group)
    found = self_check(objective, surveyed, blocks, blocks[FULL], SEED, counters, matrix, memory)
    if found.zero_suspects and not found.failed:
        data_pass = DataPass(objective, list(blocks[FULL].parameters), counters, make_graph=matrix.make_graph)
        full_norm = size_of_product(data_pass, blocks[FULL], SEED)
        level = zero_level(torch.finfo(found.trace.coarsest).eps, full_norm)
        awake = {
            name: block for name, block in blocks.items()  # in one order on all ranks
            if name in found.zero_suspects and name != FULL and size_of_product(data_pass, block, SEED) > level
        }  # fmt: skip
        if awake:
            check_unsampled(objective, data_pass, awake, full_norm, SEED, found)
    return found


def fingerprint(objective: Objective) -> Hashable:
    """Of the model: its modules, their modes, values of parameters and buffers, requires_grad.

    Values escape torch's version counters.
    """
    model = objective.model
    tensors = (*model.named_parameters(), *model.named_buffers())
    with objective.whole_weights():
        values = tuple((name, tensor.requires_grad, _digest(tensor)) for name, tensor in tensors)
    return values, tuple((id(module), type(module), module.training) for module in model.modules())


def _digest(tensor: Tensor) -> Hashable:
    with torch.no_grad():
        plain = tensor.detach()
        if plain.layout is not torch.strided:
            plain = plain.to_dense()
        bits = plain.cpu().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8).numpy()
    return tuple(tensor.shape), str(tensor.dtype), zlib.crc32(bits.tobytes())
