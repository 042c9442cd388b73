"""Walks over the autograd graph behind a tensor, each node once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch


def walk(roots: Iterable[Any], before: Any = None) -> Iterator[Any]:
    """Every autograd node behind the given ones, themselves included (None is skipped).

    Args:
        before: a node at which the walk stops; it is not returned.
    """
    seen, todo = set(), list(roots)
    while todo:
        node = todo.pop()
        if node is None or node in seen or node is before:
            continue
        seen.add(node)
        yield node
        todo.extend(following for following, _ in node.next_functions)


def inputs_first(root: Any) -> list[Any]:
    """All nodes behind ``root``, itself last, each after everything it was made from; none behind a leaf (None)."""
    order: list[Any] = []
    seen: set[Any] = set()
    todo = [] if root is None else [(root, False)]
    while todo:
        node, ready = todo.pop()
        if ready:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            todo.append((node, True))
            todo.extend((following, False) for following, _ in node.next_functions if following is not None)
    return order


def coarsest_dtype(root: Any, dtype: torch.dtype) -> torch.dtype:
    """The floating dtype of the largest roundoff behind ``root``, ``dtype`` included."""
    return coarsest_of(walk([root]), dtype)


def coarsest_of(nodes: Iterable[Any], dtype: torch.dtype) -> torch.dtype:
    """The same, of some nodes. Leaves are not rounded: an input that was cast up is as exact as it was given."""
    for node in nodes:
        if node.name().endswith("AccumulateGrad"):
            continue
        made = getattr(node, "_input_metadata", ())
        if len(made) > 1 and "BackwardBackward" in node.name():
            made = [meta for meta in made if meta.shape]  # what was not asked for is described as a float32 number
        for meta in made:
            if meta.dtype.is_floating_point and torch.finfo(meta.dtype).eps > torch.finfo(dtype).eps:
                dtype = meta.dtype
    return dtype


def leaves(nodes: Iterable[Any]) -> set[int]:
    """Identities of the tensors that autograd would accumulate a gradient in at one of these nodes."""
    return {id(node.variable) for node in nodes if hasattr(node, "variable")}


def derivatives_wanted(ctx: Any) -> list[bool]:
    """Which derivatives the backward pass of a Function needs; where torch does not say, all that it may need.

    Args:
        ctx: of a Function whose tensors are its first arguments.
    """
    found = list(ctx.needs_input_grad)
    ask = getattr(torch._C, "_will_engine_execute_node", None)
    if ask is None:
        return found
    for i, (node, _) in enumerate(ctx.next_functions):
        if found[i] and node is not None:
            try:
                found[i] = ask(node)
            except RuntimeError:  # a leaf, which torch.autograd.grad was asked for; it answers False for the others
                continue
    return found
