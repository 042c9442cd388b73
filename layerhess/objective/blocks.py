"""Divides a model's parameters into blocks (by tensor, by module, by name pattern); a block's vectors are flat."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerhess.errors import InputError
from layerhess.linalg.described import Described, Description, called
from layerhess.linalg.numbers import count, counted

Scheme = str | Mapping[str, str | Sequence[str]] | Callable[[str, nn.Parameter], str | None]
ROOT = "(root)"
AT_ONCE = 1 << 20  # numbers: so many cost nothing, however few the model has
RESERVED = ("", "(full)", "(probe)", "(not in any block)")  # these have a special meaning in results


@dataclass(frozen=True, repr=False)
class Block(Described):
    """A named set of whole parameter tensors; its vectors are flat, in the order of ``parameters``.

    Attributes:
        name: shown to the user. parameters: names in model order. shapes: their shapes. numel: P_b.
    """

    name: str
    parameters: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    numel: int

    def _describe(self) -> Description:
        shapes = [" x ".join(map(str, shape)) or "scalar" for shape in self.shapes]
        first = ", ".join(f"{called(n)} ({s})" for n, s in zip(self.parameters[:3], shapes, strict=False))
        return Description(
            f"Block {called(self.name)} of {counted(self.numel, 'parameter')}",
            (first + (f" and {counted(len(shapes) - 3, 'more tensor')}" if len(shapes) > 3 else ""),),
            columns=("tensor", "shape", "numel"),
            rows=tuple(
                (called(name), shape, count(size.numel()))
                for name, shape, size in zip(self.parameters, shapes, self.shapes, strict=True)
            ),
        )

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """A flat (P_b,) vector as parameter-shaped views; of (s, P_b) rows (s, *shape) each."""
        parts = torch.split(flat, [shape.numel() for shape in self.shapes], dim=-1)
        rows = flat.shape[:-1]
        return {n: part.reshape(rows + s) for n, s, part in zip(self.parameters, self.shapes, parts, strict=True)}


@dataclass(frozen=True)
class Partition:
    """The blocks of a scheme, and the trainable parameters that none of them covers."""

    blocks: tuple[Block, ...]
    uncovered: tuple[str, ...]


def make_block(name: str, members: Mapping[str, Tensor]) -> Block:
    """The block of the given parameters."""
    shapes = tuple(p.shape for p in members.values())
    return Block(name, tuple(members), shapes, sum(s.numel() for s in shapes))


def is_large(numel: int) -> bool:
    """Whether vectors of that length are to be spared, at the price of some time."""
    return numel > AT_ONCE


def in_groups(blocks: Mapping[str, Block], most: int) -> list[dict[str, Block]]:
    """The blocks in their order, in groups that have at most ``most`` parameters, or :data:`AT_ONCE`; or one block."""
    groups: list[dict[str, Block]] = []
    room = 0
    for key, block in blocks.items():
        if not groups or block.numel > room:
            groups.append({})
            room = max(most, AT_ONCE)
        groups[-1][key] = block
        room -= block.numel
    return groups


def partition(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], frozen: Sequence[str], scheme: Scheme
) -> Partition:
    """Divide the trainable parameters into blocks.

    Args:
        model: for module paths and the other names of tied parameters.
        parameters: trainable parameters by first name, in ``named_parameters()`` order.
        frozen: names of the parameters left out.
        scheme: "parameter", "weight", "module", "depth:K", a mapping block name -> glob(s), or a callable
            (name, parameter) -> block name or None.

    Raises:
        InputError: unknown scheme; a pattern that matches nothing, or frozen parameters only; overlapping groups;
            no block at all.
    """
    if isinstance(scheme, str):
        namer = _named_scheme(scheme)
        owners = {name: namer(name, parameter) for name, parameter in parameters.items()}
    elif isinstance(scheme, Mapping):
        owners = _by_patterns(_aliases(model, parameters), frozen, scheme)
    elif callable(scheme):
        owners = {name: scheme(name, parameter) for name, parameter in parameters.items()}
        for name, owner in owners.items():
            if owner is not None and not isinstance(owner, str):
                raise InputError(
                    f"the blocks function returned {owner!r} for {name!r}",
                    where="blocks",
                    what_to_do="return a block name, or None to leave the parameter out",
                )
    else:
        raise InputError(f"blocks is {type(scheme).__name__}", where="blocks", what_to_do=_KNOWN)
    members: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in parameters.items():
        owner = owners.get(name)
        if owner in RESERVED:
            raise InputError(f"{owner!r} cannot name a block", where="blocks", what_to_do="choose another name")
        if owner is not None:
            members.setdefault(owner, {})[name] = parameter
    if not members:
        raise InputError(
            f"the scheme {scheme!r} puts no trainable parameter into any block"
            if isinstance(scheme, str)
            else "no trainable parameter is in any block",
            where="blocks",
            what_to_do="use blocks='parameter', or name parameters that exist: " + ", ".join(list(parameters)[:6]),
        )
    blocks = tuple(make_block(name, group) for name, group in members.items())
    return Partition(blocks, tuple(name for name in parameters if owners.get(name) is None))


_KNOWN = (
    "use 'parameter', 'weight', 'module', 'depth:K' (K = 1, 2, ...), a dict of block name -> glob, "
    "or a function (name, parameter) -> block name"
)


def _named_scheme(scheme: str) -> Callable[[str, nn.Parameter], str | None]:
    if scheme == "parameter":
        return lambda name, parameter: name
    if scheme == "weight":
        return lambda name, parameter: name if parameter.ndim >= 2 else None
    if scheme == "module":
        return lambda name, parameter: name.rpartition(".")[0] or ROOT
    head, _, tail = scheme.partition(":")
    if head == "depth" and tail.isdecimal() and int(tail) >= 1:
        depth = int(tail)
        return lambda name, parameter: ".".join(name.split(".")[:-1][:depth]) or ROOT
    raise InputError(f"unknown block scheme {scheme!r}", where="blocks", what_to_do=_KNOWN)


def _aliases(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, list[str]]:
    """First name -> all names of a (possibly tied) parameter."""
    first = {id(parameter): name for name, parameter in parameters.items()}
    names: dict[str, list[str]] = {name: [] for name in parameters}
    for alias, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            names[first[id(parameter)]].append(alias)
    return names


def _by_patterns(
    aliases: Mapping[str, list[str]], frozen: Sequence[str], scheme: Mapping[str, str | Sequence[str]]
) -> dict[str, str | None]:
    owners: dict[str, str | None] = {}
    for key, globs in scheme.items():
        block = str(key)
        for glob in [globs] if isinstance(globs, str) or not isinstance(globs, Iterable) else list(globs):
            if not isinstance(glob, str):
                raise InputError(f"a pattern of block {block!r} is {glob!r}", where="blocks", what_to_do=_KNOWN)
            hits = [name for name, names in aliases.items() if any(fnmatch.fnmatchcase(n, glob) for n in names)]
            if not hits:
                asleep = [name for name in frozen if fnmatch.fnmatchcase(name, glob)]
                raise InputError(
                    f"the pattern {glob!r} of block {block!r} matches "
                    + (f"frozen parameters only ({', '.join(asleep[:4])})" if asleep else "no parameter"),
                    where="blocks",
                    what_to_do="call requires_grad_(True) on them first"
                    if asleep
                    else "use names from model.named_parameters(), such as " + ", ".join(list(aliases)[:6]),
                )
            for name in hits:
                if owners.get(name) not in (None, block):
                    raise InputError(
                        f"the parameter {name!r} is in two blocks, {owners[name]!r} and {block!r}",
                        where="blocks",
                        what_to_do="make the patterns disjoint: a parameter belongs to one block at most",
                    )
                owners[name] = block
    return owners


def flatten(block: Block, parts: Mapping[str, Tensor]) -> Tensor:
    """Parameter-shaped tensors to one flat (P_b,) vector.

    Raises:
        InputError: missing or extra names, or a wrong shape.
    """
    if set(parts) != set(block.parameters):
        odd = sorted(set(parts) ^ set(block.parameters))[:4]
        raise InputError(
            f"the vector's names are not those of block {block.name!r}",
            where=", ".join(odd),
            what_to_do="give one tensor per parameter of the block",
        )
    for name, shape in zip(block.parameters, block.shapes, strict=True):
        if parts[name].shape != shape:
            raise InputError(
                f"the vector has shape {tuple(parts[name].shape)} for {name!r}, whose shape is {tuple(shape)}",
                where=name,
                what_to_do="give each parameter's own shape",
            )
    device = parts[block.parameters[0]].device
    return torch.cat([parts[name].reshape(-1).to(device) for name in block.parameters])


def check_flat(block: Block, vector: Tensor) -> Tensor:
    """The vector itself, if it is a flat (P_b,) tensor.

    Raises:
        InputError: otherwise.
    """
    if not isinstance(vector, Tensor) or vector.shape != (block.numel,):
        shape = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        raise InputError(
            f"the vector for block {block.name!r} is {shape}, not a flat tensor of shape ({block.numel},)",
            where=block.name,
            what_to_do="flatten it in named_parameters() order",
        )
    return vector
