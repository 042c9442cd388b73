"""Which modules of a network are its segments: its repeated blocks, or those that a user names."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from layerhess.errors import InputError

AUTO = "auto"
FEWEST_LAYERS = 4  # of a Sequential of plain layers, to be cut into runs of them
FEW = 6  # blocks; where there are fewer, and each consists of blocks, those are taken
MADE_OF = 0.75  # of a block's layers, that lie in its own blocks
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Segment:
    """A module whose calls keep their arguments only, or some successive layers of a Sequential.

    Attributes:
        owner: name of the module. layers: names of the Sequential's members; empty: the module as a whole.
    """

    owner: str
    layers: tuple[str, ...] = ()

    def __str__(self) -> str:
        """For sentences."""
        inside = f"{self.layers[0]} to {self.layers[-1]}" if len(self.layers) > 1 else "".join(self.layers)
        return " ".join(part for part in (self.owner, inside) if part) or "(root)"


def found_segments(model: nn.Module) -> tuple[Segment, ...]:
    """The repeated blocks of a network (of a transformer, of a ResNet), and runs of layers of a plain Sequential.

    >>> block = lambda: nn.TransformerEncoderLayer(8, 2)
    >>> [str(s) for s in found_segments(nn.Sequential(nn.Embedding(9, 8), block(), block(), nn.Linear(8, 9)))]
    ['1', '2']
    """
    return tuple(_blocks("", model))


def named_segments(model: nn.Module, asked: Any) -> tuple[Segment, ...]:
    """The modules of these names or globs, the outermost where one lies in another.

    Raises:
        InputError: not a list of names; a name that no module has; a module without a forward pass.
    """
    names = [asked] if isinstance(asked, str) else asked
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"segments is {asked!r}",
            where="segments",
            what_to_do=f"use {AUTO!r}, None, or a list of module names or globs, such as ['layers.*']",
        )
    modules = {name: module for name, module in model.named_modules() if name}
    chosen: list[str] = []
    for pattern in names:
        matching = [name for name in modules if fnmatch.fnmatchcase(name, pattern)]
        own = [name for name in matching if not isinstance(modules[name], (nn.ModuleList, nn.ModuleDict))]
        if not own:
            raise InputError(
                f"{pattern!r} is a list of modules, which is never called" if matching else f"no module {pattern!r}",
                where="segments",
                what_to_do=f"name its members: '{pattern}.*'" if matching else "use names of model.named_modules()",
            )
        chosen.extend(own)
    outer = [n for n in dict.fromkeys(chosen) if not any(n.startswith(other + ".") for other in chosen)]
    return tuple(Segment(name) for name in outer)


def is_plain(module: nn.Module) -> bool:
    """A Sequential that calls its members one after the other."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _blocks(name: str, module: nn.Module) -> Iterator[Segment]:
    members = list(_members(name, module))
    kinds = Counter(type(member) for _, member, _ in members if _is_composite(member))
    for place, member, is_listed in members:
        if kinds[type(member)] < 2:
            inner = list(_blocks(place, member))
            alone = is_listed and not inner and _is_composite(member)  # it may be called many times, as in ALBERT
            yield from [Segment(place)] if alone else inner
            continue
        inner = list(_blocks(place, member)) if kinds[type(member)] < FEW else []
        yield from inner if _is_made_of(member, place, inner) else [Segment(place)]
    if isinstance(module, _CONTAINERS):
        yield from _runs(name, module)
    else:
        for place, child in module.named_children():
            if isinstance(child, _CONTAINERS):
                yield from _runs(_joined(name, place), child)


def _members(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """The modules below, those in lists and Sequentials in their place; and whether they are members of a list."""
    for own, child in module.named_children():
        place = _joined(name, own)
        if isinstance(child, _CONTAINERS):
            yield from _members(place, child)
        else:
            yield place, child, isinstance(module, nn.ModuleList)


def _is_composite(module: nn.Module) -> bool:
    made_of_more = isinstance(module, nn.RNNBase) or next(module.children(), None) is not None
    return made_of_more and next(module.parameters(), None) is not None


def _is_made_of(block: nn.Module, name: str, inner: Sequence[Segment]) -> bool:
    layers = [place for place, module in block.named_modules(prefix=name) if next(module.children(), None) is None]
    owners = [segment.owner + "." for segment in inner if not segment.layers]
    held = sum(any(place.startswith(owner) for owner in owners) for place in layers)
    return bool(inner) and held >= MADE_OF * len(layers)


def _runs(name: str, module: nn.Module) -> Iterator[Segment]:
    """Runs of about the square root of the number of layers; a layer that works in place is not the first of one."""
    for own, child in module.named_children():
        if isinstance(child, _CONTAINERS):
            yield from _runs(_joined(name, own), child)
    layers = [(own, layer) for own, layer in module._modules.items() if layer is not None]
    if not is_plain(module) or len(layers) < FEWEST_LAYERS or any(_is_composite(layer) for _, layer in layers):
        return
    size = math.ceil(math.sqrt(len(layers)))
    run: list[str] = []
    for own, layer in layers:
        if len(run) >= size and not getattr(layer, "inplace", False):
            yield Segment(name, tuple(run))
            run = []
        run.append(own)
    yield Segment(name, tuple(run))


def _joined(name: str, own: str) -> str:
    return f"{name}.{own}" if name else own
