"""Checks what is given as data, and moves, casts, slices and measures batches."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, SequentialSampler, TensorDataset

from layerhess.errors import InputError, add_note
from layerhess.objective.arrays import as_tensors, refuse_frame
from layerhess.objective.containers import bytes_of, movable, obstacle, outline, rows, tensors, tree_map
from layerhess.objective.group import world
from layerhess.objective.loaders import order_of

BOTH_SPELLINGS = (
    "pass (x, y) for one batch of inputs and targets, or [(x1, y1), (x2, y2), ...] for a sequence of batches"
)
HELD = 1 << 28  # bytes of batches that wait for others to be joined with
_END = object()


def check_data(data: Any, *, any_batch: bool) -> None:
    """Refuse data that cannot be read twice or whose meaning is ambiguous; reads nothing.

    Args:
        data: one batch (tuple, mapping) or a re-iterable of batches.
        any_batch: True when the loss is a ``batch_loss``, which accepts batches of any form.

    Raises:
        InputError: with both spellings where the meaning is ambiguous.
    """
    if isinstance(data, (Tensor, np.ndarray)) and any_batch:
        return
    if isinstance(data, (Tensor, np.ndarray)):
        kind = "tensor" if isinstance(data, Tensor) else "array"
        raise InputError(f"the data is a bare {kind}, without targets", where="data", what_to_do=BOTH_SPELLINGS)
    if not any_batch:
        refuse_frame(data)
    if isinstance(data, (str, bytes)) or data is None:
        raise InputError(f"the data is {type(data).__name__}, not batches", where="data", what_to_do=BOTH_SPELLINGS)
    if is_mapping(data):
        if not len(data):
            raise InputError("the data is an empty mapping", where="data", what_to_do="give at least one example")
        return
    if isinstance(data, tuple):
        if not data:
            raise InputError("the data is an empty tuple", where="data", what_to_do=BOTH_SPELLINGS)
        return
    if isinstance(data, Dataset):
        hint = "torch.utils.data.DataLoader(dataset, batch_size=256)"
        raise InputError(
            f"the data is a {type(data).__name__}, which yields single examples, not batches",
            where="data",
            what_to_do=f"wrap it: {hint}",
        )
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise InputError(
            f"the data is {type(data).__name__}, which cannot be iterated", where="data", what_to_do=BOTH_SPELLINGS
        )
    # Only an iterator can be its own iterator; nothing else is iterated here (a loader would draw random numbers).
    if isinstance(data, Iterator) and iter(data) is data:
        raise InputError(
            "the data is a one-shot iterator (a generator): it would be empty at the second pass",
            where="data",
            what_to_do="pass a list of batches, a DataLoader, or an object whose __iter__ starts afresh",
        )
    if isinstance(data, list):
        if not data and world().size == 1:  # a rank of several may have no share
            raise InputError("the data is an empty list", where="data", what_to_do="give at least one batch")
        if data and not any_batch and all(isinstance(item, (Tensor, np.ndarray)) for item in data):
            kind = "tensors" if isinstance(data[0], Tensor) else "arrays"
            raise InputError(
                f"a list of {len(data)} bare {kind} is ambiguous: one batch, or {len(data)} batches without targets?",
                where="data",
                what_to_do=BOTH_SPELLINGS,
            )


def is_mapping(value: Any) -> bool:
    """True for mappings and for mapping-like batches such as ``BatchEncoding``."""
    return isinstance(value, Mapping) or (hasattr(value, "keys") and hasattr(value, "__getitem__"))


def is_single(data: Any) -> bool:
    """True when ``data`` is one batch rather than a sequence of batches."""
    return isinstance(data, (tuple, Tensor, np.ndarray)) or is_mapping(data)


def iterate(data: Any, *, arrays: bool = False) -> Iterator[Any]:
    """The batches of ``data``, in its order, unchanged. What reading one raises has a note that says which.

    Args:
        arrays: take NumPy arrays in them as tensors.
    """
    number = 0
    try:
        source = iter([data] if is_single(data) else data)
        while (batch := next(source, _END)) is not _END:
            yield as_tensors(batch) if arrays else batch
            number += 1
    except Exception as error:  # whatever the data, or a loader's worker, raises
        add_note(error, f"raised while batch {number} was read")
        raise


def is_shuffling(data: Any) -> bool:
    """True for a DataLoader that is known to draw a new order at every pass."""
    if not isinstance(data, DataLoader):
        return False
    return isinstance(order_of(data), RandomSampler)


def is_stable(data: Any) -> bool:
    """True when batch i is the same in every pass, so that some of the graphs may be kept."""
    if isinstance(data, DataLoader):
        order = order_of(data)
        fixed = isinstance(order, SequentialSampler) or (type(order) is DistributedSampler and not order.shuffle)
        return fixed and isinstance(data.dataset, TensorDataset)
    return not may_refill(data)


def may_refill(data: Any) -> bool:
    """Whether an iterable might reuse a batch's memory for the next batch; not if it holds all its batches."""
    return not (is_single(data) or isinstance(data, list))


def prepare(batch: Any, device: torch.device, refilled: bool = False) -> Any:
    """The batch on ``device``; tensors made inside ``inference_mode`` are cloned so that autograd may use them.

    Args:
        refilled: clone all tensors, since their memory may be reused; see :func:`may_refill`.
    """

    def one(tensor: Tensor) -> Tensor:
        moved = tensor.to(device)
        return moved.clone() if tensor.is_inference() or (refilled and moved is tensor) else moved

    def other(leaf: Any) -> Any:
        return tree_map(one, _moved(leaf, device)) if movable(leaf) else leaf  # graphs and other batch objects

    return tree_map(one, batch, other, own_to=True)


def _moved(leaf: Any, device: torch.device) -> Any:
    """An object moved by its own ``to``, which may change the object itself: so a copy is moved."""
    try:
        made = copy.copy(leaf)
        moved = made.to(device)
    except Exception:  # user code: it cannot be copied, or goes elsewhere than to devices
        return leaf
    return made if moved is None else moved


def cast(batch: Any, dtype: torch.dtype) -> Any:
    """The batch with its floating point tensors in ``dtype``, complex ones in its complex dtype."""

    def one(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(dtype.to_complex())
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def other(leaf: Any) -> Any:  # graphs and other batch objects that apply a function to all their tensors
        if not movable(leaf) or not callable(getattr(type(leaf), "apply", None)):
            return leaf
        try:
            made = copy.copy(leaf).apply(one)
        except Exception:  # user code: it applies something else
            return leaf
        return made if type(made) is type(leaf) else leaf

    return tree_map(one, batch, other)


def leading_size(batch: Any, sparse: bool = False) -> int | None:
    """Number of examples: the size of dimension 0 if all tensors agree on it, else None (cannot be split).

    A batch that holds anything but tensors, numbers and flags cannot be split either; see :func:`obstacle`.
    """
    sizes = set() if obstacle(batch, sparse) else {tensor.shape[0] for tensor in tensors(batch)}
    return sizes.pop() if len(sizes) == 1 else None


def uncut(batch: Any, sparse: bool = False) -> str:
    """Why a batch has no :func:`leading_size`, in words."""
    if found := obstacle(batch, sparse):
        return f"it holds {found}"
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors(batch)[:4])
    return f"its tensors have no common first dimension ({shapes})" if shapes else "it holds no tensors"


@torch.enable_grad()  # parts of an input that the loss differentiates by can be differentiated by as well
def take(batch: Any, index: slice | Tensor) -> Any:
    """The examples ``index`` of a batch along dimension 0."""
    return tree_map(lambda tensor: rows(tensor, index), batch)


def alone(batch: Any) -> Any:
    """The batch, copied where it is a part of more memory, such as all the data: so that its bytes can be counted."""

    def one(tensor: Tensor) -> Tensor:
        strided = tensor.layout == torch.strided and not tensor.is_nested
        part = strided and tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
        return tensor.detach().clone().requires_grad_(tensor.requires_grad) if part else tensor

    return tree_map(one, batch)


def halves(batch: Any) -> tuple[Any, Any] | None:
    """The batch in two unequal parts, or None if it cannot be split."""
    size = leading_size(batch)
    if size is None or size < 2:
        return None
    cut = max(1, size // 3)
    return take(batch, slice(0, cut)), take(batch, slice(cut, size))


def mixed(batch: Any) -> tuple[Any, ...]:
    """The batch in two parts of examples from all over it; empty if it cannot be split."""
    size = leading_size(batch)
    if size is None or size < 2:
        return ()
    order = torch.sin(4.1 * torch.arange(size)).argsort()
    cut = max(1, 2 * size // 5)
    return take(batch, order[:cut].sort().values), take(batch, order[cut:].sort().values)


def pieces(batch: Any, size: int | None) -> Iterator[Any]:
    """The batch in parts of at most ``size`` examples along dimension 0 (the batch itself when None).

    Here, where it is asked for, sparse tensors are cut too.

    Raises:
        InputError: the batch holds something without rows, or its tensors disagree on their number.
    """
    if size is None:
        yield batch
        return
    total = leading_size(batch, sparse=True)
    if total is None:
        raise InputError(
            f"batch_size={size} was asked for, and a batch cannot be cut: {uncut(batch, sparse=True)}",
            where="data",
            what_to_do="drop batch_size and give smaller batches yourself, or put the examples along dimension 0 of "
            "every tensor, with nothing else in a batch",
        )
    for start in range(0, total, size) if total else [0]:
        yield take(batch, slice(start, start + size))


def spread_slice(batch: Any, size: int) -> Any:
    """At most ``size`` examples spread evenly over the batch; the whole batch if it cannot be split."""
    total = leading_size(batch)
    if total is None or total <= size:
        return batch
    return take(batch, torch.arange(size) * total // size)


@torch.enable_grad()
def joined(pieces: Sequence[Any]) -> Any | None:
    """Parts of batches as one batch, along dimension 0; None where their tensors' shapes or other content differ."""
    first, rows = pieces[0], [tensors(piece) for piece in pieces]
    if any(leading_size(piece) is None for piece in pieces) or len({outline(piece) for piece in pieces}) > 1:
        return None
    columns = iter([torch.cat(column) for column in zip(*rows, strict=True)])
    return tree_map(lambda _: next(columns), first)


class Together(NamedTuple):
    """Which batches are joined: those of one :func:`kind`, up to so many examples."""

    examples: int
    kind: tuple[str, str]


def gathered(given: Iterable[Any], together: Together) -> Iterator[Any]:
    """The same examples in fewer batches: those of one :func:`kind` are :func:`joined` as they come.

    Larger batches, and those of other kinds, come as they are.
    """
    waiting: list[Any] = []
    examples = held = 0

    def whole() -> Any:
        return waiting[0] if len(waiting) == 1 else joined(waiting)

    for batch in given:
        own = leading_size(batch)
        if own is None or own >= together.examples or kind(batch) != together.kind:
            yield batch
            continue
        if waiting and (examples + own > together.examples or held + nbytes(batch) > HELD):
            yield whole()
            waiting, examples, held = [], 0, 0
        waiting.append(batch)
        examples, held = examples + own, held + nbytes(batch)
    if waiting:
        yield whole()


def kind(batch: Any) -> tuple[str, str]:
    """What batches have in common that may be joined: their outline, and a digest of what may be flags.

    Those are their :func:`shared_rows`; of a single example, inputs that are one number.
    """
    own = hashlib.sha256()
    for tensor, row in zip(_inputs(batch), shared_rows(batch), strict=True):
        flag = tensor if tensor.numel() == 1 else row
        own.update(b"apart" if flag is None else b"same" + bytes(bytes_of(flag)))
    return outline(batch), own.hexdigest()


def nbytes(batch: Any) -> int:
    """Bytes of all tensors of a batch, or of several."""
    return sum(tensor.nbytes for tensor in tensors(batch))


def shared_rows(batch: Any) -> list[Tensor | None]:
    """Of each input the row that all examples have, which a model may take for a flag; None where they differ.

    What a model does to a whole batch with such a flag (a penalty in some batches) it would do to all that is joined
    with it. A single example shares nothing.
    """
    return [
        tensor[0] if tensor.ndim and len(tensor) > 1 and bool((tensor == tensor[:1]).all()) else None
        for tensor in _inputs(batch)
    ]


def _inputs(batch: Any) -> list[Tensor]:
    """The tensors of a batch but its labels, or a target that is a tensor."""
    if is_mapping(batch):
        return tensors({key: batch[key] for key in batch if key != "labels"})
    paired = isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor)
    return tensors(batch[:1] if paired else batch)
