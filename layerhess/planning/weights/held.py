"""Weights in torchao's tensors: which it can hold, how they are made, and whether they are what was planned."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from layerhess.errors import CheckError
from layerhess.planning.weights.quantization import block_of, codes
from layerhess.results.options import Option, Quantize

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MOST_BITS = 8
LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding)  # whose functions torchao's tensors know


def can_hold(option: Option, weight: Tensor, places: Sequence[tuple[nn.Module, str]]) -> bool:
    """Whether a torchao tensor can be this weight: of few enough bits, and only where layers it knows use it."""
    if not isinstance(option, Quantize) or option.bits > MOST_BITS or weight.dtype not in DTYPES:
        return False
    return all(name == "weight" and _is_known(module) for module, name in places)


def _is_known(module: nn.Module) -> bool:
    """Whether its forward hands the weight to a function that torchao's tensors know.

    Subclasses may do something else (the projection inside torch's attention is transposed there), and an embedding
    with ``max_norm`` writes into its weight.
    """
    return type(module) in LAYERS and "forward" not in module.__dict__ and getattr(module, "max_norm", None) is None


def config_for(library: SimpleNamespace, option: Quantize, shape: Sequence[int]) -> Any:
    """torchao's configuration that makes exactly this of such a weight; None if it has none.

    torchao's "channel" of a convolution is ours with a group over all input channels: each place of the kernel has a
    scale of its own. Blocks of one weight fail in torchao 0.18.
    """
    block = block_of(option, shape)
    if option.scale != "minmax" or option.bits > MOST_BITS or len(shape) not in (2, 4) or max(block) == 1:
        return None
    if block == (1, shape[1], *(1 for _ in shape[2:])):
        granularity = library.PerAxis(0)
    elif option.group_size is not None:
        granularity = library.PerGroup(option.group_size)
    else:
        return None
    mapping = library.MappingType.SYMMETRIC if option.symmetric else library.MappingType.ASYMMETRIC
    return library.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{option.bits}"), granularity=granularity, mapping_type=mapping
    )


def config_by_name(library: SimpleNamespace, configs: dict[str, Any]) -> Any:
    """One configuration for a model: weight name -> that of the weight."""
    return library.FqnToConfig(fqn_to_config=OrderedDict(configs))


def tensor(library: SimpleNamespace, option: Quantize, weight: Tensor) -> Tensor:
    """The torchao tensor with scales and zero points of ours, for what no configuration says."""
    ours = codes(option, weight)
    made: Tensor = library.IntxUnpackedToInt8Tensor.from_hp(
        weight.contiguous(),
        ours.block,
        getattr(torch, f"int{option.bits}"),
        intx_choose_qparams_algorithm=None,
        custom_scale=ours.scale,
        custom_zero_point=ours.zero.to(torch.int8),
    )
    return made


def check(held: Any, expected: Tensor, name: str, library: SimpleNamespace) -> None:
    """Refuse a torchao tensor that does not stand for the planned weight, bit by bit.

    Raises:
        CheckError: it does not.
    """
    found = held.dequantize()
    if found.dtype != expected.dtype or not torch.equal(found.view(torch.uint8), expected.view(torch.uint8)):
        raise CheckError(
            f"torchao {library.version} stores other weights than the plan measured",
            where=name,
            what_to_do="use backend='fake', or the version of torchao that layerhess is tested with (0.18)",
        )
