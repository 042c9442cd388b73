"""A plan handed on: written in the format of another library, and a sentence on all that it cannot say."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence

from layerhess.errors import InputError, LayerhessWarning
from layerhess.planning.export import gguf, nncf, torchao, transformers
from layerhess.planning.export.kept import file_at, write
from layerhess.results.plan import PlanRecord

SHOWN = 3  # sentences of a warning
FORMATS: dict[str, tuple[str, Callable[[PlanRecord], tuple[str, list[str]]]]] = {
    "torchao": ("torchao.json", torchao.text),
    "transformers": ("quantization_config.json", transformers.text),
    "gguf": ("tensor_types.txt", gguf.text),
    "nncf": ("nncf.json", nncf.text),
}


def export(plan: PlanRecord, kind: str, path: str | os.PathLike[str]) -> list[str]:
    """Write a plan for another library.

    Args:
        kind: "torchao": JSON of an ``FqnToConfig``, which ``torchao.core.config.config_from_dict`` reads.
            "transformers": JSON of a ``quantization_config``, which ``TorchAoConfig.from_dict`` reads.
            "gguf": lines "tensor=type" for ``llama-quantize --tensor-type-file``.
            "nncf": JSON with the calls of ``nncf.compress_weights`` that make the plan, and the weights of each.
        path: the file, or a folder it is put into as torchao.json, quantization_config.json, tensor_types.txt or
            nncf.json.

    Returns:
        A sentence for each weight of the plan that the format cannot express; it is not in the file, and stays as it
        is. They are warned of too. What a format says of each weight: the modules of this room.

    Raises:
        InputError: an unknown kind, a plan of which the format can express nothing, a library that is needed and
            missing (torchao for the first two, gguf for the third), a path that cannot be written.
    """
    if kind not in FORMATS:
        raise InputError(
            f"unknown format {kind!r}", where="plan.export", what_to_do=f"use {_alternatives(list(FORMATS))}"
        )
    name, made = FORMATS[kind]
    text, left_out = made(plan)
    if len(left_out) == len(plan.choice):
        raise InputError(
            f"nothing of this plan can be written for {kind}: {left_out[0] if left_out else 'it has no weights'}",
            where="plan.export",
            what_to_do="choose another format, or plan with options that it has",
            details=left_out,
        )
    write(file_at(path, name), text)
    if left_out:
        more = f"; and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
        warnings.warn(
            f"not in the {kind} file, and so not made smaller by it: " + "; ".join(left_out[:SHOWN]) + more,
            LayerhessWarning,
            stacklevel=3,  # the caller of plan.export
        )
    return left_out


def _alternatives(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:-1])) + f" or {names[-1]!r}"
