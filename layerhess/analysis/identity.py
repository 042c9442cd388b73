"""What makes two runs the same: model, data, question, seed and versions, as JSON types that can be compared."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from layerhess.checks.findings import SelfCheck
from layerhess.checks.survey import Survey
from layerhess.curvature.record_file import digest_of
from layerhess.curvature.same_data import loss_tolerance
from layerhess.objective.batches import leading_size
from layerhess.objective.blocks import Partition
from layerhess.objective.containers import tensors
from layerhess.objective.example_digests import by_example
from layerhess.objective.group import ALONE, Group
from layerhess.objective.objective import Objective

IDENTITY = "identity"  # among a result's settings
LIMITS = ("out", "max_passes", "time_limit")  # how far a run goes, and where its result goes: no number depends on it
DIGESTS = {  # the parts of which only a digest is kept
    "structure": "the model's parameters are others (names, shapes, dtypes, or which are frozen)",
    "values": "the model's weights have other values",
    "buffers": "the model's buffers have other values",
    "modules": "the model's modules, or which of them are in train mode, are others",
    "partition": "the blocks hold other parameters",
    "content": "the examples are others",
    "loss_sum": "the loss is another",
}
DERIVATIVE = "derivative"  # in a journal: a product on the sample
APART = {torch.float64: 1e-6, torch.float32: 1e-2}  # of a tensor's part: more than rounding and a kink that is crossed
APART_AT_ALL = 0.3  # in half precision, and by differences
NOISE = 1e3  # roundoffs of the whole product, in a part
LAST_DIGITS = ("processes", "threads", "instructions")  # another machine's own: a run may go on with others


class Content:
    """A digest of all examples of the data, whatever their order and however they are split into batches."""

    def __init__(self) -> None:
        self._sum = 0

    def see(self, batch: Any) -> None:
        """Add a batch."""
        if not leading_size(batch):
            self._sum += int(digest_of(tensors(batch)), 16)
            return
        self._sum += int(by_example(batch).sum(dtype=np.uint64))

    def with_others(self, group: Group) -> str:
        """That of all ranks' data together, in hexadecimal."""
        return f"{sum(group.gathered(self._sum)) % (1 << 64):016x}"  # sums of batches wrap around there


def versions() -> dict[str, str]:
    """Package -> version, for the result."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("layerhess", "numpy", "scipy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def of_call(
    objective: Objective, divided: Partition, settings: Mapping[str, Any], versions: Mapping[str, str]
) -> dict[str, Any]:
    """What is known without the data (in session)."""
    question = {key: value for key, value in settings.items() if key not in (*LIMITS, "device")}
    members = [(block.name, block.parameters) for block in divided.blocks]
    return _plain(
        {
            "model": _of_model(objective.model),
            "question": {**question, "partition": digest_of([members])},
            "versions": dict(versions),
            "machine": machine(objective),
        }
    )


def machine(objective: Objective) -> dict[str, Any]:
    """What the last digits of numbers depend on, and the shares of the data."""
    device = objective.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": objective.group.size,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def of_data(surveyed: Survey, content: str) -> dict[str, Any]:
    """What the survey saw. ``content``: see :class:`Content`."""
    return _plain(
        {
            "examples": surveyed.examples,
            "batches": surveyed.batches,
            "count": surveyed.count,
            "content": content,
            "loss_sum": surveyed.loss_sum,
        }
    )


def of_derivative(samples: Sequence[Any], checked: SelfCheck) -> dict[str, Any]:
    """By which the derivative is known again where the sample is the same: the loss does not show what is detached."""
    seen = Content()
    for sample in samples:
        seen.see(sample)
    coarsest = checked.trace.coarsest
    return _plain(
        {
            "sample": seen.with_others(ALONE),
            "apart": APART_AT_ALL if checked.differences is not None else APART.get(coarsest, APART_AT_ALL),
            "eps": float(torch.finfo(coarsest).eps),
            "product": checked.product,
        }
    )


def other_derivative(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, where the derivatives differ of two runs whose losses are the same; "" if they do not.

    Other processes, or a loader that shuffles, may have another sample: then nothing is known.
    """
    if then.get("sample") != now["sample"]:
        return ""
    norms = [norm for norm, *_ in now["product"].values()]
    rounding = NOISE * now["eps"] * math.hypot(*filter(math.isfinite, norms))
    for name, (norm, *own) in now["product"].items():
        norm_then, *others = then["product"][name]
        if not (math.isfinite(norm) or math.isfinite(norm_then)):
            continue
        level = now["apart"] * max(norm, norm_then) + rounding
        if not all(abs(a - b) <= level for a, b in zip([norm, *own], [norm_then, *others], strict=True)):
            return f"the loss is the same, and its derivative with respect to {name!r} is another"
    return ""


def difference(then: Mapping[str, Any], now: Mapping[str, Any], dtype: torch.dtype) -> str:
    """In words, the first thing in which two identities differ so that one run is not the other; "" if they do not.

    Processes, threads and the CPU may be others. Other processes have other batches.

    Args:
        then, now: of the earlier and of this run. dtype: of the model.
    """
    same_shares = then.get("machine", {}).get("processes") == now.get("machine", {}).get("processes")
    ignored = (*LAST_DIGITS, *(() if same_shares else ("batches",)))
    for part, own in now.items():
        earlier = then.get(part, {})
        for key in {**earlier, **own}:
            if key in ignored:
                continue
            was, is_now = earlier.get(key), own.get(key)
            if key == "loss_sum" and was is not None:  # of a loader that shuffles, in another order
                same = abs(was - is_now) <= loss_tolerance(dtype) * max(abs(was), abs(is_now))
            else:
                same = was == is_now
            if not same:
                return DIGESTS.get(key, f"{key} was {was!r} and is {is_now!r}")
    return ""


def _of_model(model: nn.Module) -> dict[str, Any]:
    parameters = list(model.named_parameters(remove_duplicate=False))
    structure = [(n, tuple(p.shape), str(p.dtype), p.requires_grad) for n, p in parameters]
    modules = [(name, type(module).__qualname__, module.training) for name, module in model.named_modules()]
    return {
        "name": type(model).__name__,
        "structure": digest_of([structure]),
        "values": digest_of(part for pair in model.named_parameters() for part in pair),
        "buffers": digest_of(part for pair in model.named_buffers() for part in pair),
        "modules": digest_of([modules]),
    }


def _plain(identity: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(identity, default=str))
    return found
