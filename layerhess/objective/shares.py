"""What the ranks of a group must have alike, the model, and what they must not, the data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layerhess.errors import InputError
from layerhess.objective.batches import is_single, iterate
from layerhess.objective.containers import outline, tensors
from layerhess.objective.evaluation import Evaluation
from layerhess.objective.group import Group

MODEL, QUESTION = "their models", "what they ask"  # kinds of exchanges
PLAIN = (bool, int, float, str, tuple, type(None))
ONE_TOTAL = "the loss is one function of the whole data"


def counted_once(data: Any, group: Group) -> tuple[Any, str]:
    """Of ranks that were given the same data, each takes another part of the batches (in session).

    The ranks that together hold the weights of one layer (tensor parallelism) are given the same data. All of it is
    read once for this.

    Returns:
        This rank's part, and a note where it is not all of the given data.
    """
    digest = [_digest_of_batch(batch) for batch in iterate(data, arrays=True)]
    told = group.gathered(digest)
    same = [rank for rank, own in enumerate(told) if own == digest]
    if not digest or len(same) == 1:
        return data, ""
    note = "ranks with the same data (of tensor parallelism) share its batches out, so that each counts once"
    place, parts = same.index(group.rank), len(same)
    if is_single(data):
        return [] if place else data, note
    return data[place::parts] if isinstance(data, list) else _Part(data, place, parts), note


class _Part:
    """Every n-th batch of a re-iterable."""

    def __init__(self, data: Any, place: int, parts: int) -> None:
        self._data, self._place, self._parts = data, place, parts

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self._data), self._place, None, self._parts)


def _digest_of_batch(batch: Any) -> tuple[Any, ...]:
    return outline(batch), *map(_digest, tensors(batch))


def same_model(model: nn.Module, evaluation: Evaluation, group: Group) -> str:
    """Refuse models and losses that differ between ranks, and take rank 0's buffers where those do (in session).

    Running statistics of BatchNorm differ after a step under DistributedDataParallel. Of modules and losses of torch
    all settings are compared, of others the class and the mode: what their code does is seen in the self-check.

    Returns:
        A note where buffers differed, else "".

    Raises:
        InputError: naming the first parameter, module or setting that differs.
    """
    if group.size == 1:
        return ""
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    digests = {name: _digest(tensor) for name, tensor in (*parameters.items(), *buffers.items())}
    loss = getattr(getattr(evaluation, "criterion", None), "loss", None)
    about = {f"requires_grad of {name}": parameter.requires_grad for name, parameter in parameters.items()}
    about |= {
        "reduction='sum' of the loss": evaluation.is_sum,
        **_settings(model, "the model"),
        **_settings(loss, "the loss"),
    }
    every = group.gathered((digests, about), MODEL)
    told = [own for own, _ in every]
    for rank, own in enumerate(told):
        other = [n for n in {**told[0], **own} if n not in buffers and own.get(n) != told[0].get(n)]
        if other or own.keys() != told[0].keys():
            raise InputError(
                f"the ranks have different models: {', '.join(other[:1]) or 'buffers'} of rank {rank} and of rank 0",
                where=", ".join(other[:4]),
                what_to_do=f"give all ranks the same weights (the same seed, or one checkpoint): {ONE_TOTAL}",
            )
    _refuse_unlike(
        [own for _, own in every], "have different models or losses", "give all ranks the same model and loss"
    )
    differing = [name for name in buffers if any(own[name] != told[0][name] for own in told)]
    if not differing:
        return ""
    values = group.agreed({name: buffers[name].cpu() for name in differing})
    with torch.no_grad():
        for name in differing:
            buffers[name].copy_(values[name])
    return f"buffers differ between the ranks ({', '.join(differing[:4])}): those of rank 0 are used"


def _settings(function: Any, whole: str) -> dict[str, Any]:
    """What a module, or another function, and its parts are, in words."""
    found: dict[str, Any] = {}
    for name, module in function.named_modules() if isinstance(function, nn.Module) else ():
        place = f"{whole}, {name}" if name else whole
        found[f"the class of {place}"] = type(module).__qualname__
        found[f"training of {place}"] = module.training
        if type(module).__module__.startswith("torch."):
            plain = {k: v for k, v in vars(module).items() if not k.startswith("_") and isinstance(v, PLAIN)}
            found |= {f"{key} of {place}": value for key, value in plain.items()}
        if whole == "the loss":
            found |= {f"{key} of {place}": _digest(own.cpu()) for key, own in module.named_buffers(recurse=False)}
    return found


def same_question(asked: Mapping[str, Any], group: Group) -> None:
    """Refuse ranks that want different things, on all ranks together.

    Args:
        asked: name -> value; numbers may differ by rounding.

    Raises:
        InputError: naming the first that differs.
    """
    _refuse_unlike(
        group.gathered(dict(asked), QUESTION), "ask for different things", "call with the same arguments on all ranks"
    )


def _refuse_unlike(told: Sequence[Mapping[str, Any]], do: str, advice: str) -> None:
    for rank, own in enumerate(told):
        for name in {**told[0], **own}:
            here, there = told[0].get(name, "nothing"), own.get(name, "nothing")
            if not _alike(here, there):
                raise InputError(
                    f"the ranks {do}: {name} is {here} on rank 0 and {there} on rank {rank}",
                    where=name,
                    what_to_do=advice,
                )


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or abs(one - other) <= 1e-6 * max(abs(one), abs(other))
    return bool(one == other)


class OwnData:
    """Sums over this rank's data, in which ranks that were given the same examples are alike, in any order.

    Args:
        group: of one, nothing is looked at.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._sums: dict[int, list[float]] = {}

    def offer(self, batch: Any) -> None:
        """Take the next batch."""
        if self._group.size == 1:
            return
        for place, tensor in enumerate(tensors(batch)):
            if tensor.layout is torch.strided and not tensor.is_nested:
                values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
                exact = values.detach().double()
                own = [float(len(tensor)) if tensor.ndim else 1.0, float(exact.sum()), float(exact.square().sum())]
                known = self._sums.setdefault(place, [0.0, 0.0, 0.0])
                self._sums[place] = [a + b for a, b in zip(known, own, strict=True)]

    def refuse_same(self) -> None:
        """On all ranks together.

        Raises:
            InputError: two ranks were given the same data.
        """
        told = self._group.gathered(self._sums)
        for rank, own in enumerate(told):
            for other in range(rank):
                if own and own.keys() == told[other].keys() and all(_close(own[i], told[other][i]) for i in own):
                    raise InputError(
                        f"ranks {other} and {rank} were given the same data, which would count twice",
                        where=f"ranks {other} and {rank}",
                        what_to_do="give each rank its share, for example data[rank::ranks], or a loader with "
                        "torch's DistributedSampler",
                    )


def _close(one: list[float], other: list[float]) -> bool:
    return all(abs(a - b) <= 1e-9 * max(abs(a), abs(b)) for a, b in zip(one, other, strict=True))


def same_notes(notes: list[str], group: Group) -> Iterator[str]:
    """What any rank says of the objective and this one does not yet."""
    for own in group.gathered(notes):
        yield from (sentence for sentence in own if sentence not in notes)


def _digest(tensor: Tensor) -> tuple[Any, ...]:
    """Of a tensor's shape, dtype and bits; it is compared, on one device, with others of the same bits."""
    plain = tensor.detach()
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    bits = plain.contiguous().view(-1).view(torch.uint8)
    if bits.numel() % 4 == 0:
        bits = bits.view(torch.int32)
    odd = bits[1::2].sum(dtype=torch.int64) if bits.numel() > 1 else 0
    return tuple(tensor.shape), str(tensor.dtype), int(bits.sum(dtype=torch.int64)), int(odd)
