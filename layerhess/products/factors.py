"""Products of one batch with J' S J by factors: each layer's inputs and output sensitivities, and no more network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerhess.errors import InputError
from layerhess.ledger import Ledger
from layerhess.memory import is_out_of_memory
from layerhess.objective import Objective
from layerhess.products.linearity import leaves, not_linear
from layerhess.products.taps import Tap, Taps

MOST_DIRECTIONS = 32  # per item of the output: beyond, as many backward passes cost more than exact products
MOST_AT_ONCE = 1 << 24  # numbers in the outputs of a layer for all vectors that are multiplied together
NEGLIGIBLE = 4.0  # eps: an eigenvalue of S below this share of the largest is rounding


@dataclass(frozen=True)
class Layer:
    """One tapped call with its sensitivities.

    Attributes:
        sensitivities: (Q, N, D): the gradient of each item's Q output directions with respect to its D outputs y.
    """

    tap: Tap
    sensitivities: Tensor


class FactorGraph:
    """One batch's J' S J as J' M sign(S) M' J, with M M' = |S| per item and the rows M' J kept layer by layer.

    The row of item n and direction q with respect to the weights of a layer y = f(a; w) is the derivative of
    <delta_nq, f(a_n; w)> in w, delta_nq = d (M' z)_nq / d y_n. So a product costs one evaluation of the layer at the
    vector, inner products with delta, their weighted sum, and one gradient of the layer's weights: all blocks together
    about what one gradient costs, and nothing of the network is run. To make: a forward pass and Q backward passes, for
    cross entropy of C classes Q = C - 1, through activations only. (Dangel, Kunstner & Hennig 2020, for the square
    root of S; Martens 2020, section 8.)

    Items are the entries of dimension 0 of the output. What ties items together, or is tapped in another layout, makes
    wrong products here; who uses them compares some with exact ones first.

    Args:
        objective: in session. batch: prepared. blocks: key -> names of its parameters. ledger: counts the passes.

    Attributes:
        factored: keys of the blocks all of whose uses were tapped. linear: those of them in whose parameters the output
            is piecewise linear, so that their block of the Hessian is this one.
        loss_sum, count: of the batch.
    """

    def __init__(self, objective: Objective, batch: Any, blocks: Mapping[str, Sequence[str]], ledger: Ledger) -> None:
        self._ledger = ledger
        taps = Taps({id(parameter): name for name, parameter in objective.parameters.items()})
        with taps:
            judged = objective.evaluation.with_output(objective.model, batch)
        ledger.count("forwards")
        self.loss_sum, self.count = float(judged.loss.detach().double()), judged.count
        self.factored: frozenset[str] = frozenset()
        self.linear: frozenset[str] = frozenset()
        self._layers: list[Layer] = []
        self._slopes: list[tuple[Tap, Tensor]] = []
        self._found: dict[tuple[str, ...], list[Layer]] = {}
        output = judged.output
        if not output.requires_grad or not output.ndim or not len(output):
            return
        usable = _usable(taps.found, len(output), objective, output)
        self.factored = frozenset(key for key, names in blocks.items() if usable.issuperset(names))
        self.linear = self.factored - _bent(output, taps, {key: blocks[key] for key in self.factored})
        wanted = {name for key in self.factored for name in blocks[key]}
        tapped = [tap for tap in taps.found if wanted.intersection(entry.name for entry in tap.entries)]
        if tapped:
            self._open(judged.loss, output, tapped)

    def product(self, names: Sequence[str], vector: Mapping[str, Tensor]) -> list[Tensor | None]:
        """The batch's share of (J' S J)[names, names] v for the parameters of a factored block, not divided."""
        made = self.products(names, {name: vector[name].unsqueeze(0) for name in names})
        return [None if part is None else part[0] for part in made]

    def products(self, names: Sequence[str], vectors: Mapping[str, Tensor]) -> list[Tensor | None]:
        """The same for s vectors, (s, *shape) each: sensitivities are read once for as many as fit some memory."""
        layers = self._layers_of(names)
        count = len(vectors[names[0]])
        largest = max((layer.tap.shape.numel() for layer in layers), default=1)
        step = max(1, min(count, MOST_AT_ONCE // largest))
        chunks = [
            self._some_products(layers, names, {name: vectors[name][start : start + step] for name in names})
            for start in range(0, count, step)
        ]
        return [None if parts[0] is None else torch.cat(parts) for parts in zip(*chunks, strict=True)]

    def _some_products(
        self, layers: Sequence[Layer], names: Sequence[str], vectors: Mapping[str, Tensor]
    ) -> list[Tensor | None]:
        self._ledger.count("products", len(vectors[names[0]]))
        weights: Tensor | None = None
        for layer in layers:
            moved = sum_of(entry.pushed(vectors[entry.name]) for entry in layer.tap.entries if entry.name in vectors)
            rows = torch.bmm(_by_item(moved, layer), layer.sensitivities.permute(1, 2, 0))  # (N, s, Q)
            weights = rows if weights is None else weights + rows
        if weights is None:
            return [None] * len(names)
        weights = weights * self._signs.unsqueeze(1)
        made: dict[str, Tensor] = {}
        for layer in layers:
            back = _by_call(torch.bmm(weights, layer.sensitivities.transpose(0, 1)), layer)
            for entry in layer.tap.entries:
                if entry.name in vectors:
                    part = entry.pulled(back)
                    made[entry.name] = made[entry.name] + part if entry.name in made else part
        return [made.get(name) for name in names]

    def _layers_of(self, names: Sequence[str]) -> list[Layer]:
        key = tuple(names)
        if key not in self._found:
            wanted = set(names)
            self._found[key] = [
                layer for layer in self._layers if wanted.intersection(entry.name for entry in layer.tap.entries)
            ]
        return self._found[key]

    @property
    def nbytes(self) -> int:
        """Bytes of sensitivities and inputs."""
        held = [layer.sensitivities for layer in self._layers] + [slope for _, slope in self._slopes]
        held += [tensor for layer in self._layers for entry in layer.tap.entries for tensor in entry.inputs]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
        return sum(storages.values())

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Parameter -> gradient of the loss sum, for the parameters of factored blocks."""
        made: dict[str, Tensor] = {}
        for tap, slope in self._slopes:
            for entry in tap.entries:
                part = entry.pull(slope.view(tap.shape))
                made[entry.name] = made[entry.name] + part if entry.name in made else part
        return made

    def _open(self, loss: Tensor, output: Tensor, tapped: list[Tap]) -> None:
        """Sensitivities of every tapped layer, one backward pass for each output direction."""
        directions = output_directions(loss, output)
        if directions is None:
            self.factored = self.linear = frozenset()
            return
        roots, self._signs, slope = directions
        n, _, most = roots.shape
        self._ledger.count("backwards", most + 1)
        seeds = torch.cat([roots.permute(2, 0, 1).reshape(most, *output.shape), slope.unsqueeze(0)])
        for tap, rows in zip(tapped, _backward(output, [tap.edge for tap in tapped], seeds), strict=True):
            if rows is not None:
                self._layers.append(Layer(tap, rows[:most].reshape(most, n, -1)))
                self._slopes.append((tap, rows[most]))


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    first, *rest = parts
    for part in rest:
        first = first + part
    return first


def _by_item(moved: Tensor, layer: Layer) -> Tensor:
    """(M, s, ...) changes of a call's outputs as (N, s, D), where each of N items has M / N of the calls' rows."""
    n = layer.sensitivities.shape[1]
    m, s = moved.shape[:2]
    return moved.reshape(n, m // n, s, -1).transpose(1, 2).reshape(n, s, -1)


def _by_call(back: Tensor, layer: Layer) -> Tensor:
    """The way back: (N, s, D) to (M, s, ...)."""
    n, s, _ = back.shape
    m = layer.tap.shape[0]
    return back.view(n, s, m // n, -1).transpose(1, 2).reshape(m, s, *layer.tap.shape[1:])


def _backward(output: Tensor, edges: list[Any], seeds: Tensor) -> list[Tensor | None]:
    """Gradients (Q, ...) at the edges for all Q seeds: at once, or one by one where torch cannot batch a backward."""
    try:
        return list(
            torch.autograd.grad(output, edges, seeds, retain_graph=True, allow_unused=True, is_grads_batched=True)
        )
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
    rows = [torch.autograd.grad(output, edges, seed, retain_graph=True, allow_unused=True) for seed in seeds]
    return [None if parts[0] is None else torch.stack(parts) for parts in zip(*rows, strict=True)]


def output_directions(loss: Tensor, output: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """M (N, K, Q), signs (N, Q) with S_n = M_n diag(signs_n) M_n' = d2 loss / dz_n2, and d loss / dz; None for large K.

    Args:
        loss: 0-d, a sum over the N items. output: z, (N, ...) with K numbers an item.
    """
    n = len(output)
    size = output.numel() // n
    if size > MOST_DIRECTIONS:
        return None
    (slope,) = torch.autograd.grad(loss, [output], create_graph=True, allow_unused=True)
    if slope is None:
        raise InputError(
            "the loss is not computed from the output", where="loss", what_to_do="compute it from the returned tensor"
        )
    columns = output.new_zeros((n, size, size))
    if slope.requires_grad:
        for j in range(size):
            unit = output.new_zeros((n, size))
            unit[:, j] = 1.0
            (column,) = torch.autograd.grad(slope, [output], unit.view_as(output), retain_graph=True, allow_unused=True)
            if column is not None:
                columns[:, :, j] = column.reshape(n, size)
    values, vectors = torch.linalg.eigh(((columns + columns.mT) / 2).double())
    order = values.abs().argsort(dim=1, descending=True)
    values = values.gather(1, order)
    vectors = vectors.gather(2, order.unsqueeze(1).expand_as(vectors))
    floor = NEGLIGIBLE * torch.finfo(output.dtype).eps * float(values.abs().max())
    rank = max(1, int((values.abs() > floor).any(dim=0).sum()))
    values, vectors = values[:, :rank], vectors[:, :, :rank]
    roots = vectors * values.abs().sqrt().unsqueeze(1)
    return roots.to(output.dtype), values.sign().to(output.dtype), slope.detach()


def _usable(taps: Sequence[Tap], items: int, objective: Objective, output: Tensor) -> set[str]:
    """Names of the parameters that enter through whole, item-wise taps and in no other way."""
    good: set[str] = set()
    bad: set[str] = set()
    for tap in taps:
        fine = tap.intact and len(tap.shape) > 0 and tap.shape[0] > 0 and tap.shape[0] % items == 0
        (good if fine else bad).update(entry.name for entry in tap.entries)
    elsewhere = leaves(output.grad_fn)
    bad.update(name for name, parameter in objective.parameters.items() if id(parameter) in elsewhere)
    return good - bad


def _bent(output: Tensor, taps: Taps, blocks: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """The blocks in which the output may not be piecewise linear."""
    keys = list(blocks)
    bit = {name: 0 for names in blocks.values() for name in names}
    for place, key in enumerate(keys):
        for name in blocks[key]:
            bit[name] |= 1 << place
    sources: dict[Any, int] = {}
    for tap in taps.found:
        bits = 0
        for entry in tap.entries:
            bits |= bit.get(entry.name, 0)
        sources[tap.edge.node] = sources.get(tap.edge.node, 0) | bits
    struck = not_linear(output.grad_fn, sources, taps.affine)
    return frozenset(key for place, key in enumerate(keys) if struck >> place & 1)
