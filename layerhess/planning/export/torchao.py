"""For torchao: an ``FqnToConfig``, a configuration for each weight by its full name.

A weight is held exactly, bit by bit, as the plan measured it. That is possible for quantised weights of linear, 2-d
convolution and embedding layers, of up to 8 bits, with the "minmax" scale and a scale for each channel (linear,
embedding) or group. ``lh.apply_plan(backend="torchao")`` holds more than a configuration can say: "mse" scales, one
scale for a tensor, and convolutions with one for a channel.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from layerhess.planning.export.kept import as_text
from layerhess.planning.weights.held import DTYPES, LAYERS, MOST_BITS, config_by_name, config_for
from layerhess.planning.weights.torchao_library import torchao
from layerhess.results.options import Option, Quantize
from layerhess.results.plan import PlannedWeight, PlanRecord

KNOWN = {layer.__name__ for layer in LAYERS}
HELD = {str(dtype).removeprefix("torch.") for dtype in DTYPES}


def text(plan: PlanRecord) -> tuple[str, list[str]]:
    """The file's content, and a sentence for each weight that is not in it.

    Raises:
        InputError: torchao is missing.
    """
    content, left_out = content_of(plan)
    return as_text(content), left_out


def content_of(plan: PlanRecord) -> tuple[dict[str, Any], list[str]]:
    """What ``torchao.core.config.config_from_dict`` reads, and a sentence for each weight that is not in it."""
    library = torchao("plan.export('torchao')")
    configs, left_out = {}, []
    for weight in plan.weights:
        if weight.name not in plan.choice:
            continue
        config, reason = _config(library, plan.choice[weight.name], weight)
        if reason:
            left_out.append(f"{weight.name} ({plan.choice[weight.name].name}): {reason}")
        else:
            configs[weight.name] = config
    content: dict[str, Any] = library.config_to_dict(config_by_name(library, configs))
    return content, left_out


def _config(library: SimpleNamespace, option: Option, weight: PlannedWeight) -> tuple[Any, str]:
    """torchao's configuration for a weight, or why it has none."""
    if not isinstance(option, Quantize):
        return None, "torchao has no configuration that does this"
    if option.bits > MOST_BITS:
        return None, f"torchao's integers have at most {MOST_BITS} bits"
    if weight.dtype not in HELD:
        return None, f"torchao quantises no weights in {weight.dtype}"
    if weight.module not in {*KNOWN, ""} or not f".{weight.name}".endswith(".weight"):
        return None, f"torchao's tensors do not work in {weight.module or 'this layer'}"
    config = config_for(library, option, weight.shape)
    return config, "" if config is not None else "no configuration has scales like these; apply_plan can make them"
