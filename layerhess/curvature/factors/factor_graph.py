"""Products of one batch with J' S J from each layer's inputs and output sensitivities, without running the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerhess.curvature.autograd_graph import leaves, walk
from layerhess.curvature.batch_graph import add_part
from layerhess.curvature.counters import Counters
from layerhess.curvature.device import storages
from layerhess.curvature.factors.layers import Entry
from layerhess.curvature.factors.linearity import not_linear
from layerhess.curvature.factors.output_hessian import (
    SAME_SUM,
    item_probe,
    item_weights,
    output_directions,
    same_by_item,
)
from layerhess.curvature.factors.recorder import LayerCall, Recorder
from layerhess.curvature.factors.sensitivities import sensitivities
from layerhess.curvature.factors.work import Work
from layerhess.objective.evaluation import Judged
from layerhess.objective.objective import Objective

MOST_AT_ONCE = 1 << 24  # numbers in the outputs of a layer for all vectors that are multiplied together

MOST_ROWS = 1 << 27  # numbers in the rows of one output direction, over all items, while their squares are summed


@dataclass(frozen=True)
class Layer:
    """One recorded call with its sensitivities.

    Attributes:
        sensitivities: (Q, N, D): the gradient of each item's Q output directions with respect to its D outputs y.
    """

    call: LayerCall
    sensitivities: Tensor


class FactorGraph:
    """One batch's J' S J as J' M sign(S) M' J, with M M' = |S| per item and the rows M' J kept layer by layer.

    The row of item n and direction q with respect to the weights of a layer y = f(a; w) is the derivative of <delta_nq,
    f(a_n; w)> in w, delta_nq = d (M' z)_nq / d y_n. So a product costs one evaluation of the layer at the vector, inner
    products with delta, their weighted sum, and one gradient of the layer's weights: all blocks together about what one
    gradient costs, and nothing of the network is run. To make: a forward pass and Q backward passes through activations
    only; for cross entropy of C classes Q = C - 1. (Dangel, Kunstner & Hennig 2020, for the square root of S; Martens
    2020, section 8.)

    Items are the entries of dimension 0 of the output. A loss or a network that makes items depend on each other, or a
    layer whose outputs are in another order, would give wrong products. So a direction is scaled item by item, and the
    sensitivities of every layer must scale in the same way; a layer where they do not is not used. Nor is a layer that
    the loss depends on other than through the output. A batch whose forward pass or loss differentiates the network has
    no factors: there weights act through a backward pass as well.

    Args:
        objective: in session. batch: prepared. blocks: key -> names of its parameters. counters: counts the passes.

    Attributes:
        factored: keys of the blocks all of whose uses were recorded. linear: those in whose parameters the output is
            piecewise linear, so that this is their block of the Hessian.
        loss_sum, count: of the batch. items: N, the length of the output.

    Raises:
        RuntimeError: no factors can be made of this batch.
    """

    def __init__(
        self, objective: Objective, batch: Any, blocks: Mapping[str, Sequence[str]], counters: Counters
    ) -> None:
        self._counters = counters
        self._parameters = objective.parameters
        recorder = Recorder({id(parameter): name for name, parameter in objective.parameters.items()})
        with recorder:
            judged = objective.evaluation.with_output(objective.model, batch)
        counters.count("forwards")
        if recorder.differentiated:
            raise RuntimeError("the forward pass or the loss itself differentiates the network")
        self._convex = judged.convex
        self.loss_sum, self.count = float(judged.loss.detach().double()), judged.count
        self.factored: frozenset[str] = frozenset()
        self.linear: frozenset[str] = frozenset()
        self._layers: list[Layer] = []
        self._slopes: list[tuple[LayerCall, Tensor]] = []
        self._found: dict[tuple[str, ...], list[Layer]] = {}
        output = judged.output
        self.items = len(output) if output.ndim else 0
        if not output.requires_grad or not output.ndim or not len(output):
            return
        usable = _usable(recorder.found, objective, judged)
        kept = {key: names for key, names in blocks.items() if usable.issuperset(names)}
        wanted = {name for names in kept.values() for name in names}
        recorded = [call for call in recorder.found if wanted.intersection(entry.name for entry in call.entries)]
        tied = self._open(judged, recorded) if recorded else set()
        kept = {key: names for key, names in kept.items() if not tied.intersection(names)}
        self.factored = frozenset(kept)
        self.linear = self.factored - _bent(output, recorder, kept)

    def product(self, names: Sequence[str], vector: Mapping[str, Tensor]) -> list[Tensor | None]:
        """The batch's share of (J' S J)[names, names] v for the parameters of a factored block, not divided."""
        made = self.products(names, {name: vector[name].unsqueeze(0) for name in names})
        return [None if part is None else part[0] for part in made]

    def products(self, names: Sequence[str], vectors: Mapping[str, Tensor]) -> list[Tensor | None]:
        """The same for s vectors, (s, *shape) each: sensitivities are read once for as many as fit in memory."""
        chunks = [self._some_products(names, part) for part in self._chunks(names, vectors)]
        return [None if parts[0] is None else torch.cat(parts) for parts in zip(*chunks, strict=True)]

    def forms(self, names: Sequence[str], vectors: Mapping[str, Tensor]) -> Tensor:
        """(N, s) float64: each item's own v' (J' S J)[names, names] v, for s vectors."""
        found = []
        for part in self._chunks(names, vectors):
            weights = self._weights(names, part)
            size = (self.items, len(part[names[0]]))
            squares = None if weights is None else weights.double().square() * self._signs.double().unsqueeze(1)
            found.append(torch.zeros(size, dtype=torch.float64) if squares is None else squares.sum(dim=2).cpu())
        return torch.cat(found, dim=1)

    def squares(self, names: Sequence[str]) -> tuple[list[Tensor], Tensor] | None:
        """The squared entries of the rows M' J, with the rows' signs: summed over rows, and over entries.

        Returns:
            The diagonal of (J' S J)[names, names], parameter-shaped; and the trace of each item's own matrix, (N,)
            float64. None where a layer cannot separate its items, or they would take too much memory.
        """
        entries = self._entries(names)
        if not entries or not self._apart(entries, names):
            return None
        made: dict[str, Tensor] = {}
        traces = torch.zeros(self.items, dtype=torch.float64, device=self._signs.device)
        for own, rows in self._by_direction(entries):
            for name, part in rows.items():
                signs = own.to(part)
                squared = part.square_()
                add_part(made, name, signs @ squared)
                traces += (signs * squared.sum(dim=1)).to(traces)
        nothing = {name: torch.zeros_like(self._parameters[name]) for name in names if name not in made}
        return [(made | nothing)[name].view(self._parameters[name].shape) for name in names], traces.cpu()

    def rows(self, names: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]] | None:
        """The rows M' J of a factored block, one output direction after the other, each for all items.

        Rows of sign 0 are zero and left out; they come from ignored targets. Negative rows are left out too if the loss
        is known to be convex in the output: they are rounding errors of S.

        Returns:
            Pairs of (m, P_b) rows, m <= N, in the order of ``names``, and their signs (m,); None as for
            :meth:`squares`.
        """
        entries = self._entries(names)
        return self._flat_rows(names, entries) if self._apart(entries, names) else None

    def _flat_rows(
        self, names: Sequence[str], entries: Sequence[tuple[Layer, Entry]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        sizes = {name: self._parameters[name].numel() for name in names}
        place = self._parameters[names[0]].device
        for signs, made in self._by_direction(entries):
            made, signs = {name: part.to(place) for name, part in made.items()}, signs.to(place)
            known = next(iter(made.values()))
            parts = [made[name] if name in made else known.new_zeros((self.items, sizes[name])) for name in names]
            kept = signs > 0.0 if self._convex else signs != 0.0
            rows = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            yield (rows, signs) if bool(kept.all()) else (rows[kept], signs[kept])

    def _entries(self, names: Sequence[str]) -> list[tuple[Layer, Entry]]:
        return [
            (layer, entry) for layer in self._layers_of(names) for entry in layer.call.entries if entry.name in names
        ]

    def _apart(self, entries: Sequence[tuple[Layer, Entry]], names: Sequence[str]) -> bool:
        """Whether every layer can separate its items, and the rows of one direction fit."""
        size = sum(self._parameters[name].numel() for name in names)
        return all(entry.each is not None for _, entry in entries) and self.items * size <= MOST_ROWS

    def _by_direction(self, entries: Sequence[tuple[Layer, Entry]]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """For each output direction its signs (N,), and the rows of all items by parameter, (N, size) each."""
        if not entries:
            return
        self._counters.count("products", self._signs.shape[1])
        pulls = [entry.each if entry.laid_out is None else entry.laid_out() for _, entry in entries]
        for q in range(self._signs.shape[1]):
            rows: dict[str, Tensor] = {}
            for (layer, entry), pull in zip(entries, pulls, strict=True):
                _refuse_overwritten(layer.call)
                assert pull is not None
                each = pull(layer.sensitivities[q].reshape(layer.call.shape))
                shared = len(each) // self.items
                # A copy even if there is one term only: what a pull returns may be a view of the sensitivities.
                fresh = shared == 1 and entry.laid_out is not None
                part = each.flatten(1) if fresh else each.reshape(self.items, shared, -1).sum(dim=1)
                add_part(rows, entry.name, part)
            yield self._signs[:, q], rows

    def work(self, names: Sequence[str]) -> Work:
        """How much work the products and rows of a factored block are."""
        entries, everything = self._entries(names), [(layer, e) for layer in self._layers for e in layer.call.entries]
        return Work(
            items=self.items,
            directions=self._signs.shape[1] if entries else 0,
            multiplications=sum(self._multiplications(*pair) for pair in entries),
            outputs=sum(layer.call.shape.numel() for layer in self._layers_of(names)),
            network=sum(self._multiplications(*pair) for pair in everything),
            entries=len(entries),
            has_rows=self._apart(entries, names),
        )

    def _multiplications(self, layer: Layer, entry: Entry) -> int:
        """Of one evaluation of a call's linear map: every number of the output takes one whole kernel."""
        weight, outputs = self._parameters[entry.name], layer.call.shape.numel()
        return outputs * (weight.numel() // len(weight)) if weight.ndim > 1 else outputs

    def _chunks(self, names: Sequence[str], vectors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        count = len(vectors[names[0]])
        largest = max((layer.call.shape.numel() for layer in self._layers_of(names)), default=1)
        step = max(1, min(count, MOST_AT_ONCE // largest))
        for start in range(0, count, step):
            yield {name: vectors[name][start : start + step] for name in names}

    def _weights(self, names: Sequence[str], vectors: Mapping[str, Tensor]) -> Tensor | None:
        """(N, s, Q): the inner products of the rows M' J with the vectors; None without a layer."""
        self._counters.count("products", len(vectors[names[0]]))
        weights: Tensor | None = None
        for layer in self._layers_of(names):
            _refuse_overwritten(layer.call)
            moved = sum_of(entry.pushed(vectors[entry.name]) for entry in layer.call.entries if entry.name in vectors)
            rows = torch.bmm(_by_item(moved, layer), layer.sensitivities.permute(1, 2, 0)).to(self._signs)
            weights = rows if weights is None else weights + rows
        return weights

    def _some_products(self, names: Sequence[str], vectors: Mapping[str, Tensor]) -> list[Tensor | None]:
        weights = self._weights(names, vectors)
        if weights is None:
            return [None] * len(names)
        weights = weights * self._signs.unsqueeze(1)
        made: dict[str, Tensor] = {}
        for layer in self._layers_of(names):
            rows = layer.sensitivities.transpose(0, 1)
            back = _by_call(torch.bmm(weights.to(rows), rows), layer)
            for entry in layer.call.entries:
                if entry.name in vectors:
                    add_part(made, entry.name, entry.pulled(back))
        return [made.get(name) for name in names]

    def _layers_of(self, names: Sequence[str]) -> list[Layer]:
        key = tuple(names)
        if key not in self._found:
            wanted = set(names)
            self._found[key] = [
                layer for layer in self._layers if wanted.intersection(entry.name for entry in layer.call.entries)
            ]
        return self._found[key]

    @property
    def nbytes(self) -> int:
        """Bytes of sensitivities and inputs; of an input that may be a part of all the data, its own."""
        own = storages([layer.sensitivities for layer in self._layers] + [slope for _, slope in self._slopes])
        inputs = {id(x): x for layer in self._layers for entry in layer.call.entries for x in entry.inputs}
        whole = storages(inputs.values()).items()
        shared = sum(size for place, size in whole if place not in own)
        return sum(own.values()) + min(shared, sum(x.numel() * x.element_size() for x in inputs.values()))

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Parameter -> gradient of the loss sum, for the parameters of factored blocks."""
        made: dict[str, Tensor] = {}
        for call, slope in self._slopes:
            _refuse_overwritten(call)
            for entry in call.entries:
                add_part(made, entry.name, entry.pull(slope.view(call.shape)))
        return made

    def _open(self, judged: Judged, recorded: list[LayerCall]) -> set[str]:
        """Sensitivities of every recorded layer by one backward pass; returns the parameters without usable ones."""
        output = judged.output
        directions = output_directions(judged.loss, output, judged.again)
        if directions is None:
            return {entry.name for call in recorded for entry in call.entries}
        self._signs = directions.signs
        n, _, most = directions.roots.shape
        probe = item_probe(n, output.numel() // n, output)
        pair = torch.stack([probe, probe * item_weights(n, output).unsqueeze(1)])
        apart: list[LayerCall] = []
        tied: set[str] = set()
        for call, rows in self._passed(output, recorded, pair):
            if rows.dtype in SAME_SUM and same_by_item(rows[1].reshape(n, -1), rows[0].reshape(n, -1)):
                apart.append(call)
            else:
                tied.update(entry.name for entry in call.entries)
        seeds = torch.cat([directions.roots.permute(2, 0, 1), directions.slope.reshape(1, n, -1)])
        for call, rows in self._passed(output, apart, seeds):
            self._layers.append(Layer(call, rows[:most].reshape(most, n, -1)))
            self._slopes.append((call, rows[most]))
        return tied

    def _passed(self, output: Tensor, calls: list[LayerCall], seeds: Tensor) -> list[tuple[LayerCall, Tensor]]:
        """The calls that the output depends on, each with (len(seeds), *y.shape)."""
        if not calls:
            return []
        self._counters.count("backwards", len(seeds))
        sizes = [call.shape.numel() for call in calls]
        found = sensitivities(output, [call.edge for call in calls], sizes, seeds.reshape(-1, *output.shape))
        return [(call, rows) for call, rows in zip(calls, found, strict=True) if rows is not None]


def _refuse_overwritten(call: LayerCall) -> None:
    """What autograd does for the tensors that it saved.

    Raises:
        RuntimeError: an input of the layer was written into since.
    """
    if not call.intact:
        raise RuntimeError("an input that a layer's factors need has been modified by an inplace operation")


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    first, *rest = parts
    for part in rest:
        first = first + part
    return first


def _by_item(moved: Tensor, layer: Layer) -> Tensor:
    """(M, s, ...) changes of a call's outputs as (N, s, D), where each of N items has M / N of the call's rows."""
    n = layer.sensitivities.shape[1]
    m, s = moved.shape[:2]
    return moved.reshape(n, m // n, s, -1).transpose(1, 2).reshape(n, s, -1)


def _by_call(back: Tensor, layer: Layer) -> Tensor:
    """The way back: (N, s, D) to (M, s, ...)."""
    n, s, _ = back.shape
    m = layer.call.shape[0]
    return back.view(n, s, m // n, -1).transpose(1, 2).reshape(m, s, *layer.call.shape[1:])


def _usable(calls: Sequence[LayerCall], objective: Objective, judged: Judged) -> set[str]:
    """Names of the parameters that are used in recorded calls only, and only on the way to the output."""
    output, items = judged.output, len(judged.output)
    beside = set(walk([judged.loss.grad_fn], before=output.grad_fn))
    good: set[str] = set()
    bad: set[str] = set()
    for call in calls:
        fine = call.intact and len(call.shape) > 1 and call.shape[0] > 0 and call.shape[0] % items == 0
        (good if fine and call.edge.node not in beside else bad).update(entry.name for entry in call.entries)
    elsewhere = leaves(walk([output.grad_fn])) | leaves(beside)
    bad.update(name for name, parameter in objective.parameters.items() if id(parameter) in elsewhere)
    return good - bad


def _bent(output: Tensor, calls: Recorder, blocks: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """The blocks in which the output may not be piecewise linear."""
    keys = list(blocks)
    bit = {name: 0 for names in blocks.values() for name in names}
    for place, key in enumerate(keys):
        for name in blocks[key]:
            bit[name] |= 1 << place
    sources: dict[Any, int] = {}
    for call in calls.found:
        bits = 0
        for entry in call.entries:
            bits |= bit.get(entry.name, 0)
        sources[call.edge.node] = sources.get(call.edge.node, 0) | bits
    struck = not_linear(output.grad_fn, sources, calls.affine)
    return frozenset(key for place, key in enumerate(keys) if struck >> place & 1)
