"""For NNCF: the calls of ``nncf.compress_weights`` that make the plan, one for each mode and size of groups.

NNCF 3 reads no file with the bits of each layer: it has calls with a mode and a scope that is left alone, one after
another. The file has them in a list: the weights that a call is for, its arguments (a mode by its name in
``nncf.CompressWeightsMode``), and the ``nncf.IgnoredScope`` that leaves all other weights alone. Bits and groups are
those of the plan; scales are chosen by NNCF's own rule and kept in float16, so the numbers are not quite those that
were measured.

Said can be: 4 bits with a scale for each channel or group, of linear and embedding layers; 8 bits with a scale for each
channel, of convolutions too. NNCF 3.4 has modes of 2 and 3 bits, which fail for models of torch.
"""

from __future__ import annotations

import re
from typing import Any

from layerhess.planning.export.kept import as_text
from layerhess.results.options import Option, Quantize
from layerhess.results.plan import PlannedWeight, PlanRecord

MODES = {
    (4, True): "int4_sym",
    (4, False): "int4_asym",
    (8, True): "int8_sym",
    (8, False): "int8_asym",
}
WHOLE = 8  # bits whose modes take no further arguments
MATRICES = ("Linear", "Embedding", "")
CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")


def text(plan: PlanRecord) -> tuple[str, list[str]]:
    """The file's content, and a sentence for each weight that is not in it."""
    calls: dict[tuple[tuple[str, Any], ...], list[str]] = {}
    left_out, untouched = [], []
    for weight in plan.weights:
        if weight.name not in plan.choice:
            continue
        option = plan.choice[weight.name]
        arguments, reason = arguments_for(option, weight)
        if reason:
            left_out.append(f"{weight.name} ({option.name}): {reason}")
            untouched.append(weight.name)
        else:
            calls.setdefault(tuple(arguments.items()), []).append(weight.name)
    content = {
        "library": "nncf",
        "function": "nncf.compress_weights",
        "calls": [
            {"weights": names, "arguments": dict(arguments), "ignored_scope": _all_but(names)}
            for arguments, names in calls.items()
        ],
        "untouched": untouched,
    }
    return as_text(content), left_out


def _all_but(names: list[str]) -> dict[str, Any]:
    """Arguments of an ``nncf.IgnoredScope`` of all weights but these.

    In NNCF's graph of a model a weight has the name of its parameter, and only names of operations have a slash. There
    may be nothing left to ignore: hence no validation.
    """
    kept = "|".join(re.escape(name) for name in names)
    return {"patterns": [f"^(?!(?:{kept})$)[^/]+$"], "validate": False}


def arguments_for(option: Option, weight: PlannedWeight) -> tuple[dict[str, Any], str]:
    """Arguments of the call that makes this weight, or why there is none."""
    if not isinstance(option, Quantize):
        return {}, "nncf.compress_weights has no mode that does this"
    mode = MODES.get((option.bits, option.symmetric))
    kind = "symmetric" if option.symmetric else "asymmetric"
    if mode is None:
        return {}, f"NNCF makes no {kind} weights of {option.bits} bits of a torch model"
    if option.granularity == "tensor":
        return {}, "NNCF has a scale for each channel or group"
    if option.scale != "minmax":
        return {}, "NNCF searches scales with data of its own"
    if weight.module not in MATRICES and not (weight.module in CONVOLUTIONS and option.bits == WHOLE):
        return {}, f"NNCF does not compress weights of {weight.module} to {option.bits} bits"
    if option.bits == WHOLE:
        return (
            ({"mode": mode}, "") if option.group_size is None else ({}, "NNCF's 8 bits have a scale for each channel")
        )
    return {"mode": mode, "ratio": 1.0, "all_layers": True, "group_size": option.group_size or -1}, ""
