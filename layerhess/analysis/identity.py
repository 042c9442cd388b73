"""What makes two runs the same: model, data, question, seed and versions, as JSON types that can be compared."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from layerhess.checks.findings import SelfCheck
from layerhess.checks.known_again import APART, APART_AT_ALL, FewExamples, Summary
from layerhess.checks.survey import Survey
from layerhess.curvature.record_file import digest_of
from layerhess.curvature.same_data import loss_tolerance
from layerhess.objective.batches import leading_size
from layerhess.objective.blocks import Partition
from layerhess.objective.containers import tensors
from layerhess.objective.example_digests import by_example
from layerhess.objective.group import Group
from layerhess.objective.objective import Objective

IDENTITY = "identity"  # among a result's settings
# How far a run goes, where its result goes, and what it is held against: no number depends on it.
LIMITS = ("out", "max_passes", "time_limit", "learning_rate")
DIGESTS = {  # the parts of which only a digest is kept
    "structure": "the model's parameters are others (names, shapes, dtypes, or which are frozen)",
    "values": "the model's weights have other values",
    "buffers": "the model's buffers have other values",
    "modules": "the model's modules, or which of them are in train mode, are others",
    "partition": "the blocks hold other parameters",
    "content": "the examples are others",
    "loss_sum": "the loss is another",
}
DERIVATIVE = "derivative"  # in a journal: products on a few examples
NOISE, NOISE_AT_MOST = 1e3, 0.1  # in a part, of the whole product: roundoffs, and how much of it in half precision
LAST_DIGITS = ("processes", "threads", "instructions")  # another machine's own: a run may go on with others


class Content:
    """A digest of all examples of the data, whatever their order and however they are split into batches.

    Attributes:
        few: of these examples.
    """

    def __init__(self) -> None:
        self._sum = 0
        self.few = FewExamples()

    def see(self, batch: Any) -> None:
        """Add a batch."""
        whole = not leading_size(batch)
        digests = np.array([int(digest_of(tensors(batch))[:16], 16)], np.uint64) if whole else by_example(batch)
        self._sum += int(digests.sum(dtype=np.uint64))
        self.few.offer(batch, digests)

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
    kinds = [torch.cuda.get_device_name(d) if d.type == "cuda" else d.type for d in objective.devices]
    return {
        "device": ", ".join(dict.fromkeys(kinds)),
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


def of_derivative(examples: str, checked: SelfCheck) -> dict[str, Any]:
    """By which the derivative is known again: the loss does not show what is detached.

    Args:
        examples: a digest of those that the products are on.
    """
    coarsest = checked.trace.coarsest
    return _plain(
        {
            "examples": examples,
            "apart": APART_AT_ALL if checked.differences is not None else APART.get(coarsest, APART_AT_ALL),
            "eps": float(torch.finfo(coarsest).eps),
            "products": checked.known_again,
        }
    )


def other_derivative(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, where the derivatives differ of two runs whose losses are the same; "" if they do not.

    They differ on both halves of the examples: on one of them rounding may have crossed a kink.
    """
    if then["examples"] != now["examples"] or len(then["products"]) != len(now["products"]):
        return ""
    pairs = zip(then["products"], now["products"], strict=True)
    apart = [_apart(*pair, now["apart"], min(NOISE * now["eps"], NOISE_AT_MOST)) for pair in pairs]
    name = next((name for name in (apart or [[]])[0] if all(name in own for own in apart)), "")
    return f"the loss is the same, and its derivative with respect to {name!r} is another" if name else ""


def _apart(then: Summary, now: Summary, share: float, noise: float) -> list[str]:
    """The tensors whose parts of two products differ by a share of them, and by noise of the whole product."""
    level = noise * math.hypot(*(norm for norm, *_ in now.values() if math.isfinite(norm)))
    found = []
    for name, own in now.items():
        most = share * max(own[0], then[name][0]) + level
        known = math.isfinite(own[0]) or math.isfinite(then[name][0])
        if known and not all(abs(a - b) <= most for a, b in zip(own, then[name], strict=True)):
            found.append(name)
    return found


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
